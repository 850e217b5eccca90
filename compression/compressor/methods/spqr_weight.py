"""The layout of SpQR (arXiv 2306.03078, section 4): codes, two levels of scales and zeros, outliers by output row.

In memory only, since no engine reads it: it counts the bits truly, and holds the method to what could be stored.
Shapes: O output rows, I inputs in the order of the walk, K inputs of a group, G = I / K groups, N outliers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from compressor.errors import BadRecipeError

_HALF_BITS = 16
# The smallest positive float16: no scale is zero.
_LEAST = 2.0**-24


@dataclass(frozen=True, slots=True)
class Layout:
    """`statistic_bits`: of scales and zeros, None: float16. `statistic_group`: output rows that share the two float16
    numbers of the second level."""

    bits: int
    group_size: int
    statistic_bits: int | None
    statistic_group: int
    round_zero: bool = False

    @property
    def last(self) -> int:
        """The highest code."""
        return int(2**self.bits - 1)

    def check(self, inputs: int) -> None:
        """Raises BadRecipeError when groups do not fit."""
        if inputs % self.group_size:
            raise BadRecipeError(f"group_size {self.group_size} does not divide {inputs} inputs of a linear")

    def fit(self, w_OK: Tensor) -> "Affine":
        """The grid of one group of inputs for every output row, as it will be read back: the zero suits the stored
        scale, not the exact one."""
        scale_O, _ = fit_affine(w_OK, self)
        scale = self._store(scale_O)
        zero_O = w_OK.amin(1).clamp(max=0).neg() / scale.read(len(scale_O)).clamp(min=_LEAST)
        return Affine(scale, self._store(zero_O.round() if self.round_zero else zero_O), len(scale_O))

    def _store(self, value_O: Tensor) -> "Statistic":
        if self.statistic_bits is None:
            return Statistic(value_O.half())
        padded = functional.pad(value_O[None, None], (0, -len(value_O) % self.statistic_group), mode="replicate")
        rows = padded.reshape(-1, self.statistic_group)
        low, high = torch.aminmax(rows, dim=1, keepdim=True)
        steps = 2**self.statistic_bits - 1
        low, step = low.half(), ((high - low) / steps).half()
        codes = ((rows - low) / step.to(rows.dtype).clamp(min=_LEAST)).round_().clamp_(0, steps)
        return Statistic(codes.to(torch.uint8), low, step)


@dataclass(frozen=True, slots=True)
class Statistic:
    """Scales, or zeros, of all output rows: `low + step · code`, codes [O / 16, 16]; or float16 values [O]."""

    codes: Tensor
    low: Tensor | None = None
    step: Tensor | None = None

    def read(self, rows: int) -> Tensor:
        """[O], float32."""
        if self.low is None or self.step is None:
            return self.codes.float()
        return (self.low.float() + self.step.float() * self.codes.float()).flatten()[:rows]

    def size_bits(self, rows: int, bits: int | None) -> int:
        if self.low is None or bits is None:
            return rows * _HALF_BITS
        return int(rows * bits + 2 * _HALF_BITS * self.low.numel())


@dataclass(frozen=True, slots=True)
class Affine:
    """The grid of one group for all output rows: `dense = scale · (code − zero)`."""

    scale: Statistic
    zero: Statistic
    rows: int

    def read(self) -> tuple[Tensor, Tensor]:
        """Scale, always positive, and zero, [O]."""
        return self.scale.read(self.rows).clamp(min=_LEAST), self.zero.read(self.rows)


@dataclass(frozen=True, slots=True)
class SpQRWeight:
    """`codes_OI`: uint8. `grids`: G of them. Outliers by row, as in a compressed sparse row matrix: row i has those
    from `row_O[i]` to `row_O[i + 1]`, each an input (in the order of the walk) and a float16 value that replaces what
    its code says. `order_I`: which input each place of the walk is, None: as it came."""

    layout: Layout
    codes_OI: Tensor
    grids: list[Affine]
    row_O: Tensor
    column_N: Tensor
    value_N: Tensor
    order_I: Tensor | None

    @classmethod
    def build(
        cls,
        layout: Layout,
        codes_OI: Tensor,
        grids: list[Affine],
        chosen_OI: Tensor,
        outlier_OI: Tensor,
        order_I: Tensor | None,
    ) -> "SpQRWeight":
        """`chosen_OI`: the walked weight, of which only the outliers are taken."""
        row_O = functional.pad(outlier_OI.sum(1).cumsum(0), (1, 0))
        _, column_N = outlier_OI.nonzero(as_tuple=True)
        return cls(layout, codes_OI, grids, row_O, column_N, chosen_OI[outlier_OI].half(), order_I)

    def dense(self) -> Tensor:
        """The weight [O, I] in its own order of inputs, float32."""
        read = [grid.read() for grid in self.grids]
        scale_OI, zero_OI = (
            torch.stack(part, 1).repeat_interleave(self.layout.group_size, 1) for part in zip(*read, strict=True)
        )
        dense_OI = scale_OI * (self.codes_OI - zero_OI)
        row_N = torch.repeat_interleave(torch.arange(len(dense_OI), device=dense_OI.device), self.row_O.diff())
        dense_OI[row_N, self.column_N] = self.value_N.float()
        return dense_OI if self.order_I is None else dense_OI[:, torch.argsort(self.order_I)]

    def size_bits(self) -> int:
        """Everything that would be stored, with 16-bit values and indices: outliers, their number in each row (when
        there are any), and the order of the inputs (when it is not as it came)."""
        outputs, inputs = self.codes_OI.shape
        parts = [part for grid in self.grids for part in (grid.scale, grid.zero)]
        statistics = sum(part.size_bits(outputs, self.layout.statistic_bits) for part in parts)
        outliers = len(self.value_N)
        index = 0 if self.order_I is None else inputs * _HALF_BITS
        sparse = 2 * outliers * _HALF_BITS + (outputs * _HALF_BITS if outliers else 0)
        return int(outputs * inputs * self.layout.bits + statistics + sparse + index)

    @property
    def outlier_share(self) -> float:
        return len(self.value_N) / int(self.codes_OI.numel())

    @property
    def most_outliers_in_a_row(self) -> int:
        return int(self.row_O.diff().max())


def fit_affine(w: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Plain scale and zero over the last dimension: from min to max, widened to hold zero."""
    low, high = torch.aminmax(w, dim=-1)
    low = low.clamp(max=0)
    scale = ((high.clamp(min=0) - low) / layout.last).clamp(min=_LEAST)
    zero = -low / scale
    return scale, zero.round() if layout.round_zero else zero
