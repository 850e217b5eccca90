"""Moves a factor per input from a group of linears into the norm or linear before it: the block computes the same.

What AWQ and SmoothQuant do to a block. (x / s)·(W · s)ᵀ = x·Wᵀ, and x / s is made by dividing the norm's weight and
bias, or the rows and bias of the linear that x comes out of. Shapes: O output rows, I inputs, S outputs of the source.
"""

import torch
from torch import Tensor

from compressor.block import Block
from compressor.errors import BadRecipeError
from compressor.families import Group

# With other activations a factor cannot pass from an MLP's first linear to its last, unless that one is gated by it.
_HOMOGENEOUS = {"relu"}


def obstacle(block: Block, group: Group) -> str | None:
    """Why no factor can be moved out of these linears; None when it can."""
    whole = next(known for known in block.family.groups if known.kind == group.kind)
    frozen = set(block.family.linears) - set(block.linears())
    if whole.linears != group.linears or group.source in frozen:
        return "a linear that shares the factor is on the ignore list"
    if isinstance(block.module.get_submodule(group.source), torch.nn.Linear):
        if group.source == "fc1" and block.config.get("activation_function", "relu") not in _HOMOGENEOUS:
            return "its activation function lets no factor through"
        try:
            source_of_inputs(block, group)
        except ValueError as error:
            return str(error)
    return None


def source_of_inputs(block: Block, group: Group) -> Tensor:
    """Which output of the source each input of the linears is, [I]: one value head may feed several query heads."""
    inputs = block.linear(group.linears[0]).in_features
    outputs = len(block.module.get_submodule(group.source).weight)
    device = block.linear(group.linears[0]).weight.device
    if inputs == outputs:
        return torch.arange(inputs, device=device)
    queries, values = block.config.get("num_attention_heads", 0), block.config.get("num_key_value_heads", 0)
    if group.kind != "attention output" or not values or queries % values or outputs % values:
        raise ValueError(f"its {inputs} inputs are not the {outputs} outputs of {group.source}")
    head = outputs // values
    if inputs != queries * head:
        raise ValueError(f"its {inputs} inputs are not {queries} heads of {head}")
    return torch.arange(outputs, device=device).reshape(values, head).repeat_interleave(queries // values, 0).flatten()


def reduce_to_source(of_inputs_I: Tensor, index_I: Tensor, reduction: str) -> Tensor:
    """A figure of each input as one of each output of the source, [S]. `reduction`: "amax" or "mean"."""
    size = int(index_I.max()) + 1
    return of_inputs_I.new_zeros(size).scatter_reduce_(0, index_I, of_inputs_I, reduction, include_self=False)


def move(block: Block, group: Group, factor_S: Tensor, index_I: Tensor) -> None:
    """Divides the source's outputs by `factor_S` and multiplies the linears' inputs with it.

    A norm's weight is rounded to the checkpoint's dtype first and the factor corrected by what that changed, so that
    the linears take up the rounding.
    """
    source = block.module.get_submodule(group.source)
    if isinstance(source, torch.nn.Linear):
        block.replace(group.source, block.weight(group.source) / factor_S[:, None])
    else:
        old_S = source.weight.detach().float()
        new_S = (old_S / factor_S).to(_dtype(block)).float()
        factor_S = torch.where(new_S == 0, 1.0, old_S / new_S)
        source.weight.data.copy_(new_S)
    if getattr(source, "bias", None) is not None:
        source.bias.data.div_(factor_S)
    for name in group.linears:
        block.replace(name, block.weight(name) * factor_S[index_I])


def need_dense(block: Block, method: str) -> None:
    """Raises BadRecipeError when a step before has encoded the weights already."""
    if block.encoded:
        raise BadRecipeError(f"{method} moves factors between weights: put it before the step that encodes them")


def _dtype(block: Block) -> torch.dtype:
    named = str(block.config.get("torch_dtype") or block.config.get("dtype") or "bfloat16").removeprefix("torch.")
    dtype = getattr(torch, named, None)
    return dtype if isinstance(dtype, torch.dtype) else torch.bfloat16
