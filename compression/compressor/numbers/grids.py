"""The number formats a weight can be encoded in, as data. The arithmetic is in integer.py and floats.py."""

from dataclasses import dataclass
from typing import Literal

Element = Literal["e4m3", "e5m2", "e3m2", "e2m3", "e2m1"]
ScaleKind = Literal["bfloat16", "float16", "float32", "e4m3", "e8m0"]


@dataclass(frozen=True, slots=True)
class IntegerGrid:
    """Integers of `bits` bits and one scale for `group_size` successive inputs of an output row.

    `group_size`: None for one scale per output row. `symmetric`: codes −2^(b−1) … 2^(b−1)−1 and no zero point;
    otherwise 0 … 2^b−1 and an integer zero point a group. `scale`: what scales are rounded to before codes are
    chosen, so that the codes fit the scales an engine will read.
    """

    bits: int
    group_size: int | None = 128
    symmetric: bool = True
    scale: ScaleKind = "bfloat16"

    @property
    def range(self) -> tuple[int, int]:
        """Lowest and highest code."""
        if self.symmetric:
            return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        return 0, 2**self.bits - 1


@dataclass(frozen=True, slots=True)
class FloatGrid:
    """Small floats and one scale a block of `block` = (output rows, inputs); None: the whole extent of that side.

    (1, None): a scale per output row; (None, None): per tensor; (128, 128): FP8 blocks; (1, 16): NVFP4, which adds
    a float32 scale for the tensor (`has_global_scale`); (1, 32): MX formats, whose scales are powers of two.
    """

    element: Element
    block: tuple[int | None, int | None] = (1, None)
    scale: ScaleKind = "bfloat16"
    has_global_scale: bool = False

    @property
    def bits(self) -> int:
        return {"e4m3": 8, "e5m2": 8, "e3m2": 6, "e2m3": 6, "e2m1": 4}[self.element]


Grid = IntegerGrid | FloatGrid
