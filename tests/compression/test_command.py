"""`penstock compress` as a person meets it: its help, its lists, a forecast, a result, a verdict."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from compress_command import QUICK, Here, tiny
from compressor.checkpoint import manifest
from compressor.checkpoint.verify import verify
from compressor.methods.registry import METHODS
from compressor.recipe import shipped

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/compression.md"


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    monkeypatch.chdir(tmp_path)
    return Here(capsys)


def test_help_teaches_by_examples(here: Here) -> None:
    ran = here("--help")
    assert ran.code == 0
    for words in ("--recipe gptq-w4a16", "--set params.bits=3", "exit codes:", "compare", "goes on from there"):
        assert words in ran.out


def test_every_recipe_is_listed_with_who_can_serve_it(here: Here) -> None:
    ran = here("--list", "--format", "json")
    lines = {line["name"]: line for line in json.loads(ran.out)}
    assert lines.keys() == {path.stem for path in shipped()}
    assert {"vllm", "sglang"} <= lines["gptq-w4a16"]["engines"].keys()
    assert lines["gguf-q8-0"]["engines"].keys() == {"openvino"}
    assert lines["slicegpt-25"]["engines"] == {}
    assert "no engine as it is" in here("--list").out


def test_every_method_is_told_with_its_paper_and_parameters(here: Here) -> None:
    ran = here("--methods", "--format", "json")
    lines = {line["name"]: line for line in json.loads(ran.out)}
    assert lines.keys() == METHODS.keys()
    assert all(line["about"] and line["source"] for line in lines.values())
    assert all(told.partition(": ")[2] for line in lines.values() for told in line["params"].values())


@pytest.mark.parametrize(("flag", "what"), [("--list", "recipes"), ("--methods", "methods")])
def test_the_page_shows_the_lists_of_today(here: Here, flag: str, what: str) -> None:
    table = here(flag, "--format", "markdown").out
    _, begin, rest = PAGE.read_text("utf-8").partition(f"<!-- {what}: begin -->\n")
    shown, end, _ = rest.partition(f"<!-- {what}: end -->")
    assert begin
    assert end
    assert shown == table, f"put `penstock compress {flag} --format markdown` between the markers of {PAGE.name}"


def test_a_dry_run_says_what_would_be_done_and_does_nothing(here: Here, tmp_path: Path) -> None:
    model = tiny(tmp_path)
    ran = here(model, "--recipe", "smoothquant-gptq-w8a8", "--dry-run")
    assert ran.code == 0, ran.err
    assert "smoothquant+gptq, block by block" in ran.out
    assert "128 windows of 512 tokens" in ran.out
    assert "vllm (CPU" in ran.out
    assert {path.name for path in tmp_path.iterdir()} == {"tiny"}


@pytest.mark.parametrize("recipe", ["rtn-w4a16", "rtn-w8a8", "fp8-dynamic"])
def test_the_size_that_was_foretold_is_the_size(here: Here, tmp_path: Path, recipe: str) -> None:
    model = tiny(tmp_path)
    told = here(model, "--recipe", recipe, "--dry-run").out.partition("about ")[2].partition(" bits")[0]
    assert here(model, "--recipe", recipe, "--out", "out", *QUICK).code == 0
    made = manifest.read(tmp_path / "out")
    assert float(told) == pytest.approx(made["bits_per_weight"], abs=0.006)
    assert made["size_bytes"] * 8 / made["parameters"] == pytest.approx(made["bits_per_weight"], rel=2e-3)


def test_a_result_is_told_on_stdout_and_its_manifest_holds_what_was_done(here: Here, tmp_path: Path) -> None:
    ran = here(tiny(tmp_path), "--recipe", "gptq-w4a16", "--set", "params.group_size=64", *QUICK)
    assert ran.code == 0, ran.err
    assert ran.out.startswith("tiny-gptq-w4a16: W4A16_G64, ")
    made = manifest.read(tmp_path / "tiny-gptq-w4a16")
    assert made["penstock_manifest"] == 1
    assert made["parent"]["name"] == "tiny"
    assert made["recipe"]["steps"][0]["params"]["group_size"] == 64
    assert made["calibration"]["samples"] == 8
    assert made["bits_per_linear_weight"] == pytest.approx(4 + 16 / 64)
    assert made["layers"]["model.layers.0.self_attn.q_proj"]["weights"] == 256 * 128
    assert made["gate"]["passed"] is None
    assert made["sparsity"] == 0
    assert verify(tmp_path / "tiny-gptq-w4a16") == []


def test_a_gate_that_is_failed_ends_with_3_and_keeps_the_checkpoint(here: Here, tmp_path: Path) -> None:
    ran = here(tiny(tmp_path), "--recipe", "rtn-w4a16", "--out", "out", "--set", "gate.max_regression=0", "--quiet")
    assert ran.code == 3, ran.err
    assert "out was made and is kept, but perplexity grew by" in ran.err
    assert manifest.read(tmp_path / "out")["gate"]["passed"] is False


def test_a_quiet_run_says_only_its_result(here: Here, tmp_path: Path) -> None:
    ran = here(tiny(tmp_path), "--recipe", "rtn-w4a16", "--quiet", *QUICK)
    assert ran.err == ""
    assert ran.out.count("\n") == 1


def _without_torch(*argv: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; sys.modules['torch'] = None\nfrom compressor.__main__ import main\nsys.exit(main(sys.argv[1:]))"
    return subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=60, check=False)


def test_without_torch_it_says_how_to_get_its_environment() -> None:
    ran = _without_torch("model", "--recipe", "rtn-w4a16")
    assert ran.returncode == 1
    assert "run `make compressor` once, then .venvs/compress/bin/penstock compress" in ran.stderr
    assert _without_torch("--help").returncode == 0


@pytest.mark.parametrize("command", ["measure", "compare"])
def test_its_other_commands_have_a_help_of_their_own(here: Here, command: str) -> None:
    ran = here(command, "--help")
    assert ran.code == 0
    assert f"penstock compress {command}" in ran.out
