"""Our own methods against llm-compressor's: the same recipe and data give the same layout and the same quality."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from compress_command import Here
from compressor.__main__ import main
from compressor.checkpoint import manifest
from compressor.checkpoint.header import read_headers
from compressor.checkpoint.verify import verify
from compressor.errors import BadRecipeError
from compressor.methods import library, registry
from compressor.quality.load import load_dense
from compressor.quality.perplexity import logits_in_memory, perplexity
from compressor.quality.tokens import shipped_prose, windows
from compressor.recipe import parse

STARTER = Path(__file__).parents[2] / "model_repo/checkpoints/starter"
DATA = ("--set", "calibration.samples=24", "--set", "calibration.seq_len=256", "--no-quality", "--device", "cpu")
PACKED = ("--set", "export.format=compressed-tensors")
WINDOWS = 48


def made(folder: Path, recipe: str, through: str, *options: str) -> Path:
    out = folder / through
    argv = [str(STARTER), "--recipe", recipe, "--out", str(out), "--through", through, *DATA, *options]
    assert main(argv) == 0
    return out


def quality(folder: Path) -> float:
    model, tokenizer = load_dense(folder)
    ids_WT, _ = windows(tokenizer, shipped_prose(), 256, folder)
    with torch.no_grad():
        return perplexity(logits_in_memory(model, ids_WT[:WINDOWS]))


@cache
def parents_quality() -> float:
    return quality(STARTER)


def layout(folder: Path) -> dict[str, Any]:
    """Names, types and shapes of all tensors, and what the configuration says of their numbers."""
    config = json.loads((folder / "config.json").read_text())
    told = config.get("quantization_config") or {"config_groups": {}}
    kept = ("num_bits", "type", "symmetric", "strategy", "group_size", "block_structure", "dynamic")
    groups = [
        {part: {key: group[part][key] for key in kept} for part in ("weights", "input_activations") if group[part]}
        for group in told["config_groups"].values()
    ]
    tensors = {name: (_kind(name, tensor.dtype), tensor.shape) for name, tensor in read_headers(folder).items()}
    return {
        "groups": groups,
        "ignore": told.get("ignore"),
        "cache": told.get("kv_cache_scheme") is None,
        "tensors": tensors,
    }


def _kind(name: str, dtype: str) -> str:
    """Scales of inputs and of the cache are F32 here and BF16 there: readers take either."""
    return "any" if name.endswith(("input_scale", "k_scale", "v_scale")) else dtype


def agree(folder: Path, recipe: str, tolerance: float, *options: str) -> None:
    own, theirs = (made(folder, recipe, through, *options) for through in ("own", "llmcompressor"))
    assert layout(own) == layout(theirs)
    told = [manifest.read(one) for one in (own, theirs)]
    for key in ("scheme", "bits_per_weight", "bits_per_linear_weight", "parameters"):
        assert told[0][key] == told[1][key], key
    assert told[0]["size_bytes"] == pytest.approx(told[1]["size_bytes"], rel=1e-4)  # scales of inputs: see _kind
    assert told[0]["sparsity"] == pytest.approx(told[1]["sparsity"], abs=2e-3)
    assert told[1]["through"] == "llmcompressor"
    assert "llmcompressor" in told[1]["tools"]
    assert verify(theirs) == []
    ours, other = quality(own), quality(theirs)
    print(
        f"{recipe}: parent {parents_quality():.3f}, ours {ours:.3f}, the library {other:.3f}, {ours / other - 1:+.2%}"
    )
    assert ours < other * (1 + tolerance), "ours is worse than the library's"
    assert abs(ours / other - 1) < 3 * tolerance, "they do not do the same"


def test_rounding_to_nearest_has_the_librarys_layout_bits_and_quality(tmp_path: Path) -> None:
    """Not its codes: the library divides a group's largest weight by 7.5, we by 7, so that it is met exactly."""
    agree(tmp_path, "rtn-w4a16", 0.01)


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("recipe", "tolerance", "options"),
    [
        ("rtn-w8a16", 0.002, ()),
        ("rtn-w8a8", 0.005, ()),
        ("gptq-w4a16", 0.01, ()),
        ("gptq-w3", 0.02, ("--set", "params.shrink=false")),
        ("gptq-w8a8", 0.005, ()),
        ("awq-w4a16", 0.01, ("--set", "steps.0.params.clip=false", *PACKED)),
        ("smoothquant-w8a8", 0.005, ("--set", "steps.0.params.through_linears=false")),
        ("smoothquant-gptq-w8a8", 0.005, ("--set", "steps.0.params.through_linears=false")),
        ("fp8-dynamic", 0.005, ()),
        ("fp8-static", 0.01, ()),
        ("fp8-block", 0.005, ()),
        ("kv-fp8", 0.01, ()),
        ("nvfp4", 0.02, ()),
        ("nvfp4a16", 0.02, ()),
        ("mxfp4", 0.02, ()),
        ("mxfp4a16", 0.02, ()),
        ("wanda-50", 0.02, ()),
        ("wanda-24", 0.02, ()),
        ("sparsegpt-50", 0.02, ()),
        ("sparsegpt-24", 0.02, ()),
    ],
)
def test_ours_and_the_librarys_agree(tmp_path: Path, recipe: str, tolerance: float, options: tuple[str, ...]) -> None:
    agree(tmp_path, recipe, tolerance, *options)


def test_its_tokenizer_and_configuration_are_the_parents(tmp_path: Path) -> None:
    out = made(tmp_path, "rtn-w4a16", "llmcompressor")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        assert (out / name).read_bytes() == (STARTER / name).read_bytes()
    config, parent = (json.loads((folder / "config.json").read_text()) for folder in (out, STARTER))
    assert {key: value for key, value in config.items() if key != "quantization_config"} == parent
    assert not (out / "recipe.yaml").exists()


def test_nothing_of_its_logs_is_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = (STARTER, "--recipe", "rtn-w4a16", "--out", tmp_path / "out", "--through", "llmcompressor", *DATA)
    ran = Here(capsys)(*argv)
    assert ran.code == 0
    assert ran.err == "llm-compressor at work: QuantizationModifier\n"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"method": "spqr"}, "steps.0.method: spqr is ours only"),
        ({"method": "gptq", "params": {"true_sequential": True}}, "steps.0.params.true_sequential"),
        ({"method": "rtn", "params": {"shrink": True}}, "steps.0.params.shrink"),
        ({"method": "gptq", "export": {"format": "gptq"}}, "written as compressed-tensors, not gptq"),
    ],
)
def test_what_it_has_no_word_for_is_refused(value: dict[str, Any], words: str) -> None:
    recipe = parse({"name": "r", **value}, "r")
    with pytest.raises(BadRecipeError, match=words):
        library.translate(recipe, registry.build(recipe.steps, "r"))
