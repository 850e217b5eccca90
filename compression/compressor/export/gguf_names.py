"""What GGUF calls the parts of a decoder, and the numbers of one that it wants to know.

Llama, Qwen2 and Qwen3. Names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md ("Standardized tensor names").
"""

import re
from dataclasses import dataclass
from typing import Any

import gguf

from compressor.errors import BadCheckpointError

ARCHITECTURES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}
_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder's numbers. `hidden`, `intermediate`, `head_dim`: widths; `context`: tokens."""

    architecture: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    context: int
    rope_theta: float
    norm_eps: float
    is_tied: bool


def shape_of(config: dict[str, Any]) -> Shape:
    """Raises BadCheckpointError for another architecture, and for what readers of these three would get wrong."""
    name = (config.get("architectures") or ["?"])[0]
    if name not in ARCHITECTURES:
        raise BadCheckpointError(f"GGUF is written for {', '.join(ARCHITECTURES)} here, not for {name}")
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    _refuse_what_is_lost(config, ARCHITECTURES[name])
    rope = config.get("rope_parameters") or {}
    return Shape(
        architecture=ARCHITECTURES[name],
        hidden=hidden,
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or hidden // heads,
        intermediate=config["intermediate_size"],
        context=config.get("max_position_embeddings", 2048),
        rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        is_tied=bool(config.get("tie_word_embeddings", False)),
    )


def _refuse_what_is_lost(config: dict[str, Any], architecture: str) -> None:
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    faults = {
        f"scaled rotary positions ({kind})": kind != "default",
        "sliding-window attention": bool(config.get("use_sliding_window")),
        "biases in its MLP": bool(config.get("mlp_bias")),
        "biases in its attention": bool(config.get("attention_bias")) and architecture != "qwen2",
        "sizes that differ by layer": isinstance(config["intermediate_size"], list),
    }
    for fault, is_there in faults.items():
        if is_there:
            raise BadCheckpointError(f"GGUF is not written for a model with {fault}: the engine's reader drops that")


def gguf_name(name: str, *, is_tied: bool) -> str | None:
    """None for what GGUF has no tensor for because readers compute it. Raises BadCheckpointError for anything else."""
    if name.endswith("rotary_emb.inv_freq") or (is_tied and name == "lm_head.weight"):
        return None
    if name in _TOP:
        return _TOP[name]
    found = _LAYER.fullmatch(name)
    if found is None or found[2] not in _PARTS:
        raise BadCheckpointError(f"GGUF has no name for tensor {name}")
    return f"blk.{found[1]}.{_PARTS[found[2]]}.{found[3]}"


def plain_names(shape: Shape) -> dict[str, str]:
    """The inverse, for all that a model of this shape may have: GGUF's name to the checkpoint's."""
    found = {target: name for name, target in _TOP.items()}
    for layer in range(shape.layers):
        for part, target in _PARTS.items():
            for kind in ("weight", "bias"):
                found[f"blk.{layer}.{target}.{kind}"] = f"model.layers.{layer}.{part}.{kind}"
    return found


def write_shape(writer: gguf.GGUFWriter, shape: Shape) -> None:
    """The keys `ARCHITECTURE.*` of the file."""
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
