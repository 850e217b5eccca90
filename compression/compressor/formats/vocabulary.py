"""Schemes in the words of compressed-tensors, and back: its library validates what we write and what we are given."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

from compressor.errors import BadCheckpointError
from compressor.numbers.grids import FloatGrid, Grid, IntegerGrid
from compressor.numbers.schemes import SCHEMES, Activations, Scheme

_INPUTS: dict[Activations, dict[str, Any]] = {
    "int8-token": {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True},
    "fp8-token": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
    "fp8-tensor": {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False},
    "fp8-group": {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 128, "dynamic": True},
    "nvfp4": {
        "num_bits": 4,
        "type": "float",
        "strategy": "tensor_group",
        "group_size": 16,
        "dynamic": "local",
        "scale_dtype": torch.float8_e4m3fn,
    },
    "mxfp4": {
        "num_bits": 4,
        "type": "float",
        "strategy": "group",
        "group_size": 32,
        "dynamic": True,
        "scale_dtype": torch.uint8,
    },
}
KV_CACHE = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}


def to_library(scheme: Scheme) -> QuantizationScheme:
    """For all linears. `scheme.weights` must not be None."""
    assert scheme.weights is not None
    inputs = None if scheme.activations is None else QuantizationArgs(**_INPUTS[scheme.activations], symmetric=True)
    return QuantizationScheme(targets=["Linear"], weights=_weights(scheme.weights), input_activations=inputs)


def from_library(scheme: QuantizationScheme) -> Scheme:
    """Raises BadCheckpointError for what no grid here can say."""
    weights = _grid(scheme.weights)
    return named(weights, None if scheme.input_activations is None else _activations(scheme.input_activations))


def named(weights: Grid, activations: Activations | None) -> Scheme:
    """With its name in the field; for other grids one made of their parts, as recipes' overrides name them."""
    for known in SCHEMES.values():
        is_same = known.weights is not None and replace(known.weights, scale=weights.scale) == weights
        if is_same and known.activations == activations:
            return replace(known, weights=weights)
    assert isinstance(weights, IntegerGrid), "every float grid that is read here has a name"
    name = f"W{weights.bits}A{'16' if activations is None else '8'}" + ("" if weights.symmetric else "_ASYM")
    return Scheme(f"{name}_G{weights.group_size or 'ROW'}", weights, activations)


def _weights(grid: Grid) -> QuantizationArgs:
    if isinstance(grid, IntegerGrid):
        size = grid.group_size
        where: dict[str, Any] = {"strategy": "channel"} if size is None else {"strategy": "group", "group_size": size}
        return QuantizationArgs(num_bits=grid.bits, type="int", symmetric=grid.symmetric, **where)
    if grid.has_global_scale:
        where = {"strategy": "tensor_group", "group_size": grid.block[1], "scale_dtype": torch.float8_e4m3fn}
    elif grid.scale == "e8m0":
        where = {"strategy": "group", "group_size": grid.block[1], "scale_dtype": torch.uint8}
    elif grid.block == (None, None):
        where = {"strategy": "tensor"}
    elif grid.block == (1, None):
        where = {"strategy": "channel"}
    else:
        where = {"strategy": "block", "block_structure": list(grid.block)}
    return QuantizationArgs(num_bits=grid.bits, type="float", symmetric=True, **where)


def _grid(args: QuantizationArgs | None) -> Grid:
    if args is None:
        raise BadCheckpointError("a group of its quantization_config leaves weights dense: that is not read here")
    if args.type == "int":
        if args.strategy not in ("group", "channel"):
            raise BadCheckpointError(f"integer weights with scales per {args.strategy} are not read here")
        return IntegerGrid(args.num_bits, args.group_size if args.strategy == "group" else None, args.symmetric)
    if args.num_bits == 4:
        has_global = args.strategy == "tensor_group"
        return FloatGrid("e2m1", (1, args.group_size), "e4m3" if has_global else "e8m0", has_global)
    blocks: dict[str, tuple[int | None, int | None]] = {"tensor": (None, None), "channel": (1, None)}
    if args.strategy == "block":
        return FloatGrid("e4m3", (args.block_structure[0], args.block_structure[1]))
    if args.num_bits != 8 or args.strategy not in blocks:
        raise BadCheckpointError(f"{args.num_bits}-bit floats with scales per {args.strategy} are not read here")
    return FloatGrid("e4m3", blocks[args.strategy])


def _activations(args: QuantizationArgs) -> Activations:
    for name, known in _INPUTS.items():
        same: Mapping[str, Any] = QuantizationArgs(**known, symmetric=True).model_dump()
        keys = ("num_bits", "type", "strategy", "group_size", "dynamic", "symmetric")
        if all(same[key] == args.model_dump()[key] for key in keys):
            return name
    raise BadCheckpointError(f"inputs of {args.num_bits} bits per {args.strategy} are not read here")
