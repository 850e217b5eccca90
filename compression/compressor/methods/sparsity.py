"""What the pruning methods share: how much to zero, and which entries have the lowest scores.

Pruned weights are stored dense, zeros included: vLLM and SGLang read them as any dense checkpoint and gain no speed
from them (vLLM dropped its 2:4 kernels in 0.19.1). Each method says so in its one line.
Shapes: O output rows, I inputs. Masks are True where a weight goes.
"""

from dataclasses import dataclass
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from compressor.block import Block
from compressor.errors import BadRecipeError
from compressor.methods.base import Params


@dataclass(frozen=True, slots=True)
class Share:
    """How much of a linear goes: a share of its weights, or `of` = (n, m): n of every m successive inputs of a row."""

    share: float
    of: tuple[int, int] | None = None


class Pruning(Params):
    """Parameters that every unstructured pruning method takes."""

    sparsity: float = Field(0.5, gt=0, lt=1, description="share of the weights that become zero")
    pattern: str | None = Field(
        None, pattern=r"^\d+:\d+$", description='"2:4": two of every four successive inputs of a row become zero'
    )

    @model_validator(mode="after")
    def _pattern_is_possible(self) -> Self:
        goal = self.goal
        if goal.of is not None:
            if not 0 < goal.of[0] < goal.of[1]:
                raise ValueError(f"pattern {self.pattern} must zero some and keep some: 0 < n < m")
            if "sparsity" in self.model_fields_set and abs(self.sparsity - goal.share) > 1e-9:
                raise ValueError(f"pattern {self.pattern} is a sparsity of {goal.share:g}: leave `sparsity` out")
        return self

    @property
    def goal(self) -> Share:
        """The parameters as what to zero."""
        if self.pattern is None:
            return Share(self.sparsity)
        zeroed, of = map(int, self.pattern.split(":"))
        return Share(zeroed / max(of, 1), (zeroed, of))


def count_of(goal: Share, total: int) -> int:
    """How many of `total` weights an unstructured goal zeroes: never more than its share."""
    return int(goal.share * total + 1e-9)


def lowest_jointly(score_OI: Tensor, count: int) -> Tensor:
    """Mask of exactly `count` entries with the lowest scores; the earlier of equal ones goes first."""
    return lowest_per_row(score_OI.reshape(1, -1), count).reshape(score_OI.shape)


def lowest_per_row(score_OI: Tensor, count: int) -> Tensor:
    """Mask of exactly `count` entries of every row, those with the lowest scores."""
    if count == 0:
        return torch.zeros_like(score_OI, dtype=torch.bool)
    limit_O1 = score_OI.kthvalue(count, dim=1, keepdim=True).values
    below_OI = score_OI < limit_O1
    tied_OI = score_OI == limit_O1
    wanted_O1 = count - below_OI.sum(1, keepdim=True)
    return below_OI | (tied_OI & (tied_OI.cumsum(1) <= wanted_O1))


def lowest_of_each(score_OI: Tensor, zeroed: int, of: int) -> Tensor:
    """Mask of `zeroed` entries of every `of` successive inputs of a row, those with the lowest scores."""
    parts = score_OI.reshape(score_OI.shape[0], -1, of)
    order = parts.argsort(dim=2, stable=True)
    mask = torch.zeros_like(parts, dtype=torch.bool)
    return mask.scatter_(2, order[..., :zeroed], value=True).reshape(score_OI.shape)


def need_divisible(name: str, inputs: int, goal: Share) -> None:
    """Raises BadRecipeError when a linear's inputs do not split into the pattern's groups."""
    if goal.of is not None and inputs % goal.of[1]:
        raise BadRecipeError(
            f"{name} has {inputs} inputs, which do not divide into groups of {goal.of[1]}: "
            "add it to `ignore`, or give `sparsity` in place of `pattern`"
        )


def sparsity_of(weight_OI: Tensor) -> float:
    """Share of exact zeros."""
    return 1 - int(weight_OI.count_nonzero()) / int(weight_OI.numel())


def put(block: Block, name: str, pruned_OI: Tensor) -> None:
    """The pruned weight into the block, with what the report says of it."""
    block.replace(name, pruned_OI)
    block.note(name, sparsity=round(sparsity_of(pruned_OI), 6))
