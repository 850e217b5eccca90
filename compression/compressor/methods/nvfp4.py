"""NVFP4: 4-bit floats (E2M1) in groups of 16 with E4M3 scales, under one float32 scale for the tensor.

Pretraining Large Language Models with NVFP4, arXiv 2509.25149, appendix on the format: the tensor's scale puts the
largest group scale at 448. That of the inputs comes from calibration; their group scales are computed as they serve.
Kernels are Blackwell's; vLLM 0.32 refuses to start on CPU. No GPU was tried.
"""

from typing import ClassVar, Literal

from pydantic import Field

from compressor.methods.base import Params as BaseParams
from compressor.methods.floating import FloatMethod, FloatParams


class NVFP4(FloatMethod):
    """4.5 bits a weight. q, k, v and gate, up share their tensor's scale, as fused kernels want it."""

    name: ClassVar[str] = "nvfp4"
    about: ClassVar[str] = "4-bit floats in groups of 16 with 8-bit scales, inputs too or left in 16 bits (NVFP4A16)"
    source: ClassVar[str] = "Pretraining Large Language Models with NVFP4, arXiv 2509.25149"

    class Params(FloatParams):
        scheme: Literal["NVFP4", "NVFP4A16"] = Field("NVFP4", description="inputs rounded as well, or left in 16 bits")

    def __init__(self, params: BaseParams) -> None:
        assert isinstance(params, NVFP4.Params)
        super().__init__(params, params.scheme)
