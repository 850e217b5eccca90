"""FP6 (E3M2) weights with a float16 scale a row, the layout of FP6-LLM.

FP6-LLM: Efficiently Serving Large Language Models Through FP6-Centric Algorithm-System Co-Design, arXiv 2401.14112.
A study scheme: no engine here has FP6 kernels. Export is dense: the rounded values in the model's own dtype, as large
as before, so that what six bits lose can be measured and served; to save memory deploy FP8 (recipe fp8-dynamic), which
loses less. `numbers.floats.pack_six` has the packing, four codes in three bytes.
"""

from typing import ClassVar

from compressor.methods.base import Params as BaseParams
from compressor.methods.floating import FloatMethod, FloatParams
from compressor.numbers.grids import FloatGrid


class FP6(FloatMethod):
    """6 bits and a float16 scale a row, whatever the layout stores."""

    name: ClassVar[str] = "fp6"
    about: ClassVar[str] = "6-bit floats, written out as dense weights: no engine has kernels for them, deploy FP8"
    source: ClassVar[str] = (
        "FP6-LLM: Efficiently Serving Large Language Models Through FP6-Centric Algorithm-System Co-Design, "
        "arXiv 2401.14112"
    )

    class Params(FloatParams):
        pass

    def __init__(self, params: BaseParams) -> None:
        assert isinstance(params, FP6.Params)
        super().__init__(params, "FP6")

    @property
    def _grid(self) -> FloatGrid:
        assert isinstance(self.scheme.weights, FloatGrid)
        return self.scheme.weights
