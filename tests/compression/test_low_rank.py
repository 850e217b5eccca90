"""Low rank: what a truncated SVD must lose, exactly, and where a budget of weights goes."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from compressor.block import Block
from compressor.checkpoint.source import Source
from compressor.errors import BadCalibrationError
from compressor.families import family_of
from compressor.methods.low_rank import LowRank, Spectrum, allocate, decompose, whitening
from compressor.passes import Rows
from compressor.skeleton import Skeleton
from starter import STARTER


def oracle_case() -> tuple[Tensor, Tensor]:
    """W [24, 32] and correlated inputs X [400, 32] of the oracle (numpy's generator, seeds 15 and 16)."""
    w = np.random.default_rng(15).normal(size=(24, 32))
    r = np.random.default_rng(16)
    basis = r.normal(size=(32, 32)) * (np.arange(1, 33) ** -0.7)[:, None]
    return torch.from_numpy(w), torch.from_numpy(r.normal(size=(400, 32)) @ basis)


def case(seed: int, outs: int = 20, ins: int = 28, tokens: int = 200) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(ins, ins, dtype=torch.float64, generator=generator) / torch.arange(1, ins + 1)[:, None]
    x_TI = torch.randn(tokens, ins, dtype=torch.float64, generator=generator) @ mixing
    return torch.randn(outs, ins, dtype=torch.float64, generator=generator), x_TI


def product(factors: tuple[Tensor, Tensor]) -> Tensor:
    return factors[1] @ factors[0]


# ---------------------------------------------------------------- the mathematics
@pytest.mark.parametrize(("rank", "plain", "aware"), [(4, 0.8056, 0.4225), (8, 0.5548, 0.2497), (12, 0.3055, 0.1409)])
def test_output_errors_are_the_oracles(rank: int, plain: float, aware: float) -> None:
    w_OI, x_TI = oracle_case()
    whole = (w_OI @ x_TI.T).norm()
    for cut, golden in ((decompose(w_OI), plain), (decompose(w_OI, whitening(x_TI.T @ x_TI, 0.0)), aware)):
        error = ((w_OI - product(cut.factors(rank))) @ x_TI.T).norm() / whole
        assert float(error) == pytest.approx(golden, abs=6e-5)


@pytest.mark.parametrize("seed", range(3))
def test_a_plain_cut_loses_the_tail_of_the_singular_values(seed: int) -> None:
    w_OI, _ = case(seed)
    sigma = np.linalg.svd(w_OI.numpy(), compute_uv=False)
    cut = decompose(w_OI)
    for rank in (0, 1, 7, 19, 20):
        tail = float(np.sqrt((sigma[rank:] ** 2).sum()))
        assert float((w_OI - product(cut.factors(rank))).norm()) == pytest.approx(tail, abs=1e-12)
        assert cut.lost(rank) == pytest.approx(tail, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_a_whitened_cut_loses_exactly_its_tail_of_the_outputs(seed: int) -> None:
    w_OI, x_TI = case(seed)
    cut = decompose(w_OI, whitening(x_TI.T @ x_TI, 0.0))
    for rank in (1, 5, 12):
        lost = float(((w_OI - product(cut.factors(rank))) @ x_TI.T).norm())
        assert lost == pytest.approx(cut.lost(rank), rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_no_product_of_the_same_rank_loses_less_of_the_outputs_than_the_whitened_one(seed: int) -> None:
    w_OI, x_TI = case(seed)
    aware = decompose(w_OI, whitening(x_TI.T @ x_TI, 0.0))
    generator = torch.Generator().manual_seed(seed)
    for rank in (2, 6, 12):
        a_RI, b_OR = aware.factors(rank)
        best = float(((w_OI - b_OR @ a_RI) @ x_TI.T).norm())
        plain = float(((w_OI - product(decompose(w_OI).factors(rank))) @ x_TI.T).norm())
        assert best < 0.9 * plain
        for _ in range(20):
            near_RI = a_RI + 0.01 * torch.randn(a_RI.shape, dtype=a_RI.dtype, generator=generator)
            near_OR = b_OR + 0.01 * torch.randn(b_OR.shape, dtype=b_OR.dtype, generator=generator)
            assert float(((w_OI - near_OR @ near_RI) @ x_TI.T).norm()) > best


def test_all_singular_values_give_the_weight_back_and_more_of_them_never_lose_more() -> None:
    w_OI, x_TI = case(4)
    for cut in (decompose(w_OI), decompose(w_OI, whitening(x_TI.T @ x_TI, 1e-4))):
        torch.testing.assert_close(product(cut.factors(20)), w_OI)
        losses = [cut.lost(rank) for rank in range(21)]
        assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("seed", range(3))
def test_few_singular_values_of_a_large_matrix_lose_hardly_more_than_a_whole_svd(seed: int) -> None:
    """Rounding errors, whose singular values hardly fall, and the same before coloured inputs, where they do."""
    generator = torch.Generator().manual_seed(seed)
    w_OI = torch.randn(1024, 1088, generator=generator)
    error_OI = w_OI - (w_OI / 0.3).round() * 0.3
    colour_II = torch.diag(torch.arange(1, 1089) ** -0.7)
    for matrix_OI in (error_OI, error_OI @ colour_II):
        squares = torch.linalg.svdvals(matrix_OI).double().square()
        a_RI, b_OR = decompose(matrix_OI, leading=32).factors(32)
        lost = float((matrix_OI - b_OR @ a_RI).double().square().sum())
        assert lost <= 1.002 * float(squares[32:].sum())
        assert lost < 0.99 * float(squares.sum())


def test_factors_save_weights_below_the_break_even_rank() -> None:
    square = Spectrum(torch.ones(4096), 4096, 4096)
    assert square.break_even == 2048
    wide = Spectrum(torch.ones(256), 512, 256)
    assert int(wide.break_even) * (512 + 256) <= 512 * 256 < (int(wide.break_even) + 1) * (512 + 256)


def test_inputs_that_span_less_than_all_dimensions_are_damped_until_they_factor() -> None:
    _, x_TI = case(5, tokens=10)
    h_II = (x_TI.T @ x_TI).float()
    c_II = whitening(h_II, 0.0)
    assert c_II.isfinite().all()
    assert torch.equal(c_II, c_II.tril())
    assert float((c_II @ c_II.T - h_II).norm()) < 1e-3 * float(h_II.norm())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_inputs_without_usable_second_moments_are_said(value: float) -> None:
    with pytest.raises(BadCalibrationError, match="second moments"):
        whitening(torch.full((4, 4), value), 0.01)


# ---------------------------------------------------------------- where a budget goes
def spectra(*values: list[float]) -> dict[str, Spectrum]:
    return {str(n): Spectrum(torch.tensor(sigma), 12, 12) for n, sigma in enumerate(values)}


def test_equal_spectra_get_equal_ranks_and_the_budget_is_kept() -> None:
    falling = [float(2**-k) for k in range(12)]
    ranks = allocate(spectra(falling, falling, falling), 0.5)
    assert ranks == {"0": 3, "1": 3, "2": 3}  # half of 3·144 is 216; a direction costs 24: nine


def test_a_spectrum_that_falls_slowly_gets_more() -> None:
    ranks = allocate(spectra([float(4**-k) for k in range(12)], [float(1.1**-k) for k in range(12)]), 0.5)
    assert ranks["1"] > ranks["0"] >= 1
    assert 24 * sum(ranks.values()) <= 0.5 * 2 * 144


@pytest.mark.parametrize("seed", range(3))
def test_no_other_ranks_of_the_same_cost_lose_less(seed: int) -> None:
    """Every way to spend the budget, tried out."""
    sigma = torch.rand(3, 12, generator=torch.Generator().manual_seed(seed)).sort(1, descending=True).values
    found = spectra(*sigma.tolist())
    shares = sigma.square() / sigma.square().sum(1, keepdim=True)

    def lost(ranks: Any) -> float:
        return sum(float(share[rank:].sum()) for share, rank in zip(shares, ranks, strict=True))

    best = min(lost(ranks) for ranks in itertools.product(range(1, 7), repeat=3) if 24 * sum(ranks) <= 0.6 * 3 * 144)
    assert lost(allocate(found, 0.6).values()) == pytest.approx(best)


# ---------------------------------------------------------------- on the starter
def blocks() -> list[Block]:
    source = Source(STARTER)
    skeleton = Skeleton(source, family_of(source.config), torch.device("cpu"))
    ids = torch.randint(4, 2000, (4, 64), generator=torch.Generator().manual_seed(1))
    batches = skeleton.embed([Rows(ids, torch.ones_like(ids, dtype=torch.bool))])
    made = []
    for index in range(2):
        name, family = skeleton.family.block(index), skeleton.family
        module = skeleton.block(index)
        made.append(Block(index, 2, name, module, family, source.config, batches))
    return made


def lost(block: Block, method: LowRank) -> float:
    (batch,) = block.batches
    before = block.forward(batch)
    method.apply(block)
    return float((block.forward(batch) - before).norm() / before.norm())


def test_whitened_factors_keep_more_of_a_blocks_output_than_plain_ones() -> None:
    for plain, aware in zip(blocks(), blocks(), strict=True):
        errors = [
            lost(block, LowRank(LowRank.Params(ratio=0.5, whitened=whitened)))
            for block, whitened in ((plain, False), (aware, True))
        ]
        assert errors[1] < 0.8 * errors[0]


def test_a_ratio_counts_the_weights_of_the_factors() -> None:
    block, _ = blocks()
    LowRank(LowRank.Params(ratio=0.6)).apply(block)
    for name in block.linears():
        outs, ins = block.weight(name).shape
        fact = block.facts[name]
        assert fact["kept_weights"] == fact["rank"] * (outs + ins)
        assert 0.6 * outs * ins - (outs + ins) < fact["kept_weights"] <= 0.6 * outs * ins
        assert torch.linalg.matrix_rank(block.weight(name), rtol=1e-4) == fact["rank"]


def test_a_full_rank_leaves_the_block_as_it_was() -> None:
    block, _ = blocks()
    assert lost(block, LowRank(LowRank.Params(rank=10_000))) < 1e-5


@pytest.mark.parametrize("allocation", ["block", "model"])
def test_ranks_may_differ_within_the_same_budget(allocation: str) -> None:
    made = blocks()
    method = LowRank(LowRank.Params(ratio=0.5, allocation=allocation))
    if method.needs_survey:
        for block in made:
            method.survey(block)
    shares = []
    for block in made:
        method.apply(block)
        kept = sum(fact["kept_weights"] for fact in block.facts.values())
        shares.append(kept / sum(block.weight(name).numel() for name in block.linears()))
        assert len({fact["rank"] for fact in block.facts.values()}) > 3
    assert sum(shares) / 2 <= 0.5 + 1e-9
    assert (abs(shares[0] - shares[1]) > 1e-3) == (allocation == "model")


def test_parameters_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="wants a ratio"):
        LowRank.Params(rank=8, allocation="block")
    with pytest.raises(ValidationError):
        LowRank.Params(ratio=1.5)
