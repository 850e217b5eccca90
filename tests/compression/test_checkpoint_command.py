"""`penstock checkpoint`: what a checkpoint is, whether it is whole, how two differ; and all that without torch."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress_command import QUICK, Here, tiny
from compressor.__main__ import main as compress
from compressor.checkpoint import manifest
from compressor.checkpoint.card import as_card
from compressor.checkpoint_command import main

STARTER = Path(__file__).parents[2] / "model_repo/checkpoints/starter"


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Here:
    return Here(capsys)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of ours and its 4-bit child, beside each other; read only."""
    folder = tmp_path_factory.mktemp("made")
    for recipe in ("rtn-w4a16", "wanda-50"):
        assert compress([str(tiny(folder)), "--recipe", recipe, "--out", str(folder / recipe), *QUICK]) == 0
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in (made / "rtn-w4a16").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_show_tells_how_it_was_made_and_what_it_takes(here: Here, made: Path) -> None:
    ran = here("show", made / "rtn-w4a16", program=main)
    assert ran.code == 0, ran.err
    for words in ("W4A16", "bits per weight", "4.125 in the compressed linears", "made from", "vllm: CPU and GPU"):
        assert words in ran.out
    assert "steps.0.method: rtn" in ran.out


def test_show_for_programs_is_the_manifest(here: Here, made: Path) -> None:
    ran = here("show", "--json", made / "rtn-w4a16", program=main)
    assert json.loads(ran.out) == manifest.read(made / "rtn-w4a16")


def test_a_checkpoint_without_a_manifest_is_told_from_its_headers(here: Here, made: Path) -> None:
    ran = here("show", "--json", made / "tiny", program=main)
    told = json.loads(ran.out)
    tensors = load_file(made / "tiny/model.safetensors")
    assert told["parameters"] == sum(tensor.numel() for tensor in tensors.values())
    assert told["bits_per_weight"] == 16
    assert "quality" not in told


def test_the_bits_are_those_of_the_files(made: Path) -> None:
    """Codes, scales and what stayed dense, counted tensor by tensor; shapes of packed weights are no weights."""
    told = manifest.read(made / "rtn-w4a16")
    tensors = load_file(made / "rtn-w4a16/model.safetensors")
    shapes = [tensor for name, tensor in tensors.items() if name.endswith("weight_shape")]
    dense = [tensor for name, tensor in tensors.items() if not name.rpartition(".")[2].startswith("weight_")]
    parameters = sum(int(shape.prod()) for shape in shapes) + sum(tensor.numel() for tensor in dense)
    bits = 8 * sum(tensor.nbytes for name, tensor in tensors.items() if not name.endswith("weight_shape"))
    assert told["parameters"] == parameters
    assert told["bits_per_weight"] == pytest.approx(bits / parameters, abs=1e-4)
    assert told["size_bytes"] == sum(tensor.nbytes for tensor in tensors.values())


def test_the_zeros_of_pruning_are_the_sparsity(made: Path) -> None:
    told = manifest.read(made / "wanda-50")
    tensors = load_file(made / "wanda-50/model.safetensors")
    linears = [tensors[f"{name}.weight"] for name, facts in told["layers"].items() if "weights" in facts]
    zeros = sum(int((weight == 0).sum()) for weight in linears)
    assert told["sparsity"] == pytest.approx(zeros / sum(weight.numel() for weight in linears), abs=1e-4)
    assert told["sparsity"] == pytest.approx(0.5, abs=0.01)


def test_the_card_is_written_from_the_manifest(made: Path) -> None:
    told = manifest.read(made / "rtn-w4a16")
    assert (made / "rtn-w4a16/README.md").read_text("utf-8") == as_card(told)
    assert "README.md" in told["files"]


def test_verify_of_a_whole_checkpoint_says_what_was_looked_at(here: Here, made: Path) -> None:
    ran = here("verify", made / "rtn-w4a16", program=main)
    assert ran.code == 0
    assert "is whole: hashes and sizes, shards, config.json against the tensors, values" in ran.out
    assert here("verify", STARTER, program=main).code == 0


def _edit(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def _spoil(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _one_bit(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


EMBEDDINGS = "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("spoil", "file", "words"),
    [
        (_one_bit, "model.safetensors", "its sha256 differs"),
        (lambda folder: os.truncate(folder / "model.safetensors", 5000), "model.safetensors", "is no whole"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json", "is missing"),
        (lambda folder: (folder / "penstock.json").unlink(), "penstock.json", "hashes cannot be checked"),
        (lambda folder: (folder / "penstock.json").write_text("{"), "penstock.json", "cannot be read"),
        (lambda folder: _edit(folder, num_hidden_layers=3), "config.json", "says 3 layers, and the tensors have 2"),
        (lambda folder: _edit(folder, vocab_size=77), "config.json", "says (77, 128)"),
        (lambda folder: _edit(folder, quantization_config=None), "config.json", "has no quantization_config"),
        (lambda folder: _spoil(folder, lambda had: had.pop(EMBEDDINGS)), "config.json", "promises model.embed_tokens"),
        (
            lambda folder: _spoil(folder, lambda had: had[EMBEDDINGS].fill_(torch.nan)),
            "model.safetensors",
            f"tensor {EMBEDDINGS} holds NaN",
        ),
        (
            lambda folder: save_file({"a": torch.ones(1)}, folder / "more.safetensors"),
            "more.safetensors",
            "penstock.json does not know of",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_verify_names_the_file_and_the_fault(
    here: Here, copy: Path, spoil: Callable[[Path], object], file: str, words: str
) -> None:
    spoil(copy)
    ran = here("verify", copy, program=main)
    assert ran.code == 1
    assert any(line.startswith(f"{file}: ") and words in line for line in ran.out.splitlines()), ran.out
    found = json.loads(here("verify", "--json", copy, program=main).out)["faults"]
    assert any(fault["file"] == file and words in fault["what"] for fault in found)


def test_an_index_is_held_against_its_shards(here: Here, tmp_path: Path) -> None:
    model = tiny(tmp_path, shards=2)
    first, second = sorted(model.glob("*.safetensors"))
    tensors = load_file(second)
    lost = sorted(tensors)[0]
    del tensors[lost]
    save_file(tensors, second)
    assert f"lacks tensor {lost}" in here("verify", model, program=main).out
    first.unlink()
    assert f"{first.name}: is missing; " in here("verify", model, program=main).out


def test_a_manifest_that_points_out_of_its_folder_reads_nothing_there(here: Here, copy: Path) -> None:
    told = manifest.read(copy)
    told["files"]["../secret"] = {"sha256": "0", "size_bytes": 1}
    manifest.write(copy, told)
    assert "its entry '../secret' is no file of this folder" in here("verify", copy, program=main).out


def test_diff_sets_recipe_bits_and_size_side_by_side(here: Here, made: Path) -> None:
    ran = here("diff", "--json", made / "rtn-w4a16", made / "wanda-50", program=main)
    rows = {row["what"]: (row["first"], row["second"]) for row in json.loads(ran.out)}
    assert rows["scheme"] == ("W4A16", "BF16")
    assert rows["recipe.steps.0.method"] == ("rtn", "wanda")
    assert rows["size_bytes"][0] < rows["size_bytes"][1]
    assert "recipe.calibration.seed" not in rows, "what is equal in both recipes is no difference"
    assert "scheme" in here("diff", made / "tiny", made / "rtn-w4a16", program=main).out


def test_figures_of_different_protocols_are_not_compared(here: Here, copy: Path) -> None:
    told = manifest.read(copy)
    manifest.write(copy, told | {"quality": {"perplexity": {"value": 18.0, "protocol": {"ctx": 256}}}})
    line = next(row for row in here("diff", STARTER, copy, program=main).out.splitlines() if "perplexity" in row)
    assert "other protocol" in line


def test_a_parents_figure_is_the_one_measured_together_with_its_childs(here: Here, copy: Path) -> None:
    protocol = {"ctx": 256}
    quality = {"perplexity": {"value": 20.0, "protocol": protocol}, "parent": {"perplexity": {"value": 16.0}}}
    manifest.write(copy, manifest.read(copy) | {"quality": quality, "parent": {"name": "starter"}})
    line = next(row for row in here("diff", STARTER, copy, program=main).out.splitlines() if "perplexity" in row)
    assert line.split()[1:] == ["16", "20", "+25.0%"]


def test_list_has_a_line_for_each_and_says_which_is_broken(here: Here, made: Path, copy: Path) -> None:
    ran = here("list", made, program=main)
    assert [line.split()[0] for line in ran.out.splitlines()] == ["name", "rtn-w4a16", "tiny", "wanda-50"]
    (copy / "penstock.json").write_text("{")
    assert "cannot be read" in here("list", copy.parent, program=main).out


def test_what_is_no_checkpoint_is_said_to_be_none(here: Here, tmp_path: Path) -> None:
    assert "is no checkpoint" in here("show", tmp_path, program=main).err
    assert "is not a folder" in here("show", tmp_path / "nowhere", program=main).err
    assert here("list", tmp_path, program=main).out == f"{tmp_path} holds no checkpoint\n"


def test_it_needs_neither_torch_nor_numpy(made: Path) -> None:
    code = (
        "import sys\nsys.modules.update(dict.fromkeys(('torch', 'numpy', 'safetensors', 'pydantic', 'yaml', 'rich')))\n"
        "from compressor.checkpoint_command import main\nsys.exit(main(sys.argv[1:]))"
    )
    for words in (("show", made / "rtn-w4a16"), ("verify", made / "rtn-w4a16"), ("list", made)):
        ran = subprocess.run(
            [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, timeout=60, check=False
        )
        assert ran.returncode == 0, ran.stderr
    assert (
        "values were not looked at"
        in subprocess.run(
            [sys.executable, "-c", code, "verify", str(made / "rtn-w4a16")], capture_output=True, text=True, check=True
        ).stdout
    )
