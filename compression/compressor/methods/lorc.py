"""LoRC: what quantization loses of a weight, its largest part kept as a low-rank product beside the quantized weight.

"ZeroQuant-V2" (arXiv 2303.08302), section 4, and "ZeroQuant-FP" (arXiv 2307.09782): with Ŵ = Q(W), the error W − Ŵ is
cut to rank R by its SVD, and y = Ŵx + B(Ax). That is what an engine computes for a LoRA over a quantized base, so the
factors are written as one (checkpoint/adapter.py). Any method that quantizes without rescaling can be the base.

Options: `whitened` cuts the error by what it does to the outputs ("EoRA", arXiv 2410.21271); `iterations` quantizes
W − B·A again and cuts anew ("LoftQ", arXiv 2310.08659); `start: low-rank` begins with the largest part of the weight
itself in the factors, and quantizes what is left. Shapes: O outputs, I inputs, R rank.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator
from torch import Tensor, nn

from compressor.block import Block
from compressor.checkpoint.source import dtype_of
from compressor.errors import BadRecipeError
from compressor.methods.base import Params as BaseParams
from compressor.methods.low_rank import decompose, second_moments, whitenings
from compressor.methods.registry import build
from compressor.numbers.grids import ScaleKind
from compressor.numbers.hessian import output_error
from compressor.numbers.schemes import Scheme
from compressor.recipe import Step

# A [R, I] and B [O, R] by linear.
Factors = dict[str, tuple[Tensor, Tensor]]
# Those that leave the meaning of a weight as it is: AWQ and SmoothQuant rescale it, and belong in a step before.
BASES = ("rtn", "gptq", "fp8", "nvfp4", "mxfp4", "fp6")


class LoRC:
    """Wraps the method that quantizes: it needs the weight before and after."""

    name: ClassVar[str] = "lorc"
    about: ClassVar[str] = "quantizes, and keeps the largest part of the error as a LoRA adapter beside the weights"
    source: ClassVar[str] = (
        "ZeroQuant-V2: Exploring Post-training Quantization in LLMs from Comprehensive Study to Low Rank Compensation, "
        "arXiv 2303.08302"
    )
    needs_inputs: ClassVar[bool] = True

    class Params(BaseParams):
        base: Step = Field(
            Step(method="gptq", params={"scheme": "W4A16"}),
            description=f"the method that quantizes: {', '.join(BASES)}",
        )
        rank: int = Field(32, ge=0, le=512, description="columns of the factors; adds 16·R·(1/O + 1/I) bits a weight")
        whitened: bool = Field(True, description="cut the error by its effect on the outputs (EoRA), not by its size")
        start: Literal["quantized", "low-rank"] = Field(
            "quantized", description="quantize the weight, or (low-rank) what its largest singular values leave of it"
        )
        iterations: int = Field(1, ge=1, le=20, description="rounds of quantizing W − B·A and cutting again (LoftQ)")
        damp: float = Field(1e-4, ge=0, description="added to the diagonal of XᵀX, as a share of its mean")

        @field_validator("base")
        @classmethod
        def _keeps_the_weights_meaning(cls, step: Step) -> Step:
            if step.method not in BASES:
                raise ValueError(f"{step.method} cannot be the base; these can: {', '.join(BASES)}")
            try:
                _built(step)
            except BadRecipeError as error:
                raise ValueError(str(error)) from None
            return step

    def __init__(self, params: BaseParams) -> None:
        assert isinstance(params, LoRC.Params)
        self._params = params
        self._base = _built(params.base)

    @property
    def scheme(self) -> Scheme | None:
        scheme: Scheme | None = self._base.scheme
        return scheme

    @property
    def scales(self) -> ScaleKind:
        kind: ScaleKind = self._base.scales
        return kind

    @scales.setter
    def scales(self, kind: ScaleKind) -> None:
        self._base.scales = kind

    def apply(self, block: Block) -> None:
        before = {name: block.weight(name) for name in block.linears()}
        moments = second_moments(block)
        roots = whitenings(block, moments, self._params.damp) if self._params.whitened else {}
        dtype = dtype_of(block.config)

        def cut(name: str, left_OI: Tensor) -> tuple[Tensor, Tensor]:
            factors = decompose(left_OI, roots.get(name), self._params.rank).factors(self._params.rank)
            return factors[0].to(dtype), factors[1].to(dtype)

        factors: Factors = {}
        if self._params.start == "low-rank":
            factors = {name: cut(name, w_OI) for name, w_OI in before.items()}
        for _ in range(self._params.iterations):
            self._quantize(block, before, factors)
            factors = {name: cut(name, w_OI - block.weight(name)) for name, w_OI in before.items()}
        for name, w_OI in before.items():
            self._keep(block, name, w_OI, factors[name], moments[name])

    def _quantize(self, block: Block, before: Mapping[str, Tensor], factors: Factors) -> None:
        """W − B·A, by the base; inputs inside the block are those of the whole, with B·A beside."""
        for name, w_OI in before.items():
            block.replace(name, w_OI - _product(factors[name]) if name in factors else w_OI)
        with beside(block, factors):
            self._base.apply(block)

    def _keep(self, block: Block, name: str, w_OI: Tensor, factors: tuple[Tensor, Tensor], h_II: Tensor) -> None:
        alone = output_error(w_OI, block.weight(name), h_II)
        if self._params.rank:
            block.adapt(name, *factors)
        error = output_error(w_OI, block.weight(name), h_II)
        bits = sum(factor.numel() * factor.element_size() * 8 for factor in factors)
        block.note(name, error=error, error_without_adapter=alone, rank=len(factors[0]), adapter_bits=bits)


@contextmanager
def beside(block: Block, factors: Factors) -> Iterator[None]:
    """While it lasts, linears add B·A·x to what they compute."""
    hooks = []
    for name, (a_RI, b_OR) in factors.items():

        def add(
            _: nn.Module, args: tuple[Tensor, ...], out: Tensor, pair: tuple[Tensor, Tensor] = (a_RI, b_OR)
        ) -> Tensor:
            return out + (args[0] @ pair[0].to(out.dtype).T) @ pair[1].to(out.dtype).T

        hooks.append(block.linear(name).register_forward_hook(add))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _product(factors: tuple[Tensor, Tensor]) -> Tensor:
    return factors[1].float() @ factors[0].float()


def _built(step: Step) -> Any:
    """The base, as the registry makes it. Raises BadRecipeError with the path inside `base`."""
    (method,) = build([step], "base")
    return method
