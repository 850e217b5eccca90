"""SmoothQuant: makes inputs easy to round to 8 bits by moving part of their spread into the weights.

SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models, arXiv 2211.10438, equation 4:
s_j = max|X_j|^α / max|W_j|^(1−α). Nothing is rounded here: a step with a scheme follows. Besides the norms the factors
of an MLP's and an attention's last linear move too, into rows of the linear before it, whose scales are per row.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from compressor.block import Block
from compressor.errors import BadCalibrationError
from compressor.families import Group
from compressor.methods.base import Params as BaseParams
from compressor.methods.moving import move, need_dense, obstacle, reduce_to_source, source_of_inputs
from compressor.numbers.grids import ScaleKind


class SmoothQuant:
    """A transform: the block's outputs stay what they were."""

    name: ClassVar[str] = "smoothquant"
    about: ClassVar[str] = "moves outliers of the inputs into the weights; a step that rounds both follows"
    source: ClassVar[str] = (
        "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models, arXiv 2211.10438"
    )
    needs_inputs: ClassVar[bool] = True
    scales: ScaleKind = "bfloat16"
    scheme = None

    class Params(BaseParams):
        strength: float = Field(0.5, ge=0, le=1, description="α: 0 leaves inputs alone, 1 levels them")
        through_linears: bool = Field(True, description="also smooth what comes out of a linear: o_proj and down_proj")

    def __init__(self, params: BaseParams) -> None:
        assert isinstance(params, SmoothQuant.Params)
        self._params = params

    def apply(self, block: Block) -> None:
        need_dense(block, self.name)
        peaks = {group.linears[0]: Peaks() for group in block.groups()}
        block.observe({name: peak.add for name, peak in peaks.items()})
        for group in block.groups():
            is_linear = isinstance(block.module.get_submodule(group.source), torch.nn.Linear)
            if is_linear and not self._params.through_linears:
                continue
            if (reason := obstacle(block, group)) is not None:
                block.note(group.linears, smoothing=f"none: {reason}")
                continue
            self._smooth(block, group, peaks[group.linears[0]].value_I)

    def _smooth(self, block: Block, group: Group, input_I: Tensor) -> None:
        index_I = source_of_inputs(block, group)
        weight_I = torch.stack([block.weight(name).abs().amax(0) for name in group.linears]).amax(0)
        input_S, weight_S = (reduce_to_source(peak_I, index_I, "amax") for peak_I in (input_I, weight_I))
        move(block, group, factors(input_S, weight_S, self._params.strength), index_I)


class Peaks:
    """The largest magnitude of each input."""

    def __init__(self) -> None:
        self._peak_I: Tensor | None = None

    def add(self, x_TI: Tensor) -> None:
        if len(x_TI):
            peak_I = x_TI.abs().amax(0)
            self._peak_I = peak_I if self._peak_I is None else torch.maximum(self._peak_I, peak_I)

    @property
    def value_I(self) -> Tensor:
        """[I]. Raises BadCalibrationError when no token came by."""
        if self._peak_I is None:
            raise BadCalibrationError("no calibration token reached a linear: are all rows empty?")
        return self._peak_I


def factors(input_I: Tensor, weight_I: Tensor, strength: float) -> Tensor:
    """What each input is divided by (equation 4), from its peak and that of its weights; 1 where either is zero."""
    factor_I = input_I.pow(strength) / weight_I.pow(1 - strength)
    return torch.where((input_I > 0) & (weight_I > 0), factor_I.clamp(1e-5, 1e5), 1.0)
