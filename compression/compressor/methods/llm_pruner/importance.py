"""How much a coupled structure matters: from weights, gradients and squared gradients to one number each.

LLM-Pruner, arXiv 2305.11627, section 3.2. With L the loss, w a weight, g = ∂L/∂w and h = E[g²] over samples (the
diagonal of the Fisher information, in place of the Hessian's), removing w changes L by about −w·g + ½·w²·h.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from compressor.methods.llm_pruner.groups import Structures

Importance = Literal["param_first", "param_second", "param_mix", "vectorize", "random", "l1", "l2"]
Reduce = Literal["sum", "mean", "max", "prod", "last-only"]
NEED_GRADIENTS = frozenset({"param_first", "param_second", "param_mix", "vectorize"})
NEED_SQUARES = frozenset({"param_second", "param_mix"})


def score(kind: Importance, w: Tensor, g: Tensor | None = None, h: Tensor | None = None) -> Tensor:
    """The importance of each weight, same shape as `w`; signed for `vectorize`, whose sums are made positive later."""
    if kind == "l1":
        return w.abs()
    if kind == "l2":
        return w.square()
    assert g is not None
    if kind == "param_first":
        return (w * g).abs()
    if kind == "vectorize":
        return w * g
    assert h is not None
    if kind == "param_second":
        return w.square() * h
    return (w * g - 0.5 * w.square() * h).abs()


def combine(sums: Sequence[Tensor], reduce: Reduce) -> Tensor:
    """One number a structure from those of its parts, each [structures]; the last part is the one that writes out."""
    parts = torch.stack(list(sums))
    if reduce == "last-only":
        return parts[-1].abs()
    if reduce == "sum":
        return parts.sum(0).abs()
    if reduce == "mean":
        return parts.mean(0).abs()
    return parts.abs().amax(0) if reduce == "max" else parts.abs().prod(0)


def lowest(importance: Tensor, count: int, gone: Tensor) -> Tensor:
    """The indices of the `count` least important structures, in order; those in `gone` are among them."""
    ranked = importance.double().clone()
    ranked[gone] = -torch.inf
    return ranked.argsort(stable=True)[:count].sort().values


def assess(
    kind: Importance,
    reduce: Reduce,
    structures: Structures,
    weights: Sequence[Tensor],
    gradients: Sequence[tuple[Tensor, Tensor | None]] | None,
) -> Tensor:
    """The importance of all structures of one kind in a block, [structures]; tensors in the order of the parts."""
    pairs = gradients if gradients is not None else [(None, None)] * len(weights)
    sums = [
        part.sums(score(kind, weight, *pair).double())
        for part, weight, pair in zip(structures.parts, weights, pairs, strict=True)
    ]
    return combine(sums, reduce)
