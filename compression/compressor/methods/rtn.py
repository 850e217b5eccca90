"""Rounding to nearest: every weight at the closest point of its group's grid. The baseline of all other methods.

With `shrink` each group's range is searched for the least error of its weights, as the code of GPTQ's authors does
(arXiv 2210.17323). No data is looked at.
"""

from typing import ClassVar

from pydantic import Field

from compressor.block import Block
from compressor.methods.base import Params as BaseParams
from compressor.methods.scheming import IntegerParams, integer_grid, resolve
from compressor.numbers.grids import ScaleKind
from compressor.numbers.integer import encode, fit
from compressor.numbers.schemes import Scheme


class RoundToNearest:
    """One linear at a time; nothing makes up for what rounding loses."""

    name: ClassVar[str] = "rtn"
    about: ClassVar[str] = "rounds every weight to the nearest code of its group; needs no data"
    source: ClassVar[str] = "the baseline of GPTQ: Accurate Post-Training Quantization, arXiv 2210.17323"
    needs_inputs: ClassVar[bool] = False
    scales: ScaleKind = "bfloat16"

    class Params(IntegerParams):
        shrink: bool = Field(False, description="search each group's range for the least error of its weights")

    def __init__(self, params: BaseParams) -> None:
        assert isinstance(params, RoundToNearest.Params)
        self._params = params
        self.scheme: Scheme = resolve(params)

    def apply(self, block: Block) -> None:
        grid = integer_grid(self.scheme.with_scales(self.scales))
        for name in block.linears():
            w_OI = block.weight(name)
            block.encode(name, encode(w_OI, grid, *fit(w_OI, grid, shrink=self._params.shrink)))
