"""A weight after quantization: codes, scales, and the dense weight that an engine computes with.

Shapes: O output rows, I inputs, G = I / group_size groups. Methods make these, formats lay them out on disk.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.numbers.grids import FloatGrid, IntegerGrid


@dataclass(frozen=True, slots=True)
class IntegerWeight:
    """`dense = scale · (code − zero)`.

    `codes_OI`: int32, within `grid.range`; `scale_OG`: float32, already rounded to `grid.scale`;
    `zero_OG`: int32, None when symmetric; `group_I`: the group of each input where groups are not successive
    (GPTQ's act-order), else None.
    """

    grid: IntegerGrid
    codes_OI: Tensor
    scale_OG: Tensor
    zero_OG: Tensor | None = None
    group_I: Tensor | None = None

    def dense(self) -> Tensor:
        """The weight [O, I], float32."""
        groups = self.groups()
        zero = 0 if self.zero_OG is None else self.zero_OG[:, groups]
        return self.scale_OG[:, groups] * (self.codes_OI - zero).float()

    def groups(self) -> Tensor:
        """The group of each input, [I]."""
        if self.group_I is not None:
            return self.group_I
        inputs = self.codes_OI.shape[1]
        return torch.arange(inputs, device=self.codes_OI.device) // (self.grid.group_size or inputs)

    def size_bits(self) -> int:
        """Bits of packed codes, 16-bit scales, zeros as wide as codes, and group indices."""
        zeros = 0 if self.zero_OG is None else self.zero_OG.numel() * self.grid.bits
        index = 0 if self.group_I is None else self.group_I.numel() * 32
        return int(self.codes_OI.numel() * self.grid.bits + self.scale_OG.numel() * 16 + zeros + index)


@dataclass(frozen=True, slots=True)
class FloatWeight:
    """`dense = value · scale (· global_scale)`, block by block.

    `values_OI`: float32, each exactly a code point of `grid.element`; `scale`: float32 [ceil(O/rows), ceil(I/inputs)],
    already rounded to `grid.scale`; `global_scale`: float32 scalar, NVFP4 only.
    """

    grid: FloatGrid
    values_OI: Tensor
    scale: Tensor
    global_scale: Tensor | None = None

    def dense(self) -> Tensor:
        """The weight [O, I], float32."""
        dense = self.values_OI * self.spread()
        return dense if self.global_scale is None else dense * self.global_scale

    def spread(self) -> Tensor:
        """The scale of each element, [O, I]."""
        outs, ins = self.values_OI.shape
        rows, columns = self.grid.block[0] or outs, self.grid.block[1] or ins
        return self.scale.repeat_interleave(rows, 0)[:outs].repeat_interleave(columns, 1)[:, :ins]

    def size_bits(self) -> int:
        """Bits that codes and scales take."""
        width = {"e4m3": 8, "e8m0": 8, "bfloat16": 16, "float16": 16, "float32": 32}[self.grid.scale]
        return int(
            self.values_OI.numel() * self.grid.bits + self.scale.numel() * width + 32 * self.grid.has_global_scale
        )


Encoded = IntegerWeight | FloatWeight
