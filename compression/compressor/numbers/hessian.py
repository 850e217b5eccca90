"""The second moments of a linear's inputs, and the factor of their inverse that GPTQ, SparseGPT and SpQR step with.

H = (2/n) Σ xᵀx is the Hessian of the squared output error of one output row (GPTQ, arXiv 2210.17323, section 3).
"""

import torch
from torch import Tensor

from compressor.errors import BadCalibrationError

# Inputs a tile of the product: only tiles on and above the diagonal are computed.
_TILE = 512
_RETRIES = 3
# Output rows that an error is measured on: all of a wide layer's would cost as much as solving it.
_ROWS = 512


class Hessian:
    """Sums up inputs as they come; padding must be left out before. Lives on the device of what it is fed."""

    def __init__(self, inputs: int) -> None:
        self.inputs = inputs
        self.tokens = 0
        self._upper_II: Tensor | None = None

    def add(self, x_TI: Tensor) -> None:
        """A running mean, H ← H·n/(n+m) + (2/(n+m)) xᵀx: no sum grows with the number of tokens."""
        if not len(x_TI):
            return
        if self._upper_II is None:
            self._upper_II = torch.zeros(self.inputs, self.inputs, dtype=x_TI.dtype, device=x_TI.device)
        total = self.tokens + len(x_TI)
        for start in range(0, self.inputs, _TILE):
            tile = self._upper_II[start : start + _TILE, start:]
            left_IT = x_TI[:, start : start + _TILE].T
            tile.addmm_(left_IT, x_TI[:, start:], beta=self.tokens / total, alpha=2 / total)
        self.tokens = total

    @property
    def matrix(self) -> Tensor:
        """H [I, I], symmetric. Raises BadCalibrationError when no token came by."""
        upper_II = self._seen()
        return upper_II.triu() + upper_II.triu(1).T

    @property
    def diagonal_mean_square(self) -> Tensor:
        """Mean of x² of each input, [I]."""
        return self._seen().diagonal() / 2

    def _seen(self) -> Tensor:
        if self._upper_II is None:
            raise BadCalibrationError("no calibration token reached a linear: are all rows empty?")
        return self._upper_II


def inverse_factor(h_II: Tensor, damp: float) -> tuple[Tensor, Tensor, float]:
    """Upper triangular U with UᵀU = (H + λ·mean(diag H)·I)⁻¹, the dead inputs [I] (bool), and the λ that was used.

    Dead inputs are those that were always zero; they get H_ii = 1, and their weights should be set to 0. When H is not
    positive definite in its dtype, float64 is tried, then λ ×10, up to three times.
    U is the inverse of the upper triangular R with H = R·Rᵀ (a Cholesky factor from the last input to the first):
    half the work of factoring, inverting and factoring again, and only the condition of √H enters.
    Raises BadCalibrationError when H is not finite.
    """
    diagonal_I = h_II.diagonal()
    dead_I = diagonal_I == 0
    live_I = torch.where(dead_I, 1.0, diagonal_I).double()
    for attempt in range(_RETRIES + 1):
        used = damp * 10**attempt
        for dtype in dict.fromkeys((h_II.dtype, torch.float64)):
            flipped_II = h_II.to(dtype).flip(0, 1)
            flipped_II.diagonal().copy_((live_I + used * live_I.mean()).flip(0))
            factor_II, info = torch.linalg.cholesky_ex(flipped_II)
            if int(info) == 0 and bool(factor_II.diagonal().isfinite().all()):
                return _inverse_upper(factor_II.flip(0, 1)).to(h_II.dtype), dead_I, used
    raise BadCalibrationError(
        "the inputs of a linear have no finite second moments: does the model give NaN on the calibration data?"
    )


def output_error(before_OI: Tensor, after_OI: Tensor, h_II: Tensor) -> float:
    """‖X(W−Ŵ)ᵀ‖² / ‖XWᵀ‖² through the second moments, on 512 evenly spaced output rows at most."""
    every = -(-len(before_OI) // _ROWS)
    kept_OI = before_OI[::every]
    lost_OI = kept_OI - after_OI[::every]
    lost, kept = (float(((part @ h_II) * part).sum(dtype=torch.float64)) for part in (lost_OI, kept_OI))
    return lost / kept if kept else 0.0


def _inverse_upper(r_II: Tensor) -> Tensor:
    """By halves, so that nearly all of it is matrix products: (A B; 0 C)⁻¹ = (A⁻¹ −A⁻¹BC⁻¹; 0 C⁻¹)."""
    size = len(r_II)
    if size <= _TILE:
        return torch.linalg.solve_triangular(r_II, torch.eye(size, dtype=r_II.dtype, device=r_II.device), upper=True)
    half = size // 2
    inverse_II = torch.zeros_like(r_II)
    inverse_II[:half, :half] = _inverse_upper(r_II[:half, :half])
    inverse_II[half:, half:] = _inverse_upper(r_II[half:, half:])
    inverse_II[:half, half:] = -(inverse_II[:half, :half] @ r_II[:half, half:]) @ inverse_II[half:, half:]
    return inverse_II
