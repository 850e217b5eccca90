"""The orderings of the papers, on a trained model with the outlier channels of a large one, by seeds with margins.

Perplexity and divergence from the parent, on held-out prose; the absolute figures are this small model's own.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor import pipeline, recipe
from compressor.quality import tokens
from compressor.quality.load import load_dense
from compressor.quality.measure import Settings, measure
from compressor.screen import Screen
from outliers import with_outliers
from starter import STARTER

QUIET = Screen(is_quiet=True)
SEEDS = [
    pytest.param(seed, marks=[pytest.mark.xdist_group(f"orderings-{seed}"), *([pytest.mark.matrix] if seed else [])])
    for seed in (0, 1, 2)
]
# What is compared: a recipe, with what is set in it. (worse, better, largest share of the worse one's divergence.)
RTN4, GPTQ4 = ("rtn-w4a16",), ("gptq-w4a16",)
RTN4_ZEROS, AWQ4 = ("rtn-w4a16", "params.symmetric=false"), ("awq-w4a16",)
RTN3, GPTQ3 = ("rtn-w4a16", "params.scheme=W3A16"), ("gptq-w3",)
RTN3_ZEROS = ("rtn-w4a16", "params.scheme=W3A16_ASYM")
AWQ3 = (
    "awq-w4a16",
    "steps.0.params.scheme=W3A16_ASYM",
    "steps.1.params.scheme=W3A16_ASYM",
    "export.format=compressed-tensors",
)
GPTQ3_SMALL, SPQR = ("gptq-w3", "params.group_size=16"), ("spqr",)
PAIRS = {
    "gptq beats rounding at 4 bits": (RTN4, GPTQ4, 0.7),
    "awq beats rounding at 4 bits": (RTN4_ZEROS, AWQ4, 0.8),
    "gptq beats rounding at 3 bits": (RTN3, GPTQ3, 0.7),
    "awq beats rounding at 3 bits": (RTN3_ZEROS, AWQ3, 0.85),
    "smoothquant rescues 8-bit inputs": (("rtn-w8a8",), ("smoothquant-w8a8",), 0.25),
    "wanda beats magnitude": (("magnitude-50",), ("wanda-50",), 0.95),
    "sparsegpt beats magnitude": (("magnitude-50",), ("sparsegpt-50",), 0.7),
}
EVERYDAY = ("gptq beats rounding at 3 bits", "smoothquant rescues 8-bit inputs")

Lost = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> Lost:
    """What a recipe loses on the model of a seed, each made once; `bits`: true ones a linear weight."""
    found: dict[tuple[object, ...], dict[str, Any]] = {}
    folder = tmp_path_factory.mktemp("orderings")
    text = folder / "prose.txt"
    text.write_text(tokens.shipped_prose().text[:30_000], "utf-8")

    def measured(seed: int, name: str, *overrides: str) -> dict[str, Any]:
        key = (seed, name, *overrides)
        if key not in found:
            parent = folder / f"parent-{seed}"
            if not parent.exists():
                with_outliers(STARTER, parent, seed)
            out = folder / f"child-{len(found)}"
            data = ["calibration.samples=64", "calibration.seq_len=256", f"calibration.seed={seed}"]
            made = recipe.load(name, [*data, *overrides])
            manifest = pipeline.compress(pipeline.Job(parent, made, out, with_quality=False), QUIET)
            settings = Settings(text=text, ctx=256, per_family=0, kl_windows=100)
            quality = measure(out, parent, QUIET, settings=settings, cache=folder / "known")
            assert quality is not None
            found[key] = copy.deepcopy(quality) | {"bits": manifest["bits_per_linear_weight"]}
        return found[key]

    return measured


def test_outliers_leave_the_logits_as_they_are(tmp_path: Path) -> None:
    plain, tokenizer = load_dense(STARTER)
    loud, _ = load_dense(with_outliers(STARTER, tmp_path / "loud", 0))
    ids = tokenizer("The quick brown fox is in the yard.", return_tensors="pt", add_special_tokens=False)["input_ids"]
    norms: list[float] = []
    loud.model.layers[1].input_layernorm.register_forward_hook(lambda _, __, out: norms.append(float(out.abs().max())))
    with torch.no_grad():
        torch.testing.assert_close(loud(ids).logits, plain(ids).logits, rtol=1e-5, atol=1e-4)
        quiet = float(plain.model.layers[1].input_layernorm(torch.randn(1, 8, 256)).abs().max())
    assert norms[0] > 5 * quiet


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("claim", [pytest.param(c, marks=() if c in EVERYDAY else pytest.mark.matrix) for c in PAIRS])
def test_the_better_method_loses_less(claim: str, seed: int, lost: Lost) -> None:
    worse, better, share = PAIRS[claim]
    rounded, solved = lost(seed, *worse), lost(seed, *better)
    assert solved["kl"]["mean"] < share * rounded["kl"]["mean"]
    assert solved["perplexity"]["value"] < rounded["perplexity"]["value"]


@pytest.mark.matrix
@pytest.mark.parametrize("seed", SEEDS)
def test_spqr_loses_less_than_gptq_in_the_same_groups_with_no_more_true_bits(seed: int, lost: Lost) -> None:
    """Three bits in groups of 16: GPTQ spends a 16-bit scale on each, SpQR two-level scales and outliers instead."""
    gptq, spqr = lost(seed, *GPTQ3_SMALL), lost(seed, *SPQR)
    assert spqr["bits"] <= gptq["bits"] + 0.05
    assert spqr["kl"]["mean"] < 0.8 * gptq["kl"]["mean"]
    assert spqr["perplexity"]["value"] < gptq["perplexity"]["value"]
