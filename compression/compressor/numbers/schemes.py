"""Schemes by their names in the field (W4A16, FP8_DYNAMIC, NVFP4, ...): grids of weights, activations and KV cache.

Names and meanings are those of the compressed-tensors presets. A recipe may also spell a grid out: `Scheme.custom`.
"""

from dataclasses import dataclass, replace
from typing import Literal

from compressor.numbers.grids import FloatGrid, Grid, IntegerGrid, ScaleKind

# How an engine rounds the inputs of a linear layer while it serves.
Activations = Literal["int8-token", "fp8-token", "fp8-tensor", "fp8-group", "nvfp4", "mxfp4"]


@dataclass(frozen=True, slots=True)
class Scheme:
    """`weights`: None when weights stay dense; `activations`: None when inputs stay in 16 bits.

    fp8-tensor is static: its scale comes from calibration. The others are computed per token as it comes.
    """

    name: str
    weights: Grid | None = None
    activations: Activations | None = None

    def with_scales(self, kind: ScaleKind) -> "Scheme":
        """The same with the plain scales (not those that the number format itself fixes) stored as `kind`."""
        if self.weights is None or self.weights.scale in ("e4m3", "e8m0"):
            return self
        return replace(self, weights=replace(self.weights, scale=kind))


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("W8A16", IntegerGrid(8, None)),
        Scheme("W4A16", IntegerGrid(4, 128)),
        Scheme("W4A16_ASYM", IntegerGrid(4, 128, symmetric=False)),
        Scheme("W3A16", IntegerGrid(3, 128)),
        Scheme("W3A16_ASYM", IntegerGrid(3, 128, symmetric=False)),
        Scheme("W2A16", IntegerGrid(2, 64)),
        Scheme("W8A8", IntegerGrid(8, None), "int8-token"),
        Scheme("FP8", FloatGrid("e4m3", (None, None)), "fp8-tensor"),
        Scheme("FP8_DYNAMIC", FloatGrid("e4m3", (1, None)), "fp8-token"),
        Scheme("FP8_BLOCK", FloatGrid("e4m3", (128, 128)), "fp8-group"),
        Scheme("NVFP4", FloatGrid("e2m1", (1, 16), "e4m3", has_global_scale=True), "nvfp4"),
        Scheme("NVFP4A16", FloatGrid("e2m1", (1, 16), "e4m3", has_global_scale=True)),
        Scheme("MXFP4", FloatGrid("e2m1", (1, 32), "e8m0"), "mxfp4"),
        # ZeroQuant-FP's pair (arXiv 2307.09782): power-of-two scales, so that FP4 becomes FP8 by adding exponents.
        Scheme("MXFP4A8", FloatGrid("e2m1", (1, 32), "e8m0"), "fp8-token"),
        Scheme("MXFP4A16", FloatGrid("e2m1", (1, 32), "e8m0")),
        Scheme("FP6", FloatGrid("e3m2", (1, None), "float16")),
    )
}
