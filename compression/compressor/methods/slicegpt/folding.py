"""A block's norms made free of parameters, so that a rotation passes through them: rms(xQ) = rms(x)Q.

SliceGPT (arXiv 2401.15024), section 3.2. The scale γ moves into the linears that read the norm. A LayerNorm also
gives them its shift β, and becomes an RMSNorm once every writer to the residual stream is mean-free. For an RMSNorm
that would be wrong: there the mean is part of the signal, and is left alone.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from compressor.families import Family, Group


def fold(tensors: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """The tensors of a block, without its norms; names relative to it."""
    folded = dict(tensors)
    for group in readers(family):
        gamma_D, beta_D = folded.pop(f"{group.source}.weight", None), folded.pop(f"{group.source}.bias", None)
        for name in group.linears:
            fold_reader(folded, name, gamma_D, beta_D)
    if family.norm == "layer":
        for name in (name for group in writers(family) for name in group.linears):
            center_writer(folded, name)
        for name in family.linears:  # shifts made some biases: an architecture has all or none
            folded.setdefault(f"{name}.bias", torch.zeros_like(folded[f"{name}.weight"][:, 0]))
    return folded


def fold_reader(tensors: dict[str, Tensor], name: str, gamma_D: Tensor | None, beta_D: Tensor | None) -> None:
    """W(γ·x̂ + β) + b = (W·diag γ)x̂ + (b + Wβ), in place."""
    w_OD = tensors[f"{name}.weight"]
    if beta_D is not None:
        tensors[f"{name}.bias"] = w_OD @ beta_D + tensors.get(f"{name}.bias", 0)
    if gamma_D is not None:
        tensors[f"{name}.weight"] = w_OD * gamma_D


def center_writer(tensors: dict[str, Tensor], name: str) -> None:
    """What the linear adds to the stream has mean zero: a LayerNorm would have taken the mean out anyway. In place."""
    w_DI = tensors[f"{name}.weight"]
    tensors[f"{name}.weight"] = w_DI - w_DI.mean(0)
    bias_D = tensors.get(f"{name}.bias")
    if bias_D is not None:
        tensors[f"{name}.bias"] = bias_D - bias_D.mean()


def readers(family: Family) -> tuple[Group, Group]:
    """Attention's and the MLP's linears that read a norm."""
    return family.groups[0], family.groups[2]


def writers(family: Family) -> tuple[Group, Group]:
    """Attention's and the MLP's linears that write to the residual stream."""
    return family.groups[1], family.groups[3]
