"""The network that SliceGPT leaves, for who loads it: transformers' modules with other widths, two shortcuts a block.

Each block works on k of the original d dimensions, on axes of its own; a shortcut matrix takes the residual from one
set of axes to the next. The norms have no parameters and divide by d, as if the deleted dimensions were there and zero.
The last block writes all d dimensions on the original axes, for the head. No engine has such blocks.
"""

from typing import Any

import torch
from torch import Tensor, nn

from compressor.checkpoint.source import Source
from compressor.errors import BadCheckpointError
from compressor.families import Family, family_of
from compressor.methods.slicegpt.folding import readers, writers

PREFIX = "sliced_"


class SlicedNorm(nn.Module):
    """x / √(Σx²/d + ε). `width`: d, that of the model before slicing, whatever the width of x."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.width, self.eps = width, eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype is torch.float64 else x.float()
        return (wide * (wide.square().sum(-1, keepdim=True) / self.width + self.eps).rsqrt()).to(x.dtype)


class SlicedBlock(nn.Module):
    """h ← h·S_attention + attention(norm(h)); h ← h·S_mlp + mlp(norm(h)).

    Takes over the modules of a block of transformers under their names; of full width d until narrowed. Shortcuts are
    [k_before, k_after].
    """

    def __init__(self, layer: nn.Module, family: Family, width: int) -> None:
        super().__init__()
        norms = {group.source for group in readers(family)}
        for name, child in layer.named_children():
            self.add_module(name, SlicedNorm(width, _eps(child)) if name in norms else child)
        self._norms = tuple(group.source for group in readers(family))
        self.attn_shortcut = nn.Parameter(torch.eye(width), requires_grad=False)
        self.mlp_shortcut = nn.Parameter(torch.eye(width), requires_grad=False)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        hidden = hidden_states @ self.attn_shortcut + self.attend(hidden_states, **kwargs)
        return hidden @ self.mlp_shortcut + self.feed(hidden)

    def attend(self, hidden: Tensor, **kwargs: Any) -> Tensor:
        """What attention adds to the stream, norm included."""
        normed = self.get_submodule(self._norms[0])(hidden)
        added: Tensor = self.self_attn(hidden_states=normed, **kwargs)[0]
        return added

    def feed(self, hidden: Tensor) -> Tensor:
        """What the MLP adds to the stream, norm included."""
        normed = self.get_submodule(self._norms[1])(hidden)
        added: Tensor = self.mlp(normed) if hasattr(self, "mlp") else self.fc2(self.activation_fn(self.fc1(normed)))
        return added


def build_sliced(config: dict[str, Any], *, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model of a sliced checkpoint's config.json, on the meta device but for its rotary tables: give it weights
    with `load_state_dict(tensors, assign=True)`. It generates like any model of transformers.

    Raises BadCheckpointError.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    plain = dense_config(config)
    family, keep, width = family_of(plain), int(config["hidden_size"]), int(plain["hidden_size"])
    model_type = plain.pop("model_type")
    hf_config = AutoConfig.for_model(model_type, **plain)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(hf_config, attn_implementation="sdpa").to(dtype)
        _narrow(model, family, keep, width)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if "Rotary" in type(child).__name__:  # computed, not stored
                setattr(module, name, type(child)(config=hf_config))
    return model.eval().requires_grad_(False)


def load_sliced(source: Source, *, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model with its weights, computing in `dtype`. Raises BadCheckpointError when they do not fit."""
    model = build_sliced(source.config, dtype=dtype)
    tensors = {name: source.read(name).to(dtype) for name in source.entries}
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise BadCheckpointError(f"{source.folder} does not fit the sliced model of its config.json: {error}") from None
    return model


def is_sliced(config: dict[str, Any]) -> bool:
    """Whether a config.json is one of ours."""
    return str(config.get("model_type")).startswith(PREFIX)


def sliced_config(config: dict[str, Any], family: Family, keep: int) -> dict[str, Any]:
    """config.json of the sliced model: another architecture by name, so that no engine takes it for what it was."""
    base = str(config["model_type"])
    plain = [str(name) for name in config.get("architectures") or [f"{base.capitalize()}ForCausalLM"]]
    sliced = config | {
        "architectures": [f"Sliced{name}" for name in plain],
        "model_type": PREFIX + base,
        "hidden_size": keep,
        "hidden_size_original": config["hidden_size"],
        "tie_word_embeddings": False,
    }
    if family.norm == "layer":
        return sliced | {"enable_bias": True}
    return sliced | {"head_dim": config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]}


def dense_config(config: dict[str, Any]) -> dict[str, Any]:
    """That of the model before slicing, head untied. Raises BadCheckpointError."""
    missing = [key for key in ("hidden_size", "hidden_size_original") if not isinstance(config.get(key), int)]
    if not is_sliced(config) or missing:
        raise BadCheckpointError(f"its config.json describes no sliced model (it has no {' and no '.join(missing)})")
    return {key: value for key, value in config.items() if key not in ("hidden_size_original", "architectures")} | {
        "model_type": str(config["model_type"]).removeprefix(PREFIX),
        "hidden_size": config["hidden_size_original"],
        "word_embed_proj_dim": config["hidden_size_original"],
    }


def _narrow(model: nn.Module, family: Family, keep: int, width: int) -> None:
    """Other modules in place of the dense ones, still on the meta device."""
    blocks = model.get_submodule(family.blocks)
    assert isinstance(blocks, nn.ModuleList)
    for index, layer in enumerate(blocks):
        last = width if index == len(blocks) - 1 else keep
        block = SlicedBlock(layer, family, width)
        block.attn_shortcut = nn.Parameter(torch.empty(keep, keep), requires_grad=False)
        block.mlp_shortcut = nn.Parameter(torch.empty(keep, last), requires_grad=False)
        for name in (name for group in readers(family) for name in group.linears):
            resize(block.get_submodule(name), ins=keep)
        for group, outs in zip(writers(family), (keep, last), strict=True):
            for name in group.linears:
                resize(block.get_submodule(name), outs=outs)
        blocks[index] = block
    for name in filter(None, (family.embeddings, family.positions)):
        table = model.get_submodule(name)
        table.weight = nn.Parameter(torch.empty(table.weight.shape[0], keep))
    norm, head = model.get_submodule(family.final_norm), model.get_submodule(family.head)
    model.set_submodule(family.final_norm, SlicedNorm(width, _eps(norm)))
    if family.norm == "layer":
        head.bias = nn.Parameter(torch.empty(head.weight.shape[0]))


def resize(linear: nn.Module, *, ins: int | None = None, outs: int | None = None) -> None:
    """Another number of inputs or outputs, values undefined."""
    assert isinstance(linear, nn.Linear)
    linear.in_features, linear.out_features = ins or linear.in_features, outs or linear.out_features
    shape = (linear.out_features, linear.in_features)
    linear.weight = nn.Parameter(linear.weight.new_empty(shape), requires_grad=False)
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.new_empty(shape[0]), requires_grad=False)


def _eps(norm: nn.Module) -> float:
    return float(norm.eps if isinstance(norm, nn.LayerNorm) else norm.variance_epsilon)
