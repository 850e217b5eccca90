"""The network that pruning layer by layer leaves, for who loads it: transformers' own blocks, of other sizes each.

config.json then says another architecture by name, so that no engine takes it for what it was, and has three lists; the
plain keys stay those of the model before.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from compressor.checkpoint.source import Source
from compressor.errors import BadCheckpointError
from compressor.families import family_of
from compressor.methods.llm_pruner.groups import channels_key

PREFIX = "uneven_"
LISTS = ("num_attention_heads", "num_key_value_heads", "intermediate_size")


def is_uneven(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is one of ours."""
    return str(config.get("model_type")).startswith(PREFIX)


def uneven_config(
    config: Mapping[str, Any], query_heads: Sequence[int], kv_heads: Sequence[int], channels: Sequence[int]
) -> dict[str, Any]:
    """config.json of a model with these sizes, one number a block."""
    base = str(config["model_type"])
    plain = [str(name) for name in config.get("architectures") or [f"{base.capitalize()}ForCausalLM"]]
    sizes = zip(LISTS, (query_heads, kv_heads, channels), strict=True)
    return {
        **config,
        "architectures": [f"Uneven{name}" for name in plain],
        "model_type": PREFIX + base,
        **{f"{key}_per_layer": list(values) for key, values in sizes},
    }


def build_uneven(config: Mapping[str, Any], *, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model of a config.json, uneven or plain, on the meta device but for its rotary tables: give it weights with
    `load_state_dict(tensors, assign=True)`. It generates like any model of transformers.

    Raises BadCheckpointError.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    plain, sizes = _parts(config)
    hf_config = AutoConfig.for_model(plain.pop("model_type"), **plain)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(hf_config, attn_implementation="sdpa").to(dtype)
        layers = model.get_submodule(family_of({"model_type": hf_config.model_type}).blocks)
        for index, own in enumerate(sizes):
            narrow = copy.deepcopy(model.config)
            for key, value in own.items():
                setattr(narrow, key, value)
            layers[index] = type(layers[index])(narrow, index).to(dtype)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if "Rotary" in type(child).__name__:  # computed, not stored
                setattr(module, name, type(child)(config=hf_config))
    return model.eval().requires_grad_(False)


def load_uneven(source: Source, *, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model with its weights, uneven or plain, computing in `dtype`. Raises BadCheckpointError."""
    model = build_uneven(source.config, dtype=dtype)
    family = family_of(_parts(source.config)[0])
    tensors = {name: source.read(name).to(dtype) for name in source.entries}
    is_tied = bool(model.config.tie_word_embeddings)
    if is_tied:
        tensors.setdefault(f"{family.head}.weight", tensors[f"{family.embeddings}.weight"])
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise BadCheckpointError(f"{source.folder} does not fit the model of its config.json: {error}") from None
    if is_tied:
        model.get_submodule(family.head).weight = model.get_submodule(family.embeddings).weight
    return model.requires_grad_(False)


def _parts(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, int]]]:
    """config.json of the plain model, and the sizes of each block: none for a plain one. Raises BadCheckpointError."""
    lists = {key: config.get(f"{key}_per_layer") for key in LISTS}
    plain = {key: value for key, value in config.items() if not (is_uneven(config) and key.endswith("_per_layer"))}
    plain["model_type"] = str(config.get("model_type")).removeprefix(PREFIX)
    plain.pop("architectures", None)
    if not is_uneven(config):
        return plain, []
    count = config.get("num_hidden_layers")
    for key, values in lists.items():
        if not isinstance(values, list) or len(values) != count:
            raise BadCheckpointError(f"its config.json has no list {key}_per_layer of {count} numbers, one a block")
    named = {channels_key(config) if key == "intermediate_size" else key: values for key, values in lists.items()}
    return plain, [dict(zip(named, sizes, strict=True)) for sizes in zip(*named.values(), strict=True)]
