"""Magnitude pruning: the smallest weights become zero. Looks at weights only; the baseline of all the others.

Learning both Weights and Connections for Efficient Neural Networks, arXiv 1506.02626.
"""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from compressor.block import Block
from compressor.methods.sparsity import (
    Pruning,
    Share,
    count_of,
    lowest_jointly,
    lowest_of_each,
    lowest_per_row,
    need_divisible,
    put,
)
from compressor.numbers.grids import ScaleKind
from compressor.numbers.schemes import Scheme

Scope = Literal["tensor", "row"]


class Magnitude:
    name: ClassVar[str] = "magnitude"
    about: ClassVar[str] = "zeroes the smallest weights; stored dense, no speed-up on vLLM or SGLang"
    source: ClassVar[str] = "Learning both Weights and Connections for Efficient Neural Networks, arXiv 1506.02626"
    needs_inputs: ClassVar[bool] = False
    scheme: Scheme | None = None
    scales: ScaleKind = "bfloat16"

    class Params(Pruning):
        scope: Scope = Field("tensor", description="compare weights within a whole linear, or within each output row")

    def __init__(self, params: Params) -> None:
        self._params = params

    def apply(self, block: Block) -> None:
        goal = self._params.goal
        for name in block.linears():
            weight_OI = block.weight(name)
            need_divisible(f"{block.name}.{name}", weight_OI.shape[1], goal)
            put(block, name, prune(weight_OI, goal, self._params.scope))


def prune(weight_OI: Tensor, goal: Share, scope: Scope = "tensor") -> Tensor:
    """The weight with the entries of least |w| zeroed; `scope` is of no matter to an n:m pattern."""
    score_OI = weight_OI.abs()
    if goal.of is not None:
        return weight_OI.masked_fill(lowest_of_each(score_OI, *goal.of), 0)
    if scope == "row":
        return weight_OI.masked_fill(lowest_per_row(score_OI, count_of(goal, weight_OI.shape[1])), 0)
    return weight_OI.masked_fill(lowest_jointly(score_OI, count_of(goal, weight_OI.numel())), 0)
