"""SparseGPT: zeroes weights one input at a time and lets the weights after it make up for what is lost.

SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot, arXiv 2301.00774, algorithm 1. The weights of
128 inputs are chosen together, over all output rows, by w² / U_ii²; an n:m pattern chooses those of every m inputs from
the weights as they are by then. U and the walk over inputs are GPTQ's (columns.py), with 0 in the place of the nearest
code. Shapes: O output rows, I inputs, U inputs that are chosen together.
"""

from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from compressor.block import Block
from compressor.families import Group
from compressor.methods.columns import walk
from compressor.methods.owl import OwlPruning, Survey
from compressor.methods.sparsity import Share, count_of, lowest_jointly, lowest_of_each, need_divisible, put
from compressor.methods.wanda import scores
from compressor.numbers.grids import ScaleKind
from compressor.numbers.hessian import Hessian, inverse_factor, output_error
from compressor.numbers.schemes import Scheme


class SparseGPT:
    name: ClassVar[str] = "sparsegpt"
    about: ClassVar[str] = "zeroes weights and updates the rest to make up; stored dense, no speed-up on vLLM or SGLang"
    source: ClassVar[str] = "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot, arXiv 2301.00774"
    needs_inputs: ClassVar[bool] = True
    scheme: Scheme | None = None
    scales: ScaleKind = "bfloat16"

    class Params(OwlPruning):
        block_size: int = Field(128, ge=1, description="inputs whose zeros are chosen together")
        damp: float = Field(0.01, gt=0, description="added to the diagonal of H, as a share of its mean")

        @model_validator(mode="after")
        def _blocks_hold_whole_groups(self) -> Self:
            of = self.goal.of
            if of is not None and self.block_size % of[1]:
                raise ValueError(f"block_size {self.block_size} must be a multiple of {of[1]} for {self.pattern}")
            return self

    def __init__(self, params: Params) -> None:
        self._params = params
        self._survey = Survey(params)
        self.needs_survey = params.owl is not None

    def survey(self, block: Block) -> None:
        """Called with every dense block before the first is changed, when `needs_survey`."""
        self._survey.add(block.index, scores(block).values())

    def apply(self, block: Block) -> None:
        goal = self._survey.goal(block.index)
        hessians = {}
        for group in block.groups():
            inputs = block.weight(group.linears[0]).shape[1]
            need_divisible(f"{block.name}.{group.linears[0]}", inputs, goal)
            hessians[group.linears[0]] = Hessian(inputs)
        block.observe({name: hessian.add for name, hessian in hessians.items()})
        for group in block.groups():
            self._prune(block, group, hessians.pop(group.linears[0]), goal)

    def _prune(self, block: Block, group: Group, hessian: Hessian, goal: Share) -> None:
        """Linears with the same inputs are stacked: one factor and one run over the inputs for all of them."""
        h_II = hessian.matrix
        u_II, dead_I, damp = inverse_factor(h_II, self._params.damp)
        weights = [block.weight(name) for name in group.linears]
        heights = [len(weight) for weight in weights]
        stacked_OI = torch.cat(weights).masked_fill_(dead_I, 0)
        pruned_OI, _ = prune(stacked_OI, u_II, goal, self._params.block_size, heights)
        for name, before_OI, pruned in zip(group.linears, weights, pruned_OI.split(heights), strict=True):
            block.note(name, error=output_error(before_OI, pruned, h_II))
            put(block, name, pruned)
        if damp != self._params.damp:
            block.note(group.linears, damp=damp)


def prune(
    weight_OI: Tensor, u_II: Tensor, goal: Share, block_size: int = 128, heights: Sequence[int] | None = None
) -> tuple[Tensor, float]:
    """The pruned and updated weight, and the error tr((W−Ŵ) H (W−Ŵ)ᵀ) that it has with the damped H.

    `heights`: output rows of each linear where several are stacked; each is given its own share of zeros.
    """
    w_IO = weight_OI.T.clone(memory_format=torch.contiguous_format)
    rows = [w_IO.shape[1]] if heights is None else list(heights)
    diagonal_I1 = u_II.diagonal()[:, None]
    gone_IO = torch.zeros_like(w_IO, dtype=torch.bool)
    unit = block_size if goal.of is None else goal.of[1]

    def choose(i: int) -> None:
        if i % unit == 0:
            ahead = slice(i, i + unit)
            score_UO = (w_IO[ahead] / diagonal_I1[ahead]).square_()
            gone_IO[ahead] = _lowest(score_UO, goal, rows, before=i)
        w_IO[i].masked_fill_(gone_IO[i], 0)

    lost = walk(w_IO, u_II, choose, unit, block_size)
    return w_IO.T.contiguous(), lost


def _lowest(score_UO: Tensor, goal: Share, rows: Sequence[int], before: int) -> Tensor:
    """Mask of the inputs U that are chosen together. `before`: inputs that were chosen already, so that the count of
    zeros is right over all of them whatever the rounding in each."""
    if goal.of is not None:
        return lowest_of_each(score_UO.T, *goal.of).T
    after = before + len(score_UO)
    counts = [count_of(goal, height * after) - count_of(goal, height * before) for height in rows]
    parts = score_UO.split(list(rows), 1)
    return torch.cat([lowest_jointly(part, count) for part, count in zip(parts, counts, strict=True)], 1)
