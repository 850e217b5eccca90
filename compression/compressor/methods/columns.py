"""The walk over a linear's inputs that GPTQ and SpQR share: choose one input's weights, let the later ones make up.

Optimal Brain Compression as GPTQ orders it (arXiv 2210.17323, equations 2 and 3 and algorithm 1): with U upper
triangular and UᵀU = H⁻¹, input i is set to q_i, e_i = (w_i − q_i) / U_ii, and w_j −= e_i · U_ij for all j > i; then the
output error tr((W−Ŵ) H (W−Ŵ)ᵀ) is Σe². Apart from the methods because speed is made here: the weight is transposed, so
that a step works on contiguous rows, and updates are put off by halving, so that nearly all of them are products.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.numbers.hessian import inverse_factor

# Steps within so many inputs update each other one by one.
_LEAF = 16

# Given the input's index: sets the row `w_IO[i]` of the walked weight to what was chosen.
Choose = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Path:
    """An order of inputs, None: as they come, and U in that order. `dead_I`: inputs that were always zero, in their own
    order. `damp`: what it took to factor H."""

    order_I: Tensor | None
    u_II: Tensor
    dead_I: Tensor
    damp: float

    @classmethod
    def through(cls, h_II: Tensor, damp: float, *, by_moment: bool) -> "Path":
        """`by_moment`: the inputs with the largest second moments first. Raises BadCalibrationError."""
        dead_I = h_II.diagonal() == 0
        if not by_moment:
            u_II, _, used = inverse_factor(h_II, damp)
            return cls(None, u_II, dead_I, used)
        order_I = torch.argsort(h_II.diagonal(), descending=True, stable=True)
        u_II, _, used = inverse_factor(h_II[order_I][:, order_I], damp)
        return cls(order_I, u_II, dead_I, used)

    def start(self, w_OI: Tensor) -> Tensor:
        """The weight in this order, [I, O], without those of dead inputs: a copy that `walk` may change."""
        live_OI = w_OI.masked_fill(self.dead_I, 0)
        return (live_OI if self.order_I is None else live_OI[:, self.order_I]).T.contiguous()


def walk(w_IO: Tensor, u_II: Tensor, choose: Choose, unit: int = 1, block: int = 128) -> float:
    """Calls `choose` for every input in order and returns Σe². `w_IO` is changed in place to what was chosen.

    When `choose(i)` is called, w_IO[i] is up to date with everything chosen before, and so are the rows up to i + unit
    when i is a multiple of `unit`. `block`: inputs whose updates beyond the block are made in one product; it changes
    the speed and, but for rounding, not the result.
    """
    inputs = len(w_IO)
    diagonal: list[float] = u_II.diagonal().tolist()
    stride = unit * max(1, block // unit)
    error_BO = w_IO.new_empty(min(stride, inputs), w_IO.shape[1])
    lost = torch.zeros((), dtype=torch.float64, device=w_IO.device)
    for start in range(0, inputs, stride):
        stop = min(start + stride, inputs)
        _halves(w_IO[start:stop], u_II[start:stop, start:stop], error_BO, diagonal, choose, unit, start)
        done_BO = error_BO[: stop - start]
        w_IO[stop:].addmm_(u_II[start:stop, stop:].T, done_BO, alpha=-1)
        lost += done_BO.square().sum(dtype=torch.float64)
    return float(lost)


def _halves(
    w_BO: Tensor, u_BB: Tensor, error_BO: Tensor, diagonal: list[float], choose: Choose, unit: int, offset: int
) -> None:
    """A block, or a part of it that starts at input `offset`: the first half, its effect on the rest, the rest."""
    size = len(w_BO)
    if size <= _LEAF:
        _steps(w_BO, u_BB, error_BO, diagonal, choose, offset)
        return
    half = unit * (size // unit // 2) if size >= 2 * unit else size // 2
    _halves(w_BO[:half], u_BB[:half, :half], error_BO, diagonal, choose, unit, offset)
    w_BO[half:].addmm_(u_BB[:half, half:].T, error_BO[:half], alpha=-1)
    _halves(w_BO[half:], u_BB[half:, half:], error_BO[half:], diagonal, choose, unit, offset + half)


def _steps(w_BO: Tensor, u_BB: Tensor, error_BO: Tensor, diagonal: list[float], choose: Choose, offset: int) -> None:
    last = len(w_BO) - 1
    for i, (w_O, error_O) in enumerate(zip(w_BO.unbind(), error_BO.unbind(), strict=False)):
        error_O.copy_(w_O)
        choose(offset + i)
        error_O.sub_(w_O).div_(diagonal[offset + i])
        if i < last:
            w_BO[i + 1 :].addr_(u_BB[i, i + 1 :], error_O, alpha=-1)
