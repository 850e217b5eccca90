"""SparseGPT: zeroes weights one input at a time and lets the weights after it make up for what is lost.

SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot, arXiv 2301.00774, algorithm 1. The weights of
128 inputs are chosen together, over all output rows, by w² / U_ii²; an n:m pattern chooses every m inputs from the
weights as they are by then. U is upper triangular with UᵀU = H⁻¹ and H the second moments of the inputs, so that a
step's error e = w_i / U_ii is made up for by W[:, i+1:] −= e ⊗ U[i, i+1:], and Σe² is the output error exactly.
Shapes: O output rows, I inputs, B inputs of a block. The work is done on the transposed weight: a step reads rows.
"""

from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from compressor.block import Block
from compressor.families import Group
from compressor.methods.owl import OwlPruning, Survey
from compressor.methods.sparsity import Share, count_of, lowest_jointly, lowest_of_each, need_divisible, put
from compressor.methods.wanda import scores
from compressor.numbers.grids import ScaleKind
from compressor.numbers.hessian import Hessian, inverse_factor
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
        u_II, dead_I, damp = inverse_factor(hessian.matrix, self._params.damp)
        weights = [block.weight(name) for name in group.linears]
        heights = [len(weight) for weight in weights]
        stacked_OI = torch.cat(weights).masked_fill_(dead_I, 0)
        pruned_OI, _ = prune(stacked_OI, u_II, goal, self._params.block_size, heights)
        for name, pruned in zip(group.linears, pruned_OI.split(heights), strict=True):
            put(block, name, pruned)
        if damp != self._params.damp:
            block.note(group.linears, damp=damp)


def prune(
    weight_OI: Tensor, u_II: Tensor, goal: Share, block_size: int = 128, heights: Sequence[int] | None = None
) -> tuple[Tensor, float]:
    """The pruned and updated weight, and the error tr((W−Ŵ) H (W−Ŵ)ᵀ) that it has.

    `heights`: output rows of each linear where several are stacked; each is given its own share of zeros.
    """
    w_IO = weight_OI.T.clone(memory_format=torch.contiguous_format)
    inputs, outputs = w_IO.shape
    lost = 0.0
    for start in range(0, inputs, block_size):
        stop = min(start + block_size, inputs)
        counts = [count_of(goal, height * stop) - count_of(goal, height * start) for height in heights or [outputs]]
        error_BO = _prune_block(w_IO[start:stop], u_II[start:stop, start:stop], goal, counts, heights or [outputs])
        w_IO[stop:].addmm_(u_II[start:stop, stop:].T, error_BO, alpha=-1)
        lost += float(error_BO.square().sum(dtype=torch.float64))
    return w_IO.T.contiguous(), lost


def _prune_block(w_BO: Tensor, u_BB: Tensor, goal: Share, counts: Sequence[int], heights: Sequence[int]) -> Tensor:
    """Prunes the inputs of one block in place, and returns e of each step."""
    diagonal_B1 = u_BB.diagonal()[:, None]
    if goal.of is None:
        parts = (w_BO / diagonal_B1).square_().split(list(heights), 1)
        gone_BO = torch.cat([lowest_jointly(part, count) for part, count in zip(parts, counts, strict=True)], 1)
    else:
        gone_BO = torch.zeros_like(w_BO, dtype=torch.bool)
    error_BO = torch.zeros_like(w_BO)
    for i in range(len(w_BO)):
        if goal.of is not None and i % goal.of[1] == 0:
            ahead = slice(i, i + goal.of[1])
            score_OM = (w_BO[ahead] / diagonal_B1[ahead]).square_().T
            gone_BO[ahead] = lowest_of_each(score_OM, *goal.of).T
        error_BO[i] = w_BO[i].where(gone_BO[i], 0) / diagonal_B1[i]
        w_BO[i + 1 :].addr_(u_BB[i, i + 1 :], error_BO[i], alpha=-1)
        w_BO[i].masked_fill_(gone_BO[i], 0)
    return error_BO
