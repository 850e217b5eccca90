"""AWQ: the search against a loop, never worse than rounding, nothing changed before rounding, composition."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from compressor.methods.awq import AWQ, Sample, clip, relative_size, search
from compressor.methods.gptq import GPTQ
from compressor.methods.rtn import RoundToNearest
from compressor.numbers.grids import IntegerGrid
from compressor.numbers.integer import encode
from small_blocks import first_block, inputs, llama, opt, weights

FOUR = IntegerGrid(4, 16, symmetric=False, scale="float32")
MODELS = [pytest.param(llama, id="llama"), pytest.param(opt, id="opt")]


def outliers() -> tuple[Tensor, Tensor]:
    """256 inputs of 32 channels, two of them 40 times larger, and weights [16, 32]."""
    random = np.random.default_rng(5)
    x_TI, w_OI = (torch.from_numpy(random.normal(size=size)) for size in ((256, 32), (16, 32)))
    x_TI[:, [3, 17]] *= 40
    return x_TI, w_OI


def loss(w_OI: Tensor, x_TI: Tensor, by_I: Tensor, grid: IntegerGrid = FOUR) -> float:
    served = (x_TI / by_I) @ encode(w_OI * by_I, grid).dense().double().T
    return float((served - x_TI @ w_OI.T).square().sum())


def test_the_search_finds_what_methods_md_says() -> None:
    x_TI, w_OI = outliers()
    found = search(w_OI, x_TI, x_TI.abs().mean(0), FOUR, torch.arange(32), duo="no")
    assert found.exponent == pytest.approx(0.60)
    assert found.ratio == pytest.approx(0.177, abs=1e-3)
    by_I = found.factor_S
    assert loss(w_OI, x_TI, by_I) / loss(w_OI, x_TI, torch.ones(32)) == pytest.approx(found.ratio, rel=1e-4)


@pytest.mark.parametrize("duo", ["no", "yes", "both"])
def test_the_search_is_a_loop_over_exponents(duo: Any) -> None:
    x_TI, w_OI = outliers()
    mean_I, size_I = x_TI.abs().mean(0), relative_size(w_OI, FOUR)
    tried = {torch.ones(32, dtype=torch.float64)}
    for step in range(20):
        raised_I = mean_I ** (step / 20)
        if duo != "yes":
            tried.add(raised_I)
        if duo != "no":
            tried.add(raised_I / size_I ** (1 - step / 20))
    centred = [by_I / (by_I.max() * by_I.min()).sqrt() for by_I in tried]
    best = min(loss(w_OI, x_TI, by_I) for by_I in centred)
    found = search(w_OI, x_TI, mean_I, FOUR, torch.arange(32), duo=duo)
    assert loss(w_OI, x_TI, found.factor_S) == pytest.approx(best, rel=1e-4)


def test_relative_size_is_against_the_largest_of_the_group() -> None:
    w_OI = torch.tensor([[1.0, -2.0, 8.0, 4.0], [3.0, 3.0, 0.0, 1.0]])
    assert relative_size(w_OI, IntegerGrid(4, 2)).tolist() == [0.75, 1.0, 0.5, 0.75]


@pytest.mark.parametrize("seed", range(6))
def test_the_search_is_never_worse_than_rounding_to_nearest(seed: int) -> None:
    w_OI, x_TI = weights(seed), inputs(seed + 100)
    found = search(w_OI, x_TI, x_TI.abs().mean(0), IntegerGrid(3, 16), torch.arange(64))
    assert found.ratio <= 1


def test_with_one_exponent_of_zero_awq_is_rounding_to_nearest(tmp_path: Path) -> None:
    plain, scaled = (first_block(_same(llama), tmp_path / name) for name in ("plain", "scaled"))
    nearest = RoundToNearest(RoundToNearest.Params(group_size=16))
    AWQ(AWQ.Params(steps=1, duo_scaling="no", group_size=16)).apply(scaled)
    for block in (plain, scaled):
        nearest.apply(block)
    for name in plain.linears():
        assert torch.equal(plain.encoded[name].dense(), scaled.encoded[name].dense())


def _same(model: Any) -> Any:
    torch.manual_seed(0)
    return model()


@pytest.mark.parametrize("model", MODELS)
def test_before_rounding_the_block_computes_what_it_did(model: Any, tmp_path: Path) -> None:
    block = first_block(_same(model), tmp_path)
    before = block.forward(block.batches[0])
    AWQ(AWQ.Params(bits=3, group_size=16)).apply(block)
    assert float((block.forward(block.batches[0]) - before).abs().max()) <= 1e-5 * float(before.abs().max())
    moved = [name for name in block.linears() if block.facts[name]["awq_error_ratio"] < 1]
    assert len(moved) >= len(block.linears()) // 2


@pytest.mark.parametrize("model", MODELS)
def test_awq_then_rounding_loses_less_than_rounding_and_awq_then_gptq_less_still(model: Any, tmp_path: Path) -> None:
    scheme = {"scheme": "W4A16_ASYM", "bits": 3, "group_size": 16}
    nearest, solved = RoundToNearest(RoundToNearest.Params(**scheme)), GPTQ(GPTQ.Params(**scheme))
    awq = AWQ(AWQ.Params(**scheme))

    def lost(name: str, *methods: Any) -> float:
        block = first_block(_same(model), tmp_path / name)
        before = block.forward(block.batches[0])
        for method in methods:
            method.apply(block)
        return float((block.forward(block.batches[0]) - before).square().sum())

    rounded, scaled = lost("rounded", nearest), lost("awq", awq, nearest)
    assert scaled < 0.95 * rounded
    assert lost("awq and gptq", awq, solved) < 0.8 * scaled


def test_clipping_is_a_loop_over_shares_of_each_group() -> None:
    w_OI, x_TI = weights(1, outputs=4), inputs()
    w_OI[:, ::20] *= 4
    grid = IntegerGrid(3, 16, scale="float32")
    expected = w_OI.clone()
    for row in range(4):
        for start in range(0, 64, 16):
            group = w_OI[row, start : start + 16]
            cuts = [group.clamp(-share * group.abs().max(), share * group.abs().max()) for share in _shares()]
            errors = []
            for cut in cuts:
                rounded = encode(cut[None], grid).dense()[0].double()
                errors.append(float((x_TI[:, start : start + 16] @ (rounded - group)).square().sum()))
            expected[row, start : start + 16] = cuts[int(np.argmin(errors))]
    clipped = clip(w_OI, x_TI, grid)
    assert torch.equal(clipped, expected)
    assert not torch.equal(clipped, w_OI)


def _shares() -> list[float]:
    return [1 - step / 20 for step in range(10)]


def test_clipping_leaves_queries_and_keys_alone(tmp_path: Path) -> None:
    plain, clipped = (first_block(_same(llama), tmp_path / name) for name in ("plain", "clipped"))
    AWQ(AWQ.Params(bits=2, group_size=16)).apply(plain)
    AWQ(AWQ.Params(bits=2, group_size=16, clip=True)).apply(clipped)
    changed = {name for name in plain.linears() if not torch.equal(plain.weight(name), clipped.weight(name))}
    assert "mlp.gate_proj" in changed
    assert not changed & {"self_attn.q_proj", "self_attn.k_proj"}


def test_a_sample_has_evenly_spaced_tokens_and_the_mean_of_all() -> None:
    x_TI = torch.arange(5000.0)[:, None]
    sample = Sample(5000)
    for part in x_TI.split([13, 987, 0, 4000]):
        sample.add(part)
    kept = sample.tokens_TI.flatten().tolist()
    assert kept == list(range(0, 5000, 5))
    assert float(sample.mean_I) == pytest.approx(2499.5)


def test_an_input_that_is_never_seen_is_left_alone() -> None:
    x_TI, w_OI = outliers()
    x_TI[:, 9] = 0
    found = search(w_OI, x_TI, x_TI.abs().mean(0), FOUR, torch.arange(32))
    assert float(found.factor_S[9]) == 1
    assert bool(found.factor_S.isfinite().all())
