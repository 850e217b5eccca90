"""What cannot be compressed: one line that says what is wrong and what to do, and nothing under the final name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress_command import QUICK, Here, tiny

Break = Callable[[Path], object]


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    monkeypatch.chdir(tmp_path)
    return Here(capsys)


def _config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _nan(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _other_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(64, 128, dtype=torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), ["no config.json"]),
        (lambda folder: (folder / "config.json").write_text("{"), ["config.json cannot be read"]),
        (_adapter, ["LoRA adapter", "merge it"]),
        (_pickle, ["no *.safetensors", "pickle"]),
        (_cut, ["model.safetensors is no whole safetensors file"]),
        (lambda folder: _config(folder, model_type="mamba"), ["model_type 'mamba'", "it knows llama"]),
        (lambda folder: _config(folder, quantization_config={"quant_method": "awq"}), ["quantized already", "awq"]),
        (lambda folder: (folder / "tokenizer.json").unlink(), ["no tokenizer"]),
        (_nan, ["model.layers.1.mlp.up_proj.weight holds NaN"]),
        (_other_shape, ["model.layers.1.mlp.up_proj.weight"]),
        (lambda folder: _config(folder, num_hidden_layers=3), ["model.layers.2"]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_model_that_is_broken_is_told_by_file(here: Here, tmp_path: Path, spoil: Break, words: list[str]) -> None:
    model = tiny(tmp_path)
    spoil(model)
    ran = here(model, "--recipe", "gptq-w4a16", "--out", "out", *QUICK)
    assert ran.code == 1, ran.err
    assert all(word in ran.err for word in words), ran.err
    assert not (tmp_path / "out").exists()


def test_a_shard_that_is_missing_is_named(here: Here, tmp_path: Path) -> None:
    model = tiny(tmp_path, shards=2)
    lost = sorted(model.glob("*.safetensors"))[1]
    lost.unlink()
    ran = here(model, "--recipe", "rtn-w4a16", "--out", "out", *QUICK)
    assert ran.code == 1
    assert f"{lost} is missing" in ran.err
    assert not (tmp_path / "out").exists()


def test_what_is_no_folder_is_said_to_be_none(here: Here, tmp_path: Path) -> None:
    ran = here("meta-llama/Llama-3-8B", "--recipe", "rtn-w4a16")
    assert ran.code == 1
    assert "meta-llama/Llama-3-8B is not a folder" in ran.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["{"], "rows.jsonl:1: not JSON"),
        (['{"text": "a fox"}', ""], "rows.jsonl:2: the row is empty"),
        (['{"text": "a fox"}', '{"text": ""}'], "rows.jsonl:2: a row is"),
        (['{"txt": "a fox"}'], "rows.jsonl:1: a row is"),
        (['["a fox"]'], "rows.jsonl:1: a row is"),
        (['{"text": "a fox"}', '{"messages": [{"rol": "user"}]}'] * 500, "rows.jsonl:"),
        ([], "rows.jsonl has no rows"),
        (['{"text": "a fox"}'], "not even one window of 64"),
    ],
)
def test_calibration_rows_are_told_by_file_and_line(here: Here, tmp_path: Path, rows: list[str], words: str) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(f"{row}\n" for row in rows))
    ran = here(tiny(tmp_path), "--recipe", "gptq-w4a16", "--out", "out", "--calibration", "rows.jsonl", *QUICK)
    assert ran.code == 1, ran.err
    assert words in ran.err, ran.err
    assert not (tmp_path / "out").exists()


def test_windows_longer_than_the_context_are_refused(here: Here, tmp_path: Path) -> None:
    ran = here(tiny(tmp_path), "--recipe", "gptq-w4a16", "--set", "calibration.seq_len=4096")
    assert ran.code == 1
    assert "calibration.seq_len is 4096, and the model's context is 2048" in ran.err


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["--recipe", "gptq-w4a61"], 2, "no recipe 'gptq-w4a61'; did you mean gptq-w4a16?"),
        (["--recipe", "mine.yaml"], 2, "there is no file mine.yaml"),
        (["--recipe", "typo.yaml"], 2, "typo.yaml: calibration.sampels: unknown key; did you mean samples?"),
        (
            ["--recipe", "gptq-w4a16", "--set", "params.bitz=3"],
            2,
            "steps.0.params.bitz: unknown key; did you mean bits?",
        ),
        (["--recipe", "gptq-w4a16", "--set", "params.scheme=W4A61"], 2, "did you mean W4A16?"),
        (["--recipe", "gptq-w4a16", "--set", "bits"], 2, "write KEY=VALUE"),
        (["--recipe", "gptq-w4a16", "--set", "params.group_size=96"], 2, "96 does not divide 128 inputs"),
        (["--recipe", "gptq-w4a16", "--engine", "openvino"], 1, "openvino cannot serve what recipe gptq-w4a16 makes"),
        (["--recipe", "gptq-w4a16", "--engine", "vlm"], 2, "did you mean vllm?"),
        (["--recipe", "gptq-w4a16", "--device", "nosuch"], 1, "--device nosuch cannot be used here"),
        (["--recipe", "gptq-w4a16", "--out", "tiny"], 2, "a parent is never replaced"),
        (["--recipe", "gptq-w4a16", "--out", "tiny", "--force"], 2, "a parent is never replaced"),
        (["--recipe", "gptq-w4a16", "--out", "taken"], 2, "taken is there already"),
        (["--recipe", "gptq-w4a16", "--out", "taken", "--force"], 2, "taken is no checkpoint"),
        ([], 2, "give a --recipe"),
        (["--recipe", "gptq-w4a16", "--dtype", "int3"], 2, "--dtype"),
    ],
)
def test_a_wrong_wish_is_refused_before_the_work(
    here: Here, tmp_path: Path, argv: list[str], code: int, words: str
) -> None:
    model = tiny(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/thesis.tex").write_text("years of work")
    (tmp_path / "typo.yaml").write_text("method: rtn\ncalibration: {sampels: 3}\n")
    before = sorted(tmp_path.rglob("*"))
    ran = here(model, *QUICK, *argv)
    assert ran.code == code, ran.err
    assert words in ran.err.replace("\n", " "), ran.err
    assert "Traceback" not in ran.err
    left = {path for path in tmp_path.rglob("*") if ".tiny-gptq-w4a16.partial" not in path.parts}
    assert sorted(left) == before


def test_an_engine_that_cannot_serve_is_refused_with_those_that_can(here: Here, tmp_path: Path) -> None:
    ran = here(tiny(tmp_path), "--recipe", "gptq-w4a16", "--engine", "openvino", *QUICK)
    assert "vllm" in ran.err.partition("these can: ")[2]
    assert {path.name for path in tmp_path.iterdir()} == {"tiny"}
