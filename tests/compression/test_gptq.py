"""GPTQ against a plain loop over columns, and the identities that hold exactly whatever the data."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from compressor.methods.columns import Path as WalkPath
from compressor.methods.columns import walk
from compressor.methods.gptq import GPTQ, quantize
from compressor.methods.rtn import RoundToNearest
from compressor.methods.wanda import Wanda
from compressor.numbers.grids import IntegerGrid
from compressor.numbers.hessian import inverse_factor
from compressor.numbers.integer import encode, fit, round_to_grid
from small_blocks import first_block, inputs, llama, moments, opt, relative_error, weights

THREE = IntegerGrid(3, 16, symmetric=False, scale="float32")
ORDERS = ["none", "static", "group"]


def params(**changes: Any) -> GPTQ.Params:
    return GPTQ.Params.model_validate({"act_order": "none"} | changes)


def column_by_column(w_OI: Tensor, h_II: Tensor, grid: IntegerGrid, order: str, damp: float = 0.01) -> Tensor:
    """Algorithm 1 without blocks: the inverse of the whole H is factored, every update is made at once."""
    size = grid.group_size or w_OI.shape[1]
    perm = list(range(w_OI.shape[1]))
    if order != "none":
        perm = torch.argsort(h_II.diagonal(), descending=True, stable=True).tolist()
    fitted = fit(w_OI, grid)
    w, h = w_OI[:, perm].clone(), h_II[perm][:, perm].numpy()
    inverse = np.linalg.inv(h + damp * np.mean(np.diag(h)) * np.eye(len(h)))
    u = torch.from_numpy(np.linalg.cholesky(inverse).T.copy())
    dense = torch.empty_like(w)
    for i in range(w.shape[1]):
        if order == "static":
            scale, zero = (part[:, perm[i] // size] if part is not None else None for part in fitted)
        elif i % size == 0:
            scale, zero = (part[:, 0] if part is not None else None for part in fit(w[:, i : i + size], grid))
        codes = round_to_grid(w[:, i], scale, zero, grid)
        dense[:, i] = scale * (codes - (0 if zero is None else zero))
        w[:, i + 1 :] -= torch.outer((w[:, i] - dense[:, i]) / u[i, i], u[i, i + 1 :])
    back = torch.empty_like(dense)
    back[:, perm] = dense
    return back


@pytest.mark.parametrize("is_symmetric", [True, False])
@pytest.mark.parametrize("size", [8, 16, 32, None])
@pytest.mark.parametrize("order", ORDERS)
def test_gptq_is_the_plain_loop_over_columns(order: str, size: int | None, is_symmetric: bool) -> None:
    grid = IntegerGrid(3, size, is_symmetric, "float32")
    w_OI, h_II = weights(), moments(inputs())
    solved = quantize(w_OI, h_II, grid, params(act_order=order))
    expected = column_by_column(w_OI, h_II, grid, order)
    torch.testing.assert_close(solved.weight.dense().double(), expected, rtol=1e-5, atol=1e-7)


def test_gptq_loses_what_methods_md_says() -> None:
    w_OI, h_II = weights(), moments(inputs())
    solved = quantize(w_OI, h_II, THREE, params())
    error = relative_error(w_OI, solved.weight.dense().double(), h_II)
    assert error == pytest.approx(0.005743, abs=2e-6)
    assert error / relative_error(w_OI, encode(w_OI, THREE).dense().double(), h_II) == pytest.approx(0.244, abs=1e-3)


@pytest.mark.parametrize("order", ["none", "static"])
@pytest.mark.parametrize("is_symmetric", [True, False])
def test_gptq_with_an_identity_hessian_is_rounding_to_nearest(order: str, is_symmetric: bool) -> None:
    grid = IntegerGrid(4, 16, is_symmetric)
    w_OI = weights().float()
    solved = quantize(w_OI, torch.eye(64), grid, params(act_order=order)).weight
    nearest = encode(w_OI, grid)
    assert torch.equal(solved.codes_OI, nearest.codes_OI)
    assert torch.equal(solved.scale_OG, nearest.scale_OG)
    assert torch.equal(solved.dense(), nearest.dense())


@pytest.mark.parametrize("order", ORDERS)
def test_the_block_size_changes_nothing(order: str) -> None:
    w_OI, h_II = weights(), moments(inputs())
    whole = quantize(w_OI, h_II, THREE, params(act_order=order, block_size=64))
    for size in (1, 5, 16, 24, 48):
        part = quantize(w_OI, h_II, THREE, params(act_order=order, block_size=size))
        assert torch.equal(part.weight.codes_OI, whole.weight.codes_OI)
        assert part.lost == pytest.approx(whole.lost, rel=1e-9)


def test_what_follows_the_first_input_is_the_least_squares_optimum() -> None:
    h_II = moments(inputs())
    u_II, _, _ = inverse_factor(h_II, 1e-12)
    w_OI = weights(outputs=5)
    w_IO = w_OI.T.clone()
    moved = torch.tensor([0.3, -0.2, 0.1, 0.7, -1.0], dtype=torch.float64)

    def choose(i: int) -> None:
        if i == 0:
            w_IO[0] -= moved

    walk(w_IO, u_II, choose)
    change_OI = w_IO.T - w_OI
    slope_OI = change_OI @ h_II
    assert float(slope_OI[:, 1:].abs().max()) < 1e-6 * float(h_II.abs().max())


def test_the_sum_of_squared_steps_is_the_error_of_the_outputs() -> None:
    w_OI, h_II = weights(), moments(inputs())
    solved = quantize(w_OI, h_II, THREE, params())
    damped = h_II + 0.01 * h_II.diagonal().mean() * torch.eye(64, dtype=torch.float64)
    lost_OI = w_OI - solved.weight.dense()
    assert solved.lost == pytest.approx(float((lost_OI @ damped * lost_OI).sum()), rel=1e-5)


def test_taking_large_inputs_first_loses_less() -> None:
    w_OI = weights()
    x_TI = inputs()
    x_TI[:, 40:48] *= 8
    h_II = moments(x_TI)
    none, static, group = (
        relative_error(w_OI, quantize(w_OI, h_II, THREE, params(act_order=order)).weight.dense().double(), h_II)
        for order in ORDERS
    )
    assert static < 0.9 * none
    assert group < static


def test_scattered_groups_carry_their_index_and_static_ones_stay_successive() -> None:
    w_OI, h_II = weights(), moments(inputs())
    static = quantize(w_OI, h_II, THREE, params(act_order="static")).weight
    group = quantize(w_OI, h_II, THREE, params(act_order="group")).weight
    assert static.group_I is None
    assert group.group_I is not None
    assert torch.bincount(group.group_I).tolist() == [16] * 4
    by_moment = torch.argsort(h_II.diagonal(), descending=True)
    assert group.group_I[by_moment].tolist() == [index // 16 for index in range(64)]


def test_dead_inputs_get_weights_of_zero() -> None:
    x_TI = inputs()
    x_TI[:, [3, 50]] = 0
    for is_symmetric in (True, False):
        grid = IntegerGrid(4, 16, is_symmetric)
        dense = quantize(weights(), moments(x_TI), grid, params(act_order="static")).weight.dense()
        assert not dense[:, [3, 50]].any()
        assert dense[:, 4].any()


def test_a_range_search_lowers_the_error_where_weights_have_outliers() -> None:
    w_OI, h_II = weights(), moments(inputs())
    w_OI[::2, ::9] *= 6
    plain, searched = (
        relative_error(w_OI, quantize(w_OI, h_II, THREE, params(shrink=shrink)).weight.dense().double(), h_II)
        for shrink in (False, True)
    )
    assert searched < 0.95 * plain


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("is_symmetric", [True, False])
def test_zeros_of_a_pruned_weight_stay_zero_and_the_rest_makes_up(order: str, is_symmetric: bool) -> None:
    w_OI, h_II = weights(), moments(inputs())
    w_OI[:, ::2] = 0
    grid = IntegerGrid(4, 16, is_symmetric)
    kept = quantize(w_OI, h_II, grid, params(act_order=order)).weight.dense()
    assert not kept[:, ::2].any()
    assert relative_error(w_OI, kept.double(), h_II) < relative_error(w_OI, encode(w_OI, grid).dense().double(), h_II)
    filled = quantize(w_OI, h_II, grid, params(act_order=order, keep_zeros=False)).weight.dense()
    assert filled[:, ::2].any()


def test_stacked_linears_come_out_as_each_alone() -> None:
    h_II = moments(inputs())
    first, second = weights(1), weights(8, outputs=40)
    stacked = quantize(torch.cat([first, second]), h_II, THREE, params()).split([24, 40])
    for weight, part in zip((first, second), stacked, strict=True):
        alone = quantize(weight, h_II, THREE, params()).weight
        assert torch.equal(part.codes_OI, alone.codes_OI)
        assert torch.equal(part.scale_OG, alone.scale_OG)


def test_a_path_by_moment_is_undone() -> None:
    h_II = moments(inputs())
    path = WalkPath.through(h_II, 0.01, by_moment=True)
    assert path.order_I is not None
    w_IO = path.start(weights())
    assert torch.equal(w_IO[torch.argsort(path.order_I)].T, weights())


@pytest.mark.parametrize("model", [llama, opt])
def test_a_block_loses_less_by_gptq_than_by_rounding(model: Any, tmp_path: Path) -> None:
    block = first_block(model(), tmp_path)
    before = block.forward(block.batches[0])
    originals = {name: block.weight(name).clone() for name in block.linears()}
    lost = {}
    for method in (
        RoundToNearest(RoundToNearest.Params(bits=3, group_size=16)),
        GPTQ(GPTQ.Params(bits=3, group_size=16)),
        GPTQ(GPTQ.Params(bits=3, group_size=16, true_sequential=True)),
    ):
        for name, weight in originals.items():
            block.replace(name, weight)
        method.apply(block)
        lost[method] = float((block.forward(block.batches[0]) - before).square().sum())
        assert set(block.encoded) == set(block.family.linears)
    nearest, solved, sequential = lost.values()
    assert solved < 0.7 * nearest
    assert sequential < 0.7 * nearest
    assert all(0 < block.facts[name]["error"] < 1 for name in block.linears())


def test_pruning_and_then_gptq_keeps_the_sparsity(tmp_path: Path) -> None:
    block = first_block(llama(), tmp_path)
    Wanda(Wanda.Params(sparsity=0.5)).apply(block)
    GPTQ(GPTQ.Params(group_size=16)).apply(block)
    for name in block.linears():
        assert int((block.weight(name) == 0).sum()) >= block.weight(name).numel() // 2
