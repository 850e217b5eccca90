"""SpQR: 3 or 4 bits in very small groups whose scales are quantized too, and the few weights that hurt kept in 16 bits.

SpQR: A Sparse-Quantized Representation for Near-Lossless LLM Weight Compression, arXiv 2306.03078, algorithm 1. No
engine reads its layout, so that the checkpoint is dense and holds what the layout would dequantize to; the bits that
are reported are those of the layout (spqr_weight.py). Shapes: O output rows, I inputs, K inputs of a group.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from compressor.block import Block
from compressor.errors import BadRecipeError
from compressor.families import Group
from compressor.methods.base import Params as BaseParams
from compressor.methods.columns import Choose, Path, walk
from compressor.methods.spqr_weight import Affine, Layout, SpQRWeight, fit_affine
from compressor.numbers.grids import IntegerGrid, ScaleKind
from compressor.numbers.hessian import Hessian, output_error
from compressor.numbers.schemes import Scheme


class SpQR:
    """A study: what a layout of outliers and small groups would lose, served as dense weights."""

    name: ClassVar[str] = "spqr"
    about: ClassVar[str] = "small groups, quantized scales, outliers in 16 bits; stored dense, for study"
    source: ClassVar[str] = (
        "SpQR: A Sparse-Quantized Representation for Near-Lossless LLM Weight Compression, arXiv 2306.03078"
    )
    needs_inputs: ClassVar[bool] = True
    scales: ScaleKind = "bfloat16"

    class Params(BaseParams):
        bits: int = Field(3, ge=2, le=8, description="bits of a weight that is no outlier")
        group_size: int = Field(16, ge=2, description="inputs that share a scale and a zero")
        statistic_bits: int | None = Field(3, ge=2, le=8, description="bits of a scale or zero; null: 16-bit floats")
        statistic_group: int = Field(16, ge=1, description="output rows whose scales share their own scale and offset")
        threshold: float = Field(
            0.2, gt=0, description="error from which a weight is an outlier, relative: higher means fewer outliers"
        )
        damp: float = Field(1.0, gt=0, description="added to the diagonal of H, as a share of its mean")
        act_order: bool = Field(True, description="take inputs by falling second moment")
        round_zero: bool = Field(False, description="zeros are whole codes before they are quantized")

    def __init__(self, params: BaseParams) -> None:
        assert isinstance(params, SpQR.Params)
        self._params = params
        grid = IntegerGrid(params.bits, params.group_size, symmetric=False, scale="float32")
        self.scheme: Scheme = Scheme("SpQR", grid)

    def apply(self, block: Block) -> None:
        if self.scales != "float32":
            raise BadRecipeError("SpQR has no layout that an engine reads: use `export: {format: dense}`")
        groups = block.groups()
        hessians = {group.linears[0]: Hessian(block.weight(group.linears[0]).shape[1]) for group in groups}
        block.observe({name: hessian.add for name, hessian in hessians.items()})
        for group in groups:
            self._encode(block, group, hessians.pop(group.linears[0]).matrix)

    def _encode(self, block: Block, group: Group, h_II: Tensor) -> None:
        path = Path.through(h_II, self._params.damp, by_moment=self._params.act_order)
        for name in group.linears:
            w_OI = block.weight(name)
            weight, _ = quantize(w_OI, path, self._params)
            dense_OI = weight.dense()
            block.replace(name, dense_OI)
            block.note(
                name,
                error=output_error(w_OI, dense_OI, h_II),
                size_bits=weight.size_bits(),
                outlier_share=weight.outlier_share,
                most_outliers_in_a_row=weight.most_outliers_in_a_row,
            )
        if path.damp != self._params.damp:
            block.note(group.linears, damp=path.damp)


def quantize(w_OI: Tensor, path: Path, params: SpQR.Params) -> tuple[SpQRWeight, float]:
    """One linear, and what it lost: tr((W−Ŵ) H (W−Ŵ)ᵀ) with the damped H. Raises BadRecipeError."""
    layout = Layout(
        params.bits, params.group_size, params.statistic_bits, params.statistic_group, round_zero=params.round_zero
    )
    layout.check(w_OI.shape[1])
    w_IO = path.start(w_OI)
    steps = _Steps(w_IO, path.u_II, layout, params.threshold)
    lost = walk(w_IO, path.u_II, steps.choose, layout.group_size)
    return steps.result(path.order_I), lost


class _Steps:
    """Chooses code or outlier for one input after the other, and grids at the first input of a group."""

    def __init__(self, w_IO: Tensor, u_II: Tensor, layout: Layout, relative_threshold: float) -> None:
        self._w_IO, self._layout = w_IO, layout
        self._u_I = u_II.diagonal()
        spread_I = w_IO.var(1, correction=1) if w_IO.shape[1] > 1 else w_IO.new_zeros(len(w_IO))
        self._threshold = float(relative_threshold * (spread_I / self._u_I.square()).mean())
        self._grids: list[Affine] = []
        self._codes_IO = torch.empty_like(w_IO, dtype=torch.uint8)
        self._outlier_IO = torch.zeros_like(w_IO, dtype=torch.bool)

    @property
    def choose(self) -> Choose:
        """What `walk` calls."""
        size, last = self._layout.group_size, self._layout.last
        u_I = self._u_I.tolist()
        scale_O = zero_O = self._w_IO.new_empty(0)

        def choose(i: int) -> None:
            nonlocal scale_O, zero_O
            if i % size == 0:
                self._fit(i)
                scale_O, zero_O = (part_O.to(self._w_IO.dtype) for part_O in self._grids[-1].read())
            w_O = self._w_IO[i]
            code_O = (w_O / scale_O).add_(zero_O).round_().clamp_(0, last)
            rounded_O = (code_O - zero_O) * scale_O
            outlier_O = ((w_O - rounded_O) / u_I[i]).square_() > self._threshold
            self._codes_IO[i], self._outlier_IO[i] = code_O, outlier_O
            w_O.copy_(torch.where(outlier_O, w_O.half().to(w_O.dtype), rounded_O))

        return choose

    def result(self, order_I: Tensor | None) -> SpQRWeight:
        """Codes in the order of the walk, as the layout has them."""
        return SpQRWeight.build(self._layout, self._codes_IO.T, self._grids, self._w_IO.T, self._outlier_IO.T, order_I)

    def _fit(self, start: int) -> None:
        """The grid of a group without its likely outliers (algorithm 1, lines 9 to 14)."""
        group = slice(start, start + self._layout.group_size)
        w_OK = self._w_IO[group].T.contiguous()
        likely_OK = gain_without(w_OK, self._u_I[group], self._layout) > self._threshold
        kept_OK = ~likely_OK
        mean_O1 = (w_OK * kept_OK).sum(1, keepdim=True) / kept_OK.sum(1, keepdim=True).clamp(min=1)
        self._grids.append(self._layout.fit(torch.where(kept_OK, w_OK, mean_O1)))


def gain_without(w_OK: Tensor, u_K: Tensor, layout: Layout) -> Tensor:
    """How much less error a group has without one of its weights, [O, K]: that of all on a grid fitted to all, less
    that of the others on a grid fitted to the others, each over U_kk.

    Only the smallest and the largest weight take part in a grid's range: without any other one the grid stays, and the
    gain is the weight's own error.
    """
    gain_OK = _errors(w_OK, u_K, layout)
    total_O1 = gain_OK.sum(1, keepdim=True)
    for place_O1 in (w_OK.argmin(1, keepdim=True), w_OK.argmax(1, keepdim=True)):
        neighbour_O1 = w_OK.gather(1, (place_O1 + 1) % w_OK.shape[1])
        rest_OK = _errors(w_OK.scatter(1, place_O1, neighbour_O1), u_K, layout).scatter_(1, place_O1, 0)
        gain_OK.scatter_(1, place_O1, total_O1 - rest_OK.sum(1, keepdim=True))
    return gain_OK


def _errors(w_OK: Tensor, u_K: Tensor, layout: Layout) -> Tensor:
    """((w − Q(w)) / U)² of each weight, each row on a grid of its own with plain statistics."""
    scale_O, zero_O = fit_affine(w_OK, layout)
    scale_O1, zero_O1 = scale_O[:, None], zero_O[:, None]
    rounded_OK = ((w_OK / scale_O1).add_(zero_O1).round_().clamp_(0, layout.last) - zero_O1) * scale_O1
    return ((w_OK - rounded_OK) / u_K).square_()
