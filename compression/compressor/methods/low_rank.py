"""Low rank: each weight as a product of two thin matrices, W ≈ B·A, by its singular values or by those of its outputs.

Plain: the truncated SVD, which loses the least of the weight (Eckart and Young). Whitened, as in "SVD-LLM:
Truncation-aware Singular Value Decomposition for Large Language Model Compression" (arXiv 2403.07378), section 3.1: if
XᵀX = C·Cᵀ the SVD of W·C is cut, and ‖(W − W′)Xᵀ‖² is exactly the sum of the squared singular values that were dropped.

Engines read one weight a linear, so the product is stored: the checkpoint is no smaller and no faster. What low rank
would save is counted in the facts (`kept_weights`). Shapes: O outputs, I inputs, K = min(O, I), R rank.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from compressor.block import Block
from compressor.errors import BadCalibrationError
from compressor.methods.base import Params as BaseParams
from compressor.numbers.hessian import Hessian, output_error
from compressor.numbers.schemes import Scheme

_RETRIES = 3
# A whole SVD of a large matrix for one singular value in this many is waste.
_LARGE, _FEW = 1024, 16
_ROUNDS = 8


class LowRank:
    """`ratio` counts the weights of the factors, R·(O + I), against the O·I of the dense linear."""

    name: ClassVar[str] = "low-rank"
    about: ClassVar[str] = "keeps the largest singular values of each weight, or of its outputs"
    source: ClassVar[str] = (
        "SVD-LLM: Truncation-aware Singular Value Decomposition for Large Language Model Compression, arXiv 2403.07378"
    )
    needs_inputs: ClassVar[bool] = True

    class Params(BaseParams):
        ratio: float = Field(0.8, gt=0, le=1, description="weights that the two factors may have, as a share of before")
        rank: int | None = Field(None, ge=1, description="the same rank for every linear, in place of `ratio`")
        whitened: bool = Field(True, description="keep most of the outputs on the calibration data, not of the weight")
        allocation: Literal["even", "block", "model"] = Field(
            "even",
            description="the same ratio for each linear, or ranks where they matter most in a block or the model",
        )
        damp: float = Field(1e-4, ge=0, description="added to the diagonal of XᵀX, as a share of its mean")

        @model_validator(mode="after")
        def _is_one_budget(self) -> Self:
            if self.rank is not None and self.allocation != "even":
                raise ValueError(f"rank fixes every linear's rank: allocation: {self.allocation} wants a ratio")
            return self

    def __init__(self, params: BaseParams) -> None:
        assert isinstance(params, LowRank.Params)
        self._params = params
        self._spectra: dict[str, Spectrum] = {}

    @property
    def scheme(self) -> Scheme | None:
        return None

    @property
    def needs_survey(self) -> bool:
        return self._params.allocation == "model"

    def survey(self, block: Block) -> None:
        """Singular values of the whole model, before any block is changed."""
        self._spectra |= {f"{block.name}.{name}": cut.spectrum for name, cut in self._cuts(block).items()}

    def apply(self, block: Block) -> None:
        moments = second_moments(block)
        cuts = self._cuts(block, moments)
        for name, rank in self._ranks(block.name, cuts).items():
            before_OI = block.weight(name)
            a_RI, b_OR = cuts[name].factors(rank)
            block.replace(name, b_OR @ a_RI)
            error = output_error(before_OI, block.weight(name), moments[name])
            block.note(name, rank=rank, kept_weights=rank * sum(before_OI.shape), error=error)

    def _cuts(self, block: Block, moments: Mapping[str, Tensor] | None = None) -> dict[str, "Cut"]:
        if not self._params.whitened:
            return {name: decompose(block.weight(name)) for name in block.linears()}
        roots = whitenings(block, moments or second_moments(block), self._params.damp)
        return {name: decompose(block.weight(name), root_II) for name, root_II in roots.items()}

    def _ranks(self, prefix: str, cuts: Mapping[str, "Cut"]) -> dict[str, int]:
        if self._params.rank is not None:
            return {name: min(self._params.rank, len(cut.sigma_K)) for name, cut in cuts.items()}
        if self._params.allocation == "even":
            return {name: max(1, int(self._params.ratio * cut.spectrum.break_even)) for name, cut in cuts.items()}
        own = {f"{prefix}.{name}": cut.spectrum for name, cut in cuts.items()}
        ranks = allocate(self._spectra if self.needs_survey else own, self._params.ratio)
        return {name: ranks[f"{prefix}.{name}"] for name in cuts}


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Singular values of a linear with `outs` outputs and `ins` inputs, falling."""

    sigma_K: Tensor
    outs: int
    ins: int

    @property
    def break_even(self) -> float:
        """The rank at which factors have as many weights as the dense matrix."""
        return self.outs * self.ins / (self.outs + self.ins)


@dataclass(frozen=True, slots=True)
class Cut:
    """A weight taken apart: W = U·diag(σ)·right, σ falling. `right_KI`: Vᵀ, or Vᵀ·C⁻¹ where the SVD was of W·C."""

    u_OK: Tensor
    sigma_K: Tensor
    right_KI: Tensor

    @property
    def spectrum(self) -> Spectrum:
        return Spectrum(self.sigma_K, len(self.u_OK), self.right_KI.shape[1])

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """A [R, I] and B [O, R] with W ≈ B·A; √σ on each side, so that both fit into small floats alike."""
        root_R = self.sigma_K[:rank].sqrt()
        return root_R[:, None] * self.right_KI[:rank], self.u_OK[:, :rank] * root_R

    def lost(self, rank: int) -> float:
        """‖W − B·A‖, or ‖(W − B·A)·C‖ where the SVD was of W·C."""
        return float(self.sigma_K[rank:].double().square().sum().sqrt())


def decompose(w_OI: Tensor, c_II: Tensor | None = None, leading: int | None = None) -> Cut:
    """The SVD of W·C, its right side freed of C by a triangular solve. `c_II`: lower triangular; None: the identity.

    `leading`: how many singular values are enough; where these are few of many, only they are computed.
    """
    seen_OI = w_OI if c_II is None else w_OI @ c_II
    is_few = leading is not None and min(w_OI.shape) >= _LARGE and leading * _FEW <= min(w_OI.shape)
    u_OK, sigma_K, vt_KI = largest(seen_OI, leading or 1) if is_few else _svd(seen_OI)
    if c_II is not None:
        vt_KI = torch.linalg.solve_triangular(c_II, vt_KI, upper=False, left=False)
    return Cut(u_OK, sigma_K, vt_KI)


def whitening(h_II: Tensor, damp: float) -> Tensor:
    """Lower triangular C with C·Cᵀ = H + λ·mean(diag H)·I, in H's dtype; in float64, then with λ ×10, where H is not
    positive definite. Raises BadCalibrationError when H is not finite."""
    mean = h_II.diagonal().mean()
    for attempt in range(_RETRIES + 1):
        damped_II = h_II.clone()
        damped_II.diagonal().add_(max(damp, 1e-8 * bool(attempt)) * 10**attempt * mean)
        for dtype in dict.fromkeys((h_II.dtype, torch.float64)):
            c_II, info = torch.linalg.cholesky_ex(damped_II.to(dtype))
            if int(info) == 0 and bool(c_II.isfinite().all()):
                return c_II.to(h_II.dtype)
    raise BadCalibrationError(
        "the inputs of a linear have no usable second moments: are all of them zero, or not finite?"
    )


def allocate(spectra: Mapping[str, Spectrum], ratio: float) -> dict[str, int]:
    """Ranks within `ratio` of all weights together: directions in the order of what they keep of a linear's output (or
    weight), σ²/Σσ², for each of the O + I weights they cost. None gets a rank at which dense would be smaller."""
    budget = ratio * sum(spectrum.outs * spectrum.ins for spectrum in spectra.values())
    ranks = dict.fromkeys(spectra, 1)
    prices = {name: spectrum.outs + spectrum.ins for name, spectrum in spectra.items()}
    budget -= sum(prices.values())
    worth = []
    for name, spectrum in spectra.items():
        squares_K = spectrum.sigma_K.double().square()
        gains_K = squares_K / squares_K.sum().clamp(min=torch.finfo(torch.float64).tiny) / prices[name]
        worth += [(gain, name) for gain in gains_K[1 : int(spectrum.break_even)].tolist()]
    for _, name in sorted(worth, key=lambda pair: -pair[0]):
        if prices[name] <= budget:
            budget -= prices[name]
            ranks[name] += 1
    return ranks


def second_moments(block: Block) -> dict[str, Tensor]:
    """H [I, I] of the inputs of every linear that may be changed; linears of a group share one."""
    groups = block.groups()
    hessians = {group.linears[0]: Hessian(block.weight(group.linears[0]).shape[1]) for group in groups}
    block.observe({name: hessian.add for name, hessian in hessians.items()})
    return {name: hessians[group.linears[0]].matrix for group in groups for name in group.linears}


def whitenings(block: Block, moments: Mapping[str, Tensor], damp: float) -> dict[str, Tensor]:
    """C of every linear that may be changed; linears of a group share one."""
    roots: dict[str, Tensor] = {}
    for group in block.groups():
        roots |= dict.fromkeys(group.linears, whitening(moments[group.linears[0]], damp))
    return roots


def largest(matrix_OI: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """U [O, count], σ and Vᵀ of about the largest singular values, by power iterations on twice as many directions.

    "Finding structure with randomness" (arXiv 0909.4061), algorithm 4.4. What a cut at `count` loses is within 0.2 % of
    the least even where singular values hardly fall, as those of rounding errors do.
    """
    start = torch.randn(
        matrix_OI.shape[1], 2 * count, generator=torch.Generator().manual_seed(0), dtype=matrix_OI.dtype
    )
    v_IN = start.to(matrix_OI.device)
    for _ in range(_ROUNDS):
        u_ON, _ = torch.linalg.qr(matrix_OI @ v_IN)
        v_IN, _ = torch.linalg.qr(matrix_OI.T @ u_ON)
    u_ON, sigma_N, vt_NN = _svd(matrix_OI @ v_IN)
    return u_ON[:, :count], sigma_N[:count], (vt_NN @ v_IN.T)[:count]


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In the matrix's dtype; in float64 where that does not converge."""
    try:
        u, sigma, vt = torch.linalg.svd(matrix, full_matrices=False)
    except torch.linalg.LinAlgError:
        u, sigma, vt = (part.to(matrix.dtype) for part in torch.linalg.svd(matrix.double(), full_matrices=False))
    return u, sigma, vt
