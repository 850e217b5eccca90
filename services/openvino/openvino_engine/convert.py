"""Hugging Face checkpoint -> GGUF, without torch, for the engine's GGUF reader.

Llama and Qwen3 in f32, f16 or bf16. Two things differ between the formats: Llama's q and k rows are interleaved in
GGUF (half-split in Hugging Face), and the tokenizer travels as metadata. The whole tokenizer.json goes along under
`tokenizer.huggingface.json`, because GGUF's own pre-tokenizer names cannot say every regular expression.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from openvino_engine.gguf_tokenizer import write_tokenizer
from openvino_engine.safetensors_file import SafetensorsError, TensorFolder

# Part of the cache key: a change of what is written makes old cache files stale.
CONVERTER_VERSION = "2"

_ARCHITECTURES = {"LlamaForCausalLM": "llama", "Qwen3ForCausalLM": "qwen3"}
_LAYER_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
_TOP_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_REQUIRED = ("architectures", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_HASHED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


class ConversionError(ValueError):
    """The checkpoint cannot become GGUF; the message says which part and what to do."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers of a decoder, under Hugging Face's names."""

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
    tied: bool


def read_config(folder: Path) -> Shape:
    """Read config.json. Raises ConversionError for another architecture or a feature the reader lacks."""
    config = read_json(folder / "config.json")
    missing = [name for name in _REQUIRED if name not in config]
    if missing:
        raise ConversionError(f"{folder / 'config.json'} lacks {', '.join(missing)}")
    names = config.get("architectures") or ["?"]
    if names[0] not in _ARCHITECTURES:
        raise ConversionError(
            f"architecture {names[0]!r} is not converted; {', '.join(_ARCHITECTURES)} are. "
            "Others: export OpenVINO IR with optimum-intel and pass that folder"
        )
    heads = config["num_attention_heads"]
    return Shape(
        architecture=_ARCHITECTURES[names[0]],
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        intermediate=config["intermediate_size"],
        context=config.get("max_position_embeddings", 2048),
        rope_theta=_rope_theta(config),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def _rope_theta(config: dict[str, Any]) -> float:
    """Both spellings of rotary parameters; a scaled rotary embedding is refused, not dropped."""
    parameters = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or parameters
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind != "default":
        raise ConversionError(f"rope_scaling {kind!r} is not in the engine's GGUF reader: export OpenVINO IR instead")
    if config.get("attention_bias") or config.get("mlp_bias"):
        raise ConversionError("attention_bias and mlp_bias are not converted: export OpenVINO IR instead")
    if config.get("use_sliding_window"):
        raise ConversionError("sliding-window attention is not converted: export OpenVINO IR instead")
    return float(parameters.get("rope_theta") or config.get("rope_theta") or 10_000.0)


def convert(folder: Path, out: Path) -> None:
    """Write ``out`` (GGUF) from the checkpoint in ``folder``; the file appears whole or not at all.

    Matrices become f16, the only plain float that the engine's GGUF reader takes for them: exact for f16, within
    3e-8 for bf16 (whose mantissa is shorter), rounded for f32. Raises ConversionError or SafetensorsError.
    """
    shape = read_config(folder)
    tensors = TensorFolder(folder)
    mapping = _names(shape, tensors)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    writer = gguf.GGUFWriter(partial, shape.architecture)
    try:
        _write_shape(writer, shape, folder.resolve().name)
        write_tokenizer(writer, folder, tensors["model.embed_tokens.weight"].shape[0])
        for name, target in mapping.items():
            writer.add_tensor(target, _prepare(tensors[name].read(), target, shape))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


def convert_cached(folder: Path, cache_dir: Path) -> Path:
    """The GGUF of ``folder`` in ``cache_dir``, converted now unless a file of the same content is there."""
    out = cache_dir / f"{folder.resolve().name}-{content_hash(folder)[:16]}.gguf"
    if not out.exists():
        convert(folder, out)
    return out


def content_hash(folder: Path) -> str:
    """SHA-256 over everything that the converter reads, and over its own version."""
    digest = hashlib.sha256(CONVERTER_VERSION.encode())
    paths = [folder / name for name in _HASHED if (folder / name).exists()]
    for path in paths + sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ConversionError when it is missing or broken."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise ConversionError(f"{path} is not a JSON object")
    return value


def _names(shape: Shape, tensors: TensorFolder) -> dict[str, str]:
    """Hugging Face name -> GGUF name, for exactly the tensors of the checkpoint."""
    names = dict(_TOP_NAMES)
    if shape.tied or "lm_head.weight" not in tensors:
        del names["lm_head.weight"]
    for layer in range(shape.layers):
        for source, target in _LAYER_NAMES.items():
            if shape.architecture == "qwen3" or not source.endswith(("q_norm.weight", "k_norm.weight")):
                names[f"model.layers.{layer}.{source}"] = f"blk.{layer}.{target}"
    missing = [name for name in names if name not in tensors]
    ignored = ("lm_head.weight", ".rotary_emb.inv_freq")
    unknown = [name for name in tensors if name not in names and not name.endswith(ignored)]
    if missing or unknown:
        raise ConversionError(f"checkpoint does not match config.json: missing {missing[:3]}, unknown {unknown[:3]}")
    if not shape.tied and "lm_head.weight" not in names:
        raise ConversionError("config.json says untied embeddings, but there is no lm_head.weight")
    return names


def _prepare(values: npt.NDArray[Any], target: str, shape: Shape) -> npt.NDArray[Any]:
    # Norms stay f32: the reader adds them to f32 activations and they cost nothing.
    if values.ndim == 1:
        return np.ascontiguousarray(values, dtype=np.float32)
    if np.abs(values).max(initial=0.0) > np.finfo(np.float16).max:
        raise ConversionError(f"{target} has values beyond f16's range: export OpenVINO IR instead")
    if shape.architecture == "llama" and target.endswith(("attn_q.weight", "attn_k.weight")):
        values = _interleave(values, shape.heads if "attn_q" in target else shape.kv_heads)
    return np.ascontiguousarray(values, dtype=np.float16)


def _interleave(w_OI: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Rows of each head from (first half, second half) to (pair, pair, ...): GGUF's rotary order for Llama."""
    out_dim, in_dim = w_OI.shape
    return w_OI.reshape(heads, 2, out_dim // heads // 2, in_dim).swapaxes(1, 2).reshape(out_dim, in_dim)


def _write_shape(writer: gguf.GGUFWriter, shape: Shape, name: str) -> None:
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
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


__all__ = ["ConversionError", "SafetensorsError", "content_hash", "convert", "convert_cached", "read_config"]
