"""The new axes of the residual stream: principal components of its second moments, and how many of them stay.

SliceGPT (arXiv 2401.15024), section 3.3: Q are the eigenvectors of Σ xᵀx, the largest eigenvalue first. Pure functions,
in float64: an axis that is off by 1e-7 costs nothing, one that is not orthogonal to the others changes the model.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.errors import BadCalibrationError, BadRecipeError


@dataclass(frozen=True, slots=True)
class Basis:
    """`q_DK`: orthonormal columns, float64. `kept`: the share of the stream's energy that lies in them."""

    q_DK: Tensor
    kept: float


def second_moments(parts: Iterable[Tensor]) -> Tensor:
    """Σ xᵀx over rows [T, D] that come in parts: [D, D], float64. Raises BadCalibrationError without rows."""
    total: Tensor | None = None
    for x_TD in parts:
        wide_TD = x_TD.double()
        product_DD = wide_TD.T @ wide_TD
        total = product_DD if total is None else total.add_(product_DD)
    if total is None or not bool(total.isfinite().all()):
        raise BadCalibrationError("the calibration data gives no finite activations: are all rows empty?")
    return total


def principal(c_DD: Tensor, keep: int, damp: float) -> Basis:
    """The `keep` principal axes of second moments `c_DD`. `damp`: this share of the mean diagonal is added to it, for
    directions that the data never took; it moves no axis."""
    damped_DD = c_DD.clone()
    damped_DD.diagonal().add_(damp * c_DD.diagonal().mean())
    _, axes_DD = torch.linalg.eigh(damped_DD)
    return span(c_DD, axes_DD.flip(1)[:, :keep])


def span(c_DD: Tensor, q_DK: Tensor) -> Basis:
    """The axes `q_DK` with the share of the energy in `c_DD` that they hold."""
    kept = torch.einsum("dk,de,ek->", q_DK, c_DD, q_DK) if q_DK.shape[1] < len(c_DD) else c_DD.trace()
    return Basis(q_DK, float(kept / c_DD.trace()) if float(c_DD.trace()) else 1.0)


def turned(basis: Basis, generator: torch.Generator) -> Basis:
    """The same span seen from random axes inside it: nothing is lost or won, and no kept dimension is larger than the
    others, which helps who quantizes next."""
    turn_KK = random_axes(basis.q_DK.shape[1], basis.q_DK.shape[1], generator).to(basis.q_DK.device)
    return Basis(basis.q_DK @ turn_KK, basis.kept)


def random_axes(size: int, keep: int, generator: torch.Generator) -> Tensor:
    """Orthonormal columns [size, keep], float64, on the CPU, drawn evenly among all (QR with the signs of R)."""
    q_DD, r_DD = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return (q_DD * r_DD.diagonal().sign())[:, :keep]


def kept_width(width: int, sparsity: float, multiple: int) -> int:
    """int((1 − s)·d), down to a multiple that kernels like. Raises BadRecipeError when nothing stays."""
    keep = int((1 - sparsity) * width) // multiple * multiple
    if keep < 1:
        raise BadRecipeError(f"sparsity {sparsity} leaves none of {width} dimensions (in steps of {multiple})")
    return keep
