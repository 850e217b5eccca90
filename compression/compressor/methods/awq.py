"""AWQ: scales up the inputs that matter before rounding, so that they lose less; how far is searched.

AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration, arXiv 2306.00978, section 3.2:
s = mean|x|^α, α on a grid of 20, by the error of the linears' outputs, ‖Q(W·s)(x/s) − Wx‖². With `duo_scaling` s is
also divided by mean|w|^(1−α), weights relative to their group's largest, as AutoAWQ does. s = 1 is always tried, so
that it is never worse than rounding to nearest on the tokens it looks at. A transform: nothing is rounded here, a step
with the same scheme follows. Shapes: O output rows, I inputs, S outputs of the source, T tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from compressor.block import Block
from compressor.errors import BadCalibrationError
from compressor.families import Group
from compressor.methods.base import Params as BaseParams
from compressor.methods.moving import move, need_dense, obstacle, reduce_to_source, source_of_inputs
from compressor.methods.scheming import IntegerParams, integer_grid, resolve
from compressor.numbers.grids import IntegerGrid, ScaleKind
from compressor.numbers.integer import encode, grouped

# The search looks at so many tokens and output rows at most, evenly spaced over all of them.
_TOKENS = 1024
_ROWS = 1024
_CLIPS = tuple(1 - step / 20 for step in range(10))
# Rounding these two narrowly harms attention more than their outputs' error says (section 4.1's code leaves them out).
_UNCLIPPED = ("q_proj", "k_proj")


class AWQ:
    """Searches with the grid that the next step will round to."""

    name: ClassVar[str] = "awq"
    about: ClassVar[str] = "scales inputs that matter before rounding; a step that rounds to the same scheme follows"
    source: ClassVar[str] = (
        "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration, arXiv 2306.00978"
    )
    needs_inputs: ClassVar[bool] = True
    scales: ScaleKind = "bfloat16"
    scheme = None

    class Params(IntegerParams):
        steps: int = Field(20, ge=1, le=200, description="exponents α tried: 0, 1/steps, 2/steps, ...")
        duo_scaling: Literal["yes", "no", "both"] = Field("yes", description="divide by the weights' size too, or try")
        clip: bool = Field(False, description="cut off each group's largest weights where that helps; not before gptq")

    def __init__(self, params: BaseParams) -> None:
        assert isinstance(params, AWQ.Params)
        self._params = params
        self._target = resolve(params)

    def apply(self, block: Block) -> None:
        need_dense(block, self.name)
        tokens = sum(int(batch.real_BT.sum()) for batch in block.batches)
        samples = {group.linears[0]: Sample(tokens) for group in block.groups()}
        block.observe({name: sample.add for name, sample in samples.items()})
        for group in block.groups():
            sample = samples.pop(group.linears[0])
            x_TI, mean_I = sample.tokens_TI, sample.mean_I
            if (reason := obstacle(block, group)) is None:
                x_TI = x_TI / self._scale(block, group, x_TI, mean_I)
            else:
                block.note(group.linears, scaling=f"none: {reason}")
            if self._params.clip:
                self._clip(block, group, x_TI)

    def _scale(self, block: Block, group: Group, x_TI: Tensor, mean_I: Tensor) -> Tensor:
        """Moves the best factors; returns what the inputs were divided by, [I]."""
        index_I = source_of_inputs(block, group)
        stacked_OI = torch.cat([block.weight(name) for name in group.linears])
        found = search(stacked_OI, x_TI, mean_I, self._grid, index_I, self._params.steps, self._params.duo_scaling)
        move(block, group, found.factor_S, index_I)
        block.note(group.linears, awq_error_ratio=found.ratio, awq_exponent=found.exponent)
        return found.factor_S[index_I]

    def _clip(self, block: Block, group: Group, x_TI: Tensor) -> None:
        for name in group.linears:
            if not name.endswith(_UNCLIPPED):
                block.replace(name, clip(block.weight(name), x_TI, self._grid))

    @property
    def _grid(self) -> IntegerGrid:
        return integer_grid(self._target.with_scales(self.scales))


class Sample:
    """Mean |x| of each input over all tokens, and evenly spaced tokens themselves. `expected`: tokens to come."""

    def __init__(self, expected: int) -> None:
        self._every = max(1, -(-expected // _TOKENS))
        self._seen = 0
        self._sum_I: Tensor | None = None
        self._kept: list[Tensor] = []

    def add(self, x_TI: Tensor) -> None:
        if not len(x_TI):
            return
        self._kept.append(x_TI[-self._seen % self._every :: self._every].clone())
        sum_I = x_TI.abs().sum(0)
        self._sum_I = sum_I if self._sum_I is None else self._sum_I + sum_I
        self._seen += len(x_TI)

    @property
    def tokens_TI(self) -> Tensor:
        return torch.cat(self._kept)

    @property
    def mean_I(self) -> Tensor:
        """[I]. Raises BadCalibrationError when no token came by."""
        if self._sum_I is None:
            raise BadCalibrationError("no calibration token reached a linear: are all rows empty?")
        return self._sum_I / self._seen


@dataclass(frozen=True, slots=True)
class Found:
    """`factor_S`: what the source's outputs are divided by. `ratio`: output error against rounding to nearest.

    `exponent`: α, None where s = 1 was best."""

    factor_S: Tensor
    ratio: float
    exponent: float | None


def search(
    w_OI: Tensor,
    x_TI: Tensor,
    mean_I: Tensor,
    grid: IntegerGrid,
    index_I: Tensor,
    steps: int = 20,
    duo: Literal["yes", "no", "both"] = "yes",
) -> Found:
    """The factors with the least output error. `index_I`: which output of the source each input is."""
    w_OI = w_OI[:: -(-len(w_OI) // _ROWS)]
    mean_S = reduce_to_source(mean_I, index_I, "mean")
    size_S = reduce_to_source(relative_size(w_OI, grid), index_I, "mean")
    best = Found(torch.ones_like(mean_S), 1.0, None)
    plain = _loss(w_OI, x_TI, best.factor_S[index_I], grid)
    for exponent, factor_S in _candidates(mean_S, size_S, steps, duo):
        ratio = float(_loss(w_OI, x_TI, factor_S[index_I], grid) / plain) if plain else 1.0
        if ratio < best.ratio:
            best = Found(factor_S, ratio, exponent)
    return best


def relative_size(w_OI: Tensor, grid: IntegerGrid) -> Tensor:
    """Mean over rows of each weight's magnitude against the largest of its group, [I]."""
    w_OGK = grouped(w_OI, grid).abs()
    return (w_OGK / w_OGK.amax(-1, keepdim=True).clamp(min=1e-12)).reshape(w_OI.shape).mean(0)


def clip(w_OI: Tensor, x_TI: Tensor, grid: IntegerGrid) -> Tensor:
    """The weight with each group's largest magnitudes cut to the share, 1.00 … 0.55, of least error of x·w."""
    w_OGK = grouped(w_OI, grid)
    x_TGK = x_TI.reshape(len(x_TI), *w_OGK.shape[1:])
    h_GKK = torch.einsum("tgi,tgj->gij", x_TGK, x_TGK)
    peak_OG1 = w_OGK.abs().amax(-1, keepdim=True)
    best_OGK, least_OG = w_OGK, torch.full(w_OGK.shape[:2], torch.inf, dtype=w_OI.dtype, device=w_OI.device)
    for share in _CLIPS:
        cut_OGK = torch.clamp(w_OGK, -share * peak_OG1, share * peak_OG1)
        lost_OGK = encode(cut_OGK.reshape(w_OI.shape), grid).dense().reshape(w_OGK.shape) - w_OGK
        error_OG = (torch.einsum("ogi,gij->ogj", lost_OGK, h_GKK) * lost_OGK).sum(-1)
        better_OG = error_OG < least_OG
        least_OG = torch.where(better_OG, error_OG, least_OG)
        best_OGK = torch.where(better_OG[..., None], cut_OGK, best_OGK)
    return best_OGK.reshape(w_OI.shape)


def _candidates(mean_S: Tensor, size_S: Tensor, steps: int, duo: str) -> Iterator[tuple[float, Tensor]]:
    for exponent in (step / steps for step in range(steps)):
        scaled_S = mean_S.pow(exponent)
        if duo != "yes":
            yield exponent, _centred(scaled_S, mean_S > 0)
        if duo != "no":
            yield exponent, _centred(scaled_S / size_S.pow(1 - exponent).clamp(min=1e-4), mean_S > 0)


def _centred(factor_S: Tensor, live_S: Tensor) -> Tensor:
    """Around 1: divided by the root of the largest times the smallest; inputs that are never seen are left alone."""
    factor_S = factor_S.clamp(min=1e-4)
    highest, lowest = factor_S.where(live_S, 0).amax(), factor_S.where(live_S, torch.inf).amin()
    return torch.where(live_S, factor_S / (highest * lowest).sqrt(), 1.0)


def _loss(w_OI: Tensor, x_TI: Tensor, factor_I: Tensor, grid: IntegerGrid) -> Tensor:
    """‖x·(Q(W·s)/s − W)ᵀ‖²."""
    lost_OI = (encode(w_OI * factor_I, grid).dense() / factor_I).sub_(w_OI)
    return (x_TI @ lost_OI.T).square_().sum()
