"""Wanda: a weight counts by its size times the norm of its input; the least of each output row become zero.

A Simple and Effective Pruning Approach for Large Language Models, arXiv 2306.11695, equation 1 and algorithm 1. No
weight is updated, so that it costs one pass of the data and a selection.
"""

from typing import ClassVar

import torch
from torch import Tensor

from compressor.block import Block
from compressor.errors import BadCalibrationError
from compressor.methods.owl import OwlPruning, Survey
from compressor.methods.sparsity import Share, count_of, lowest_of_each, lowest_per_row, need_divisible, put
from compressor.numbers.grids import ScaleKind
from compressor.numbers.schemes import Scheme


class Wanda:
    name: ClassVar[str] = "wanda"
    about: ClassVar[str] = "zeroes weights of least size × input norm; stored dense, no speed-up on vLLM or SGLang"
    source: ClassVar[str] = "A Simple and Effective Pruning Approach for Large Language Models, arXiv 2306.11695"
    needs_inputs: ClassVar[bool] = True
    scheme: Scheme | None = None
    scales: ScaleKind = "bfloat16"

    class Params(OwlPruning):
        pass

    def __init__(self, params: Params) -> None:
        self._survey = Survey(params)
        self.needs_survey = params.owl is not None

    def survey(self, block: Block) -> None:
        """Called with every dense block before the first is changed, when `needs_survey`."""
        self._survey.add(block.index, scores(block).values())

    def apply(self, block: Block) -> None:
        goal = self._survey.goal(block.index)
        for name, score_OI in scores(block).items():
            need_divisible(f"{block.name}.{name}", score_OI.shape[1], goal)
            put(block, name, prune(block.weight(name), score_OI, goal))


class InputNorms:
    """The root mean square of each input of a linear."""

    def __init__(self) -> None:
        self._tokens = 0
        self._total_I: Tensor | None = None

    def add(self, x_TI: Tensor) -> None:
        total_I = x_TI.square().sum(0, dtype=torch.float64)
        self._total_I = total_I if self._total_I is None else self._total_I + total_I
        self._tokens += len(x_TI)

    @property
    def value_I(self) -> Tensor:
        """[I], float32. Raises BadCalibrationError when no token came by."""
        if self._total_I is None or not self._tokens:
            raise BadCalibrationError("no calibration token reached a linear: are all rows empty?")
        return (self._total_I / self._tokens).sqrt().float()


def scores(block: Block) -> dict[str, Tensor]:
    """|W| · ‖x‖ of every linear [O, I] (equation 1), by name, from one pass of the data."""
    norms = {group.linears[0]: InputNorms() for group in block.groups()}
    block.observe({name: norm.add for name, norm in norms.items()})
    return {
        name: block.weight(name).abs() * norms[group.linears[0]].value_I
        for group in block.groups()
        for name in group.linears
    }


def prune(weight_OI: Tensor, score_OI: Tensor, goal: Share) -> Tensor:
    """The weight with the lowest scores of each output row zeroed, or n of every m successive inputs."""
    if goal.of is not None:
        return weight_OI.masked_fill(lowest_of_each(score_OI, *goal.of), 0)
    return weight_OI.masked_fill(lowest_per_row(score_OI, count_of(goal, weight_OI.shape[1])), 0)
