"""SpQR against a loop that leaves out one weight after the other, and what its layout can and cannot say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from compressor.errors import BadRecipeError
from compressor.methods.columns import Path as WalkPath
from compressor.methods.spqr import SpQR, gain_without, quantize
from compressor.methods.spqr_weight import Layout, SpQRWeight, fit_affine
from small_blocks import first_block, inputs, llama, moments, relative_error, weights

PLAIN = Layout(3, 16, None, 16, round_zero=True)
TWO_LEVELS = Layout(3, 16, 3, 16)


def planted() -> Tensor:
    """24 × 64 weights of which twelve are twelve times as large."""
    w_OI = weights()
    w_OI[np.random.default_rng(3).integers(0, 24, 12), np.random.default_rng(4).integers(0, 64, 12)] *= 12
    return w_OI


def params(**changes: Any) -> SpQR.Params:
    return SpQR.Params.model_validate({"damp": 0.01} | changes)


def solve(w_OI: Tensor, **changes: Any) -> SpQRWeight:
    chosen = params(**changes)
    path = WalkPath.through(moments(inputs()), chosen.damp, by_moment=chosen.act_order)
    return quantize(w_OI, path, chosen)[0]


def error(w_OI: Tensor, weight: SpQRWeight) -> float:
    return relative_error(w_OI, weight.dense().double(), moments(inputs()))


def one_left_out_at_a_time(w_OK: Tensor, u_K: Tensor, layout: Layout) -> Tensor:
    """Every gain by fitting a grid without that weight."""

    def lost(w: Tensor, u: Tensor) -> Tensor:
        scale, zero = (part[:, None] for part in fit_affine(w, layout))
        rounded = scale * (((w / scale) + zero).round().clamp(0, layout.last) - zero)
        return (((w - rounded) / u) ** 2).sum(1)

    size = w_OK.shape[1]
    gains = []
    for out in range(size):
        rest = [place for place in range(size) if place != out]
        gains.append(lost(w_OK, u_K) - lost(w_OK[:, rest], u_K[rest]))
    return torch.stack(gains, 1)


def column_by_column(w_OI: Tensor, chosen: SpQR.Params) -> Tensor:
    """The algorithm with plain 16-bit statistics, without blocks, as it stands in the paper."""
    h = moments(inputs()).numpy()
    inverse = np.linalg.inv(h + chosen.damp * np.mean(np.diag(h)) * np.eye(64))
    u = torch.from_numpy(np.linalg.cholesky(inverse).T.copy())
    w, dense = w_OI.clone(), torch.empty_like(w_OI)
    threshold = chosen.threshold * float((w.var(0, correction=1) / u.diagonal() ** 2).mean())
    for i in range(64):
        if i % 16 == 0:
            group = w[:, i : i + 16]
            kept = one_left_out_at_a_time(group, u.diagonal()[i : i + 16], PLAIN) <= threshold
            mean = (group * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp(min=1)
            cleaned = torch.where(kept, group, mean)
            low, high = cleaned.amin(1).clamp(max=0), cleaned.amax(1).clamp(min=0)
            scale = ((high - low) / 7).half().double()
            zero = (-low / scale).round()
        column = w[:, i].clone()
        rounded = scale * ((column / scale + zero).round().clamp(0, 7) - zero)
        is_outlier = ((column - rounded) / u[i, i]) ** 2 > threshold
        dense[:, i] = torch.where(is_outlier, column.half().double(), rounded)
        w[:, i + 1 :] -= torch.outer((column - dense[:, i]) / u[i, i], u[i, i + 1 :])
    return dense


@pytest.mark.parametrize("threshold", [0.02, 0.2, 1.0])
def test_spqr_is_the_plain_loop_over_columns(threshold: float) -> None:
    plain = {"statistic_bits": None, "act_order": False, "round_zero": True, "threshold": threshold}
    w_OI = planted()
    found = solve(w_OI, **plain).dense().double()
    torch.testing.assert_close(found, column_by_column(w_OI, params(**plain)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", [PLAIN, TWO_LEVELS, Layout(4, 16, 3, 16), Layout(2, 16, 3, 16)], ids=str)
def test_only_the_smallest_and_the_largest_weight_need_a_grid_of_their_own(layout: Layout) -> None:
    w_OK, u_K = planted()[:, :16].contiguous(), torch.linspace(0.5, 2, 16, dtype=torch.float64)
    w_OK[3] = w_OK[3].abs() + 1
    w_OK[4, :2] = w_OK[4].max()
    w_OK[5] = 0
    expected = one_left_out_at_a_time(w_OK, u_K, layout)
    torch.testing.assert_close(gain_without(w_OK, u_K, layout), expected, rtol=1e-9, atol=1e-9)


def test_spqr_loses_what_methods_md_says() -> None:
    """The oracle's statistics are exact, ours float16: a weight more or less is an outlier."""
    plain = {"statistic_bits": None, "act_order": False, "round_zero": True}
    w_OI = planted()
    found, none = solve(w_OI, **plain), solve(w_OI, **plain, threshold=1e9)
    assert found.outlier_share == pytest.approx(0.0111, abs=0.001)
    assert error(w_OI, found) == pytest.approx(0.00205, rel=0.03)
    assert error(w_OI, none) == pytest.approx(0.007534, rel=0.01)
    assert none.outlier_share == 0


def test_outliers_pay_for_themselves_with_two_levels_too() -> None:
    w_OI = planted()
    with_outliers, without = solve(w_OI), solve(w_OI, threshold=1e9)
    assert error(w_OI, with_outliers) < 0.5 * error(w_OI, without)
    assert without.outlier_share == 0


def test_every_planted_outlier_is_found() -> None:
    w_OI = weights()
    rows, columns = np.arange(0, 24, 2), np.arange(3, 63, 5)
    w_OI[rows, columns] = 12 * torch.sign(w_OI[rows, columns])
    found = solve(w_OI)
    assert found.order_I is not None
    flagged = torch.zeros(24, 64, dtype=torch.bool)
    row_N = torch.repeat_interleave(torch.arange(24), found.row_O.diff())
    flagged[row_N, found.order_I[found.column_N]] = True
    assert bool(flagged[rows, columns].all())


def test_with_a_threshold_of_nothing_every_weight_is_kept() -> None:
    w_OI = planted()
    found = solve(w_OI, threshold=1e-12)
    torch.testing.assert_close(found.dense().double(), w_OI, rtol=2e-3, atol=5e-3)
    assert error(w_OI, found) < 1e-6
    assert found.outlier_share > 0.95


@pytest.mark.parametrize(
    "changes", [{}, {"statistic_bits": None}, {"act_order": False}, {"bits": 4}, {"round_zero": True}], ids=str
)
@pytest.mark.parametrize("outputs", [24, 16, 5])
def test_what_is_stored_is_what_was_walked_with(changes: dict[str, Any], outputs: int) -> None:
    w_OI, h_II = planted()[:outputs], moments(inputs())
    chosen = params(**changes)
    path = WalkPath.through(h_II, chosen.damp, by_moment=chosen.act_order)
    weight, lost = quantize(w_OI, path, chosen)
    damped = h_II + chosen.damp * h_II.diagonal().mean() * torch.eye(64, dtype=torch.float64)
    gone_OI = w_OI - weight.dense().double()
    assert lost == pytest.approx(float((gone_OI @ damped * gone_OI).sum()), rel=1e-4)


def test_true_bits_follow_the_formula() -> None:
    w_OI = weights(outputs=64)
    plain = solve(w_OI, threshold=1e9, bits=4, act_order=False)
    assert plain.size_bits() / w_OI.numel() == 4.625
    found = solve(w_OI, threshold=0.2, bits=3)
    share = found.outlier_share
    formula = 3 + (3 + 3) / 16 + 2 * (16 + 16) / (16 * 16) + 32 * share
    # Beyond the formula: how many outliers each row has, and the order of the inputs.
    beyond = 16 * 64 + 16 * 64
    assert share > 0
    assert found.size_bits() == pytest.approx(formula * w_OI.numel() + beyond)


def test_statistics_without_a_second_level_take_sixteen_bits() -> None:
    w_OI = weights(outputs=64)
    plain = solve(w_OI, threshold=1e9, statistic_bits=None, act_order=False)
    assert plain.size_bits() / w_OI.numel() == 3 + 32 / 16


def test_scales_stay_positive_and_within_the_second_level() -> None:
    w_OK = torch.randn(40, 16, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 0, 40)[:, None]
    w_OK[7] = 0
    scale_O, zero_O = TWO_LEVELS.fit(w_OK).read()
    assert scale_O.shape == zero_O.shape == (40,)
    assert bool((scale_O > 0).all())
    assert bool(zero_O.isfinite().all())
    for start in range(0, 40, 16):
        assert len(scale_O[start : start + 16].unique()) <= 8


def test_the_fullest_row_is_reported() -> None:
    w_OI = weights()
    w_OI[5, ::4] *= 15
    found = solve(w_OI)
    assert found.most_outliers_in_a_row == int(found.row_O.diff()[5])
    assert found.most_outliers_in_a_row >= 10


def test_groups_that_do_not_fit_are_refused() -> None:
    with pytest.raises(BadRecipeError, match="group_size 24 does not divide 64"):
        solve(weights(), group_size=24)


def test_a_block_stays_dense_and_says_what_the_layout_would_take(tmp_path: Path) -> None:
    block = first_block(llama(), tmp_path)
    before = block.forward(block.batches[0])
    method = SpQR(SpQR.Params())
    method.scales = "float32"
    method.apply(block)
    assert not block.encoded
    assert method.scheme.name == "SpQR"
    for name in block.linears():
        facts = block.facts[name]
        assert 3.6 < facts["size_bits"] / block.weight(name).numel() < 8
        assert 0 <= facts["outlier_share"] < 0.1
        assert facts["most_outliers_in_a_row"] >= 0
        assert 0 < facts["error"] < 0.2
    assert float((block.forward(block.batches[0]) - before).square().sum()) < 0.05 * float(before.square().sum())


def test_a_layout_that_engines_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRecipeError, match=r"export: \{format: dense\}"):
        SpQR(SpQR.Params()).apply(first_block(llama(), tmp_path))
