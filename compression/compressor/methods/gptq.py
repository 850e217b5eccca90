"""GPTQ: rounds one input's weights after the other, and lets the inputs that follow make up for what was lost.

GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, arXiv 2210.17323. Groups are fitted
to the weights as they are when their first input comes up. With `act_order` inputs come by falling second moment, as
in the authors' later code: "static" fits the groups beforehand, so that they stay successive in the file; "group" fits
them along the way, to the inputs in their new order, and stores each input's group (g_idx).
Linears with the same inputs are stacked and solved in one walk. Shapes: O output rows, I inputs, G groups.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from compressor.block import Block
from compressor.families import Group
from compressor.methods.base import Params as BaseParams
from compressor.methods.columns import Choose, Path, walk
from compressor.methods.scheming import IntegerParams, integer_grid, resolve
from compressor.numbers.encoded import IntegerWeight
from compressor.numbers.grids import IntegerGrid, ScaleKind
from compressor.numbers.hessian import Hessian, output_error
from compressor.numbers.integer import fit, grouped
from compressor.numbers.schemes import Scheme

# From this share of zeros on a weight is taken for a pruned one, whose zeros stay.
_PRUNED = 0.05


class GPTQ:
    """Needs the second moments of each linear's inputs: H [I, I]."""

    name: ClassVar[str] = "gptq"
    about: ClassVar[str] = "rounds input by input; the inputs that follow make up for what rounding lost"
    source: ClassVar[str] = (
        "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, arXiv 2210.17323"
    )
    needs_inputs: ClassVar[bool] = True
    scales: ScaleKind = "bfloat16"

    class Params(IntegerParams):
        act_order: Literal["none", "static", "group"] = Field(
            "static", description="inputs by falling second moment, groups fitted before (static) or on the way (group)"
        )
        damp: float = Field(0.01, gt=0, description="added to the diagonal of H, as a share of its mean")
        block_size: int = Field(128, ge=1, description="inputs whose effect on the rest is applied at once: speed only")
        shrink: bool = Field(False, description="search each group's range for the least error of its weights")
        true_sequential: bool = Field(
            False, description="look at inputs again after q, k, v, after o, and so on: slower, a little better"
        )
        keep_zeros: bool | None = Field(None, description="zeros stay zeros; null: where 5 % or more are (pruned)")

    def __init__(self, params: BaseParams) -> None:
        assert isinstance(params, GPTQ.Params)
        self._params = params
        self.scheme: Scheme = resolve(params)
        # Not where a row is one group: there order changes no layout.
        self.scatters_groups = params.act_order == "group" and integer_grid(self.scheme).group_size is not None

    def apply(self, block: Block) -> None:
        groups = block.groups()
        for part in [[group] for group in groups] if self._params.true_sequential else [groups]:
            hessians = {group.linears[0]: Hessian(block.weight(group.linears[0]).shape[1]) for group in part}
            block.observe({name: hessian.add for name, hessian in hessians.items()})
            for group in part:
                self._encode(block, group, hessians.pop(group.linears[0]).matrix)

    def _encode(self, block: Block, group: Group, h_II: Tensor) -> None:
        weights = [block.weight(name) for name in group.linears]
        grid = integer_grid(self.scheme.with_scales(self.scales))
        solved = quantize(torch.cat(weights), h_II, grid, self._params)
        heights = [len(weight) for weight in weights]
        for name, before_OI, encoded in zip(group.linears, weights, solved.split(heights), strict=True):
            block.encode(name, encoded)
            block.note(name, error=output_error(before_OI, encoded.dense(), h_II))
        if solved.damp != self._params.damp:
            block.note(group.linears, damp=solved.damp)


@dataclass(frozen=True, slots=True)
class Solved:
    """`lost`: tr((W−Ŵ) H (W−Ŵ)ᵀ) with the damped H. `damp`: what it took to factor H."""

    weight: IntegerWeight
    lost: float
    damp: float

    def split(self, heights: list[int]) -> list[IntegerWeight]:
        """The linears that were stacked."""
        whole = self.weight
        zeros = [None] * len(heights) if whole.zero_OG is None else whole.zero_OG.split(heights)
        parts = zip(whole.codes_OI.split(heights), whole.scale_OG.split(heights), zeros, strict=True)
        return [IntegerWeight(whole.grid, codes, scale, zero, whole.group_I) for codes, scale, zero in parts]


def quantize(w_OI: Tensor, h_II: Tensor, grid: IntegerGrid, params: GPTQ.Params) -> Solved:
    """Codes, scales and zeros of a weight whose inputs have the second moments `h_II`. Raises CompressorError."""
    grouped(w_OI, grid)
    path = Path.through(h_II, params.damp, by_moment=params.act_order != "none")
    w_IO = path.start(w_OI)
    steps = _Steps(w_IO, grid, params)
    if params.act_order == "static" or grid.group_size is None:
        steps.fit_before(w_OI.masked_fill(path.dead_I, 0), path.order_I)
    lost = walk(w_IO, path.u_II, steps.choose, steps.unit, params.block_size)
    return Solved(steps.result(path.order_I), lost, path.damp)


class _Steps:
    """Chooses the codes of one input after the other. `unit`: inputs that are fitted together on the way."""

    def __init__(self, w_IO: Tensor, grid: IntegerGrid, params: GPTQ.Params) -> None:
        inputs, outputs = w_IO.shape
        self.unit = grid.group_size or 1
        self._w_IO, self._grid, self._shrink = w_IO, grid, params.shrink
        self._group: list[int] = [index // self.unit for index in range(inputs)]
        self._is_fitted = False
        groups = inputs // self.unit if grid.group_size else 1
        self._scale_GO = w_IO.new_ones(groups, outputs)
        self._zero_GO = None if grid.symmetric else w_IO.new_zeros(groups, outputs)
        self._codes_IO = torch.empty_like(w_IO, dtype=torch.int32)
        zero_IO = w_IO == 0
        keeps = params.keep_zeros if params.keep_zeros is not None else bool(zero_IO.float().mean() >= _PRUNED)
        self._stay_IO = zero_IO if keeps else None

    def fit_before(self, w_OI: Tensor, order_I: Tensor | None) -> None:
        """Groups of successive inputs, fitted to the weights as they came."""
        scale_OG, zero_OG = fit(w_OI, self._grid, shrink=self._shrink)
        self._scale_GO.copy_(scale_OG.T)
        if self._zero_GO is not None and zero_OG is not None:
            self._zero_GO.copy_(zero_OG.T)
        size = self._grid.group_size or w_OI.shape[1]
        order = range(w_OI.shape[1]) if order_I is None else order_I.tolist()
        self._group = [index // size for index in order]
        self._is_fitted, self.unit = True, 1

    @property
    def choose(self) -> Choose:
        """What `walk` calls; a closure, because it is called for every input and looks nothing up."""
        w_IO, codes_IO, stay_IO, group = self._w_IO, self._codes_IO, self._stay_IO, self._group
        scales = self._scale_GO.unbind()
        zeros = None if self._zero_GO is None else self._zero_GO.unbind()
        (first, last), fits, unit = self._grid.range, not self._is_fitted, self.unit

        def choose(i: int) -> None:
            if fits and i % unit == 0:
                self._fit(i)
            w_O, scale_O, zero_O = w_IO[i], scales[group[i]], None if zeros is None else zeros[group[i]]
            w_O.div_(scale_O).round_()
            if zero_O is not None:
                w_O.add_(zero_O)
            w_O.clamp_(first, last)
            if stay_IO is not None:
                w_O.copy_(torch.where(stay_IO[i], 0.0 if zero_O is None else zero_O, w_O))
            codes_IO[i] = w_O
            if zero_O is not None:
                w_O.sub_(zero_O)
            w_O.mul_(scale_O)

        return choose

    def result(self, order_I: Tensor | None) -> IntegerWeight:
        """Codes in the weight's own order of inputs."""
        codes_OI, group_I = self._codes_IO.T, None
        if order_I is not None:
            back_I = torch.argsort(order_I)
            codes_OI = codes_OI[:, back_I]
            if not self._is_fitted:
                group_I = back_I // self.unit
        zero_OG = None if self._zero_GO is None else self._zero_GO.T.int().contiguous()
        return IntegerWeight(self._grid, codes_OI.contiguous(), self._scale_GO.T.float().contiguous(), zero_OG, group_I)

    def _fit(self, start: int) -> None:
        group, w_OK = start // self.unit, self._w_IO[start : start + self.unit].T.contiguous()
        scale_O1, zero_O1 = fit(w_OK, self._grid, shrink=self._shrink)
        self._scale_GO[group] = scale_O1[:, 0]
        if self._zero_GO is not None and zero_O1 is not None:
            self._zero_GO[group] = zero_O1[:, 0]
