"""What the methods of small floats share: a group's scales, nearest codes or GPTQ's walk, scales of static inputs.

Engines fuse linears that read the same input (q, k, v; gate, up) into one, which has one scale where a scale is for a
whole tensor: FP8's of weights, NVFP4's second one. Such scales are shared here, or the engine would round again.
GPTQ: arXiv 2210.17323; its walk knows no grid, so that any element format can be chosen from.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from compressor.block import Block, Observer
from compressor.errors import BadCalibrationError
from compressor.families import Group
from compressor.methods.base import Params as BaseParams
from compressor.methods.columns import Path, walk
from compressor.numbers.encoded import FloatWeight
from compressor.numbers.floats import encode, fit, fit_global, largest, round_to
from compressor.numbers.grids import FloatGrid, ScaleKind
from compressor.numbers.hessian import Hessian, output_error
from compressor.numbers.schemes import SCHEMES, Activations, Scheme


class FloatParams(BaseParams):
    """Parameters of a method that encodes weights as small floats; those with a choice of schemes add `scheme`."""

    solver: Literal["nearest", "gptq"] = Field(
        "nearest", description="every weight to its nearest code, or GPTQ's walk, which looks at calibration data"
    )
    damp: float = Field(0.01, gt=0, description="gptq: added to the diagonal of H, as a share of its mean")


class FloatMethod:
    """`needs_inputs`: for GPTQ's walk, and for the scale of inputs that an engine does not compute as they come."""

    needs_inputs: bool = False
    scales: ScaleKind = "bfloat16"

    def __init__(self, params: FloatParams, scheme: str) -> None:
        self._params = params
        self.scheme: Scheme = SCHEMES[scheme]
        self._steps = _STATIC_INPUTS.get(self.scheme.activations)
        self.needs_inputs = params.solver == "gptq" or self._steps is not None

    def apply(self, block: Block) -> None:
        """One group of linears after the other, with inputs as they were before the block was touched."""
        groups = block.groups()
        peaks = {group.linears[0]: Peak() for group in groups} if self._steps else {}
        is_solved = self._params.solver == "gptq"
        hessians = {name: Hessian(block.weight(name).shape[1]) for name in _firsts(groups)} if is_solved else {}
        if self.needs_inputs:
            block.observe({name: _feed(peaks.get(name), hessians.get(name)) for name in _firsts(groups)})
        for group in groups:
            first = group.linears[0]
            self._encode(block, group, hessians[first].matrix if is_solved else None)
            if self._steps is not None:
                scale = peaks[first].scale(self._steps)
                block.extras.update({f"{block.name}.{name}.input_scale": scale.clone() for name in group.linears})

    @property
    def _grid(self) -> FloatGrid:
        grid = self.scheme.with_scales(self.scales).weights
        assert isinstance(grid, FloatGrid)
        return grid

    def _encode(self, block: Block, group: Group, h_II: Tensor | None) -> None:
        grid, weights = self._grid, [block.weight(name) for name in group.linears]
        shared = fit_global(*weights) if grid.has_global_scale else None
        scale = fit(torch.cat(weights), grid) if grid.block == (None, None) else None
        for name, w_OI in zip(group.linears, weights, strict=True):
            if h_II is None:
                block.encode(name, encode(w_OI, grid, scale, shared))
                continue
            encoded, damp = quantize(w_OI, h_II, grid, scale, shared, self._params.damp)
            block.encode(name, encoded)
            block.note(name, error=output_error(w_OI, encoded.dense(), h_II))
            if damp != self._params.damp:
                block.note(name, damp=damp)


# The magnitude that the largest input of the calibration data is put at, by how inputs are rounded.
_STATIC_INPUTS: dict[Activations | None, float] = {
    "fp8-tensor": largest("e4m3"),
    "nvfp4": largest("e4m3") * largest("e2m1"),
}


class Peak:
    """The largest magnitude that came by."""

    def __init__(self) -> None:
        self._value: Tensor | None = None

    def add(self, values: Tensor) -> None:
        """Any shape."""
        if values.numel():
            peak = values.abs().amax().float()
            self._value = peak if self._value is None else torch.maximum(self._value, peak)

    def scale(self, steps: float) -> Tensor:
        """What puts the peak at `steps`, float32 scalar; 1 when all was zero. Raises BadCalibrationError."""
        if self._value is None or not bool(self._value.isfinite()):
            raise BadCalibrationError("no finite calibration input reached a linear: are all rows empty?")
        return torch.where(self._value > 0, self._value / steps, torch.ones_like(self._value))


def quantize(
    w_OI: Tensor,
    h_II: Tensor,
    grid: FloatGrid,
    scale: Tensor | None = None,
    global_scale: Tensor | None = None,
    damp: float = 0.01,
) -> tuple[FloatWeight, float]:
    """GPTQ's codes on scales fitted beforehand, inputs by falling second moment; and the damping it took."""
    start = encode(w_OI, grid, scale, global_scale)
    path = Path.through(h_II, damp, by_moment=True)
    assert path.order_I is not None
    spread_IO = start.spread().T[path.order_I]
    if start.global_scale is not None:
        spread_IO = spread_IO * start.global_scale
    w_IO = path.start(w_OI)
    values_IO = torch.empty_like(w_IO)

    def choose(i: int) -> None:
        values_IO[i] = round_to(w_IO[i] / spread_IO[i], grid.element)
        w_IO[i] = values_IO[i] * spread_IO[i]

    walk(w_IO, path.u_II, choose)
    values_OI = values_IO[torch.argsort(path.order_I)].T.contiguous()
    return FloatWeight(grid, values_OI, start.scale, start.global_scale), path.damp


def _firsts(groups: list[Group]) -> list[str]:
    return [group.linears[0] for group in groups]


def _feed(*sinks: Peak | Hessian | None) -> Observer:
    def add(x_TI: Tensor) -> None:
        for sink in sinks:
            if sink is not None:
                sink.add(x_TI)

    return add
