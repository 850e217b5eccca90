"""Modules that compute as an engine does: inputs rounded, keys and values kept in FP8, low-rank factors beside."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.checkpoint import adapter
from compressor.numbers.activations import fake_quantize
from compressor.numbers.floats import round_to
from compressor.numbers.schemes import Activations
from compressor.quality.dense import DenseSource

ATTENTION = "penstock_fp8_kv"
Factors = tuple[Tensor, Tensor]


class ServedLinear(nn.Linear):
    """y = round(x)·Wᵀ + b + (x·Aᵀ)·Bᵀ: a LoRA reads the inputs before they are rounded, as engines' kernels do.

    `activations`: None where inputs stay as they are; `scale`: a static scale of theirs. `factors`: A [rank, in] and
    B [out, rank], the adapter's scaling within B.
    """

    def __init__(
        self, linear: nn.Linear, activations: Activations | None, scale: Tensor | None, factors: Factors | None
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.activations = activations
        self.register_buffer("input_scale", scale, persistent=False)
        self.register_buffer("a_RI", factors[0] if factors else None, persistent=False)
        self.register_buffer("b_OR", factors[1] if factors else None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        seen = x if self.activations is None else fake_quantize(x, self.activations, self.input_scale)
        y = F.linear(seen, self.weight, self.bias)
        return y if self.a_RI is None else y + (x @ self.a_RI.T) @ self.b_OR.T


def serve(module: nn.Module, prefix: str, source: DenseSource, adapter: dict[str, Factors]) -> None:
    """Put served linears where the checkpoint says so. `prefix`: the full name of `module`, "" for a whole model."""
    scheme = source.format.scheme if source.format is not None else None
    activations = scheme.activations if scheme is not None else None
    for name, linear in list(module.named_modules()):
        full = f"{prefix}.{name}".removeprefix(".")
        is_rounded = activations is not None and full in source.encoded
        if not isinstance(linear, nn.Linear) or not (is_rounded or full in adapter):
            continue
        scale = source.scales(full).get("input_scale") if is_rounded else None
        factors = adapter.get(full)
        like = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        moved = (factors[0].to(**like), factors[1].to(**like)) if factors else None
        place = None if scale is None else scale.to(linear.weight.device)
        module.set_submodule(name, ServedLinear(linear, activations if is_rounded else None, place, moved))


def has_fp8_cache(source: DenseSource) -> bool:
    """Whether keys and values are to be kept in FP8."""
    return bool(source.quantization.get("kv_cache_scheme"))


def keep_cache_in_fp8(module: nn.Module, prefix: str, source: DenseSource) -> None:
    """Give attention modules their scales (1 where none is stored, as in vLLM) and the attention that uses them."""
    _register_attention()
    for name, attention in module.named_modules():
        if not name.endswith("self_attn") and name != "":
            continue
        if not hasattr(attention, "k_proj"):
            continue
        found = source.scales(f"{prefix}.{name}".strip("."))
        device = attention.k_proj.weight.device
        for scale in ("k_scale", "v_scale"):
            attention.register_buffer(scale, found.get(scale, torch.tensor(1.0)).float().to(device), persistent=False)


def read_adapter(folder: Path) -> dict[str, Factors]:
    """The LoRA in `folder`/adapter by full names of linears, {} where there is none. Raises BadCheckpointError."""
    where = folder / "adapter"
    return adapter.read(where) if (where / "adapter_config.json").is_file() else {}


def _register_attention() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        k, v = _kept(key, module.k_scale), _kept(value, module.v_scale)
        out: tuple[Tensor, None] = sdpa_attention_forward(module, query, k, v, mask, **kwargs)
        return out

    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def _kept(x: Tensor, scale: Tensor) -> Tensor:
    return (round_to(x.float() / scale, "e4m3") * scale).to(x.dtype)
