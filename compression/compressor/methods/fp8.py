"""FP8 (E4M3) weights and inputs: a scale a row and a token, blocks of 128 × 128, or one for a tensor.

FP8 Formats for Deep Learning, arXiv 2209.05433. Static inputs (scheme FP8) get one scale a layer, which puts the
largest input of the calibration data at 448; what exceeds it later saturates. The other schemes need no data.
"""

from typing import ClassVar, Literal

from pydantic import Field

from compressor.methods.base import Params as BaseParams
from compressor.methods.floating import FloatMethod, FloatParams


class FP8(FloatMethod):
    """Half the bytes; on CPU vLLM serves FP8_DYNAMIC anywhere and FP8_BLOCK where there is AMX."""

    name: ClassVar[str] = "fp8"
    about: ClassVar[str] = "8-bit floats, inputs too: a scale a row and token, a block, or calibrated ones a tensor"
    source: ClassVar[str] = "FP8 Formats for Deep Learning, arXiv 2209.05433"

    class Params(FloatParams):
        scheme: Literal["FP8_DYNAMIC", "FP8_BLOCK", "FP8"] = Field(
            "FP8_DYNAMIC", description="scales by row and token, by 128 × 128 block, or by tensor with static inputs"
        )

    def __init__(self, params: BaseParams) -> None:
        assert isinstance(params, FP8.Params)
        super().__init__(params, params.scheme)
