"""Inputs of a linear layer as an engine rounds them while it serves, so that quality is measured on what users get."""

import torch
from torch import Tensor

from compressor.numbers.floats import encode, round_to
from compressor.numbers.grids import FloatGrid
from compressor.numbers.schemes import Activations

_GRIDS: dict[Activations, FloatGrid] = {
    "fp8-token": FloatGrid("e4m3", (1, None), "float32"),
    "fp8-group": FloatGrid("e4m3", (1, 128), "float32"),
    "nvfp4": FloatGrid("e2m1", (1, 16), "e4m3", has_global_scale=True),
    "mxfp4": FloatGrid("e2m1", (1, 32), "e8m0"),
}
_INT8_LARGEST = 127


def fake_quantize(x: Tensor, kind: Activations, scale: Tensor | None = None) -> Tensor:
    """`x` [..., I] rounded to what the kernel multiplies with, in its own dtype.

    `scale`: what calibration stored, one number: fp8-tensor needs it; nvfp4 takes it as the tensor's scale, which else
    comes from `x` itself. Every other scale is computed from `x`, token by token.
    """
    x_TI = x.reshape(-1, x.shape[-1]).float()
    if kind == "int8-token":
        rounded = _int8(x_TI)
    elif kind == "fp8-tensor":
        assert scale is not None, "static FP8 inputs need the scale that calibration stored"
        rounded = round_to(x_TI / scale, "e4m3") * scale
    else:
        rounded = encode(x_TI, _GRIDS[kind], global_scale=scale if kind == "nvfp4" else None).dense()
    return rounded.reshape(x.shape).to(x.dtype)


def _int8(x_TI: Tensor) -> Tensor:
    amax_T1 = x_TI.abs().amax(1, keepdim=True)
    scale_T1 = torch.where(amax_T1 > 0, amax_T1 / _INT8_LARGEST, torch.ones_like(amax_T1))
    return (x_TI / scale_T1).round().clamp(-_INT8_LARGEST - 1, _INT8_LARGEST) * scale_T1
