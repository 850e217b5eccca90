"""Small random checkpoints in Hugging Face's layout, written by hand: numpy, a byte-level BPE, no torch.

They make no sense as language, which is enough for everything but sense: conversion, arithmetic, protocol, limits.
"""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEMPLATE = (
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = "the quick brown fox jumps over the lazy dog hello world ünïcode 你好 世界 def main return json name value true"


def write_checkpoint(
    folder: Path,
    *,
    architecture: str = "llama",
    tied: bool = True,
    shards: int = 1,
    dtype: str = "BF16",
    hidden: int = 128,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 64,
    seed: int = 0,
    context: int = 2048,
    extra: dict[str, Any] | None = None,
    loud: str | None = None,
) -> Path:
    """A whole checkpoint of about a million random parameters in ``folder``.

    ``loud`` names a token that the model says very often (untied weights only).
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    rows = -(-tokenizer.get_vocab_size() // 64) * 64
    tensors = _weights(architecture, tied, rows, hidden, layers, heads * head_dim, kv_heads * head_dim, head_dim, seed)
    if loud is not None:
        tensors["lm_head.weight"][tokenizer.token_to_id(loud)] *= 6
    _write_safetensors(folder, tensors, dtype, shards)
    config = {
        "architectures": ["LlamaForCausalLM" if architecture == "llama" else "Qwen3ForCausalLM"],
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": 2 * hidden,
        "max_position_embeddings": context,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": tied,
        "vocab_size": rows,
    } | (extra or {})
    (folder / "config.json").write_text(json.dumps(config))
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    ends = [tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return folder


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([WORDS] * 50, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens(["<tool_call>", "</tool_call>"])
    return tokenizer


def _weights(
    architecture: str, tied: bool, rows: int, hidden: int, layers: int, q: int, kv: int, head_dim: int, seed: int
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)

    def matrix(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32) * shape[-1] ** -0.5

    def norm(size: int) -> np.ndarray:
        return 1 + 0.1 * rng.standard_normal(size, dtype=np.float32)

    tensors = {"model.embed_tokens.weight": 2 * matrix(rows, hidden), "model.norm.weight": norm(hidden)}
    if not tied:
        tensors["lm_head.weight"] = 3 * matrix(rows, hidden)
    for layer in range(layers):
        at = f"model.layers.{layer}."
        tensors |= {
            at + "input_layernorm.weight": norm(hidden),
            at + "post_attention_layernorm.weight": norm(hidden),
            at + "self_attn.q_proj.weight": 2 * matrix(q, hidden),
            at + "self_attn.k_proj.weight": 2 * matrix(kv, hidden),
            at + "self_attn.v_proj.weight": matrix(kv, hidden),
            at + "self_attn.o_proj.weight": matrix(hidden, q),
            at + "mlp.gate_proj.weight": matrix(2 * hidden, hidden),
            at + "mlp.up_proj.weight": matrix(2 * hidden, hidden),
            at + "mlp.down_proj.weight": matrix(hidden, 2 * hidden),
        }
        if architecture == "qwen3":
            tensors |= {at + "self_attn.q_norm.weight": norm(head_dim), at + "self_attn.k_norm.weight": norm(head_dim)}
    return tensors


def _write_safetensors(folder: Path, tensors: dict[str, np.ndarray], dtype: str, shards: int) -> None:
    names, index = list(tensors), {}
    for shard in range(shards):
        file = "model.safetensors" if shards == 1 else f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        blob = b""
        for name in names[shard::shards]:
            raw = _encode(tensors[name], dtype)
            shape = list(tensors[name].shape)
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(blob), len(blob) + len(raw)]}
            blob += raw
            index[name] = file
        head = json.dumps(header).encode()
        (folder / file).write_bytes(struct.pack("<Q", len(head)) + head + blob)
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def _encode(values: np.ndarray, dtype: str) -> bytes:
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    return values.astype("<f4" if dtype == "F32" else "<f2").tobytes()
