"""MXFP4: 4-bit floats (E2M1) in groups of 32 whose scales are powers of two.

Microscaling Data Formats for Deep Learning, arXiv 2310.10537. No calibration: both scales follow from the values.
"""

from typing import ClassVar, Literal

from pydantic import Field

from compressor.methods.base import Params as BaseParams
from compressor.methods.floating import FloatMethod, FloatParams


class MXFP4(FloatMethod):
    """4.25 bits a weight."""

    name: ClassVar[str] = "mxfp4"
    about: ClassVar[str] = "4-bit floats in groups of 32 with power-of-two scales, inputs too or left in 16 bits"
    source: ClassVar[str] = "Microscaling Data Formats for Deep Learning, arXiv 2310.10537"

    class Params(FloatParams):
        scheme: Literal["MXFP4", "MXFP4A8", "MXFP4A16"] = Field(
            "MXFP4", description="inputs rounded to MXFP4 as well, to FP8 with a scale a token, or left in 16 bits"
        )

    def __init__(self, params: BaseParams) -> None:
        assert isinstance(params, MXFP4.Params)
        super().__init__(params, params.scheme)
