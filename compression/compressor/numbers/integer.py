"""Weights as integers: what scale and zero point a group of weights gets, and which codes.

Apart from the methods because all of them end here. Scales are rounded to what the format stores (`grid.scale`) before
any code is chosen, so that codes fit the scales an engine will read. Everything keeps the dtype of the weight given.
"""

import torch
from torch import Tensor

from compressor.errors import BadRecipeError
from compressor.numbers.encoded import IntegerWeight
from compressor.numbers.grids import IntegerGrid, ScaleKind

_STORED = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# The search of the GPTQ authors' code (arXiv 2210.17323): the range shrunk to 1.00, 0.99 … 0.21 of itself.
_SHRINKS = tuple(1 - step / 100 for step in range(80))
_SHRINK_NORM = 2.4


def fit(w_OI: Tensor, grid: IntegerGrid, *, shrink: bool = False) -> tuple[Tensor, Tensor | None]:
    """Scale [O, G] and, when the grid is asymmetric, zero point [O, G] (int32) of successive groups of inputs.

    Asymmetric: the range from min to max, widened to hold zero, in 2^b − 1 steps; zero is a code then.
    Symmetric: the smallest scale with which no weight is off by more than half a step: the largest may lie half a step
    beyond the last code, of which there is one more below zero than above. (Against a scale that puts max|w| at the
    last code above zero that takes a third off the squared error at 3 bits, a fifth at 4.)
    `shrink`: try narrower ranges too and keep the one with the least Σ|error|^2.4 of each group.
    Raises BadRecipeError when the group size does not divide the inputs.
    """
    w_OGK = grouped(w_OI, grid)
    low_OG, high_OG = torch.aminmax(w_OGK, dim=-1)
    best = _span(low_OG, high_OG, grid)
    if not shrink:
        return best
    least_OG = _misfit(w_OGK, *best, grid)
    for factor in _SHRINKS[1:]:
        scale_OG, zero_OG = _span(low_OG * factor, high_OG * factor, grid)
        misfit_OG = _misfit(w_OGK, scale_OG, zero_OG, grid)
        better_OG = misfit_OG < least_OG
        least_OG = torch.where(better_OG, misfit_OG, least_OG)
        zero = None if zero_OG is None or best[1] is None else torch.where(better_OG, zero_OG, best[1])
        best = torch.where(better_OG, scale_OG, best[0]), zero
    return best


def encode(
    w_OI: Tensor,
    grid: IntegerGrid,
    scale_OG: Tensor | None = None,
    zero_OG: Tensor | None = None,
    group_I: Tensor | None = None,
) -> IntegerWeight:
    """The nearest codes of `w_OI`, on the scales given (then with the zero points of an asymmetric grid), or on fitted
    ones. `group_I`: the group of each input, where groups are not successive; scales must be given then."""
    if scale_OG is None:
        assert group_I is None, "groups that are not successive come with their scales"
        scale_OG, zero_OG = fit(w_OI, grid)
    if group_I is not None:
        zero_OI = None if zero_OG is None else zero_OG[:, group_I]
        codes_OI = round_to_grid(w_OI, scale_OG[:, group_I], zero_OI, grid)
    else:
        zero_OG1 = None if zero_OG is None else zero_OG[:, :, None]
        codes_OI = round_to_grid(grouped(w_OI, grid), scale_OG[:, :, None], zero_OG1, grid).reshape(w_OI.shape)
    return IntegerWeight(grid, codes_OI, scale_OG.float(), zero_OG, group_I)


def round_to_grid(values: Tensor, scale: Tensor, zero: Tensor | None, grid: IntegerGrid) -> Tensor:
    """Nearest codes (int32, ties to even, clamped to the grid's range); shapes broadcast."""
    codes = (values / scale).round_()
    if zero is not None:
        codes = codes.add_(zero)
    return codes.clamp_(*grid.range).int()


def grouped(w_OI: Tensor, grid: IntegerGrid) -> Tensor:
    """The weight as [O, G, K]: K inputs share a scale."""
    outs, ins = w_OI.shape
    size = grid.group_size or ins
    if ins % size:
        raise BadRecipeError(
            f"group_size {size} does not divide {ins} inputs of a linear: choose one that does, or -1 (one scale a row)"
        )
    return w_OI.reshape(outs, ins // size, size)


def stored(scale: Tensor, kind: ScaleKind) -> Tensor:
    """A plain scale as it will be read back: rounded to `kind`, never zero."""
    dtype = _STORED[kind]
    return scale.to(dtype).to(scale.dtype).clamp_(min=torch.finfo(dtype).tiny)


def _span(low_OG: Tensor, high_OG: Tensor, grid: IntegerGrid) -> tuple[Tensor, Tensor | None]:
    """The grid that reaches from `low` to `high`; a group of zeros gets the range −1 … 1."""
    low_OG, high_OG = low_OG.clamp(max=0), high_OG.clamp(min=0)
    is_flat = low_OG == high_OG
    low_OG, high_OG = torch.where(is_flat, -1.0, low_OG), torch.where(is_flat, 1.0, high_OG)
    first, last = grid.range
    if grid.symmetric:
        return stored(torch.maximum(low_OG / (first - 0.5), high_OG / (last + 0.5)), grid.scale), None
    scale_OG = stored((high_OG - low_OG) / last, grid.scale)
    return scale_OG, (-low_OG / scale_OG).round_().clamp_(*grid.range).int()


def _misfit(w_OGK: Tensor, scale_OG: Tensor, zero_OG: Tensor | None, grid: IntegerGrid) -> Tensor:
    scale_OG1 = scale_OG[:, :, None]
    zero_OG1 = None if zero_OG is None else zero_OG[:, :, None]
    codes_OGK = round_to_grid(w_OGK, scale_OG1, zero_OG1, grid)
    dense_OGK = scale_OG1 * (codes_OGK if zero_OG1 is None else codes_OGK - zero_OG1)
    return (w_OGK - dense_OGK).abs_().pow_(_SHRINK_NORM).sum(-1)
