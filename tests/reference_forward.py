"""A decoder in plain numpy float64, slow and obvious: Llama (arXiv 2302.13971) and Qwen3 (arXiv 2505.09388).

It reads the Hugging Face files by itself and shares no code with the converter or the engine. Suffixes: N tokens,
H heads, D head size, E hidden size.
"""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np


class Reference:
    """The model of a checkpoint folder."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.weights: dict[str, np.ndarray] = {}
        for path in folder.glob("*.safetensors"):
            raw = path.read_bytes()
            size = struct.unpack("<Q", raw[:8])[0]
            for name, entry in json.loads(raw[8 : 8 + size]).items():
                if name != "__metadata__":
                    begin, end = entry["data_offsets"]
                    values = _decode(raw[8 + size + begin : 8 + size + end], entry["dtype"])
                    self.weights[name] = values.reshape(entry["shape"])

    def logprobs(self, ids: list[int]) -> np.ndarray:
        """Log-probabilities of the next token at every position: (N, vocabulary)."""
        logits = self._logits(ids)
        top = logits.max(-1, keepdims=True)
        return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))

    def greedy(self, ids: list[int], count: int) -> list[int]:
        """The ``count`` most likely tokens, one after the other."""
        out = list(ids)
        for _ in range(count):
            out.append(int(self._logits(out)[-1].argmax()))
        return out[len(ids) :]

    def _logits(self, ids: list[int]) -> np.ndarray:
        w = self.weights
        x_NE = w["model.embed_tokens.weight"][ids]
        for layer in range(self.config["num_hidden_layers"]):
            at = f"model.layers.{layer}."
            x_NE = x_NE + self._attention(at, self._norm(x_NE, w[at + "input_layernorm.weight"]))
            h_NE = self._norm(x_NE, w[at + "post_attention_layernorm.weight"])
            gate = h_NE @ w[at + "mlp.gate_proj.weight"].T
            up = h_NE @ w[at + "mlp.up_proj.weight"].T
            x_NE = x_NE + (gate / (1 + np.exp(-gate)) * up) @ w[at + "mlp.down_proj.weight"].T
        head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
        return self._norm(x_NE, w["model.norm.weight"]) @ head.T

    def _attention(self, at: str, h_NE: np.ndarray) -> np.ndarray:
        config, w, n = self.config, self.weights, len(h_NE)
        size, group = config["head_dim"], config["num_attention_heads"] // config["num_key_value_heads"]
        q_HND, k_HND, v_HND = (
            (h_NE @ w[f"{at}self_attn.{name}_proj.weight"].T).reshape(n, -1, size).swapaxes(0, 1) for name in "qkv"
        )
        if f"{at}self_attn.q_norm.weight" in w:
            q_HND = self._norm(q_HND, w[f"{at}self_attn.q_norm.weight"])
            k_HND = self._norm(k_HND, w[f"{at}self_attn.k_norm.weight"])
        q_HND, k_HND = self._rotate(q_HND), self._rotate(k_HND).repeat(group, axis=0)
        scores = q_HND @ k_HND.swapaxes(1, 2) / np.sqrt(size) + np.triu(np.full((n, n), -np.inf), 1)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        out = (weights @ v_HND.repeat(group, axis=0)).swapaxes(0, 1).reshape(n, -1)
        return out @ w[f"{at}self_attn.o_proj.weight"].T

    def _rotate(self, x_HND: np.ndarray) -> np.ndarray:
        size = x_HND.shape[-1]
        frequency = self.config["rope_theta"] ** (-np.arange(0, size, 2) / size)
        angle = np.outer(np.arange(x_HND.shape[1]), frequency)
        first, second = x_HND[..., : size // 2], x_HND[..., size // 2 :]
        cos, sin = np.cos(angle), np.sin(angle)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def _norm(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.config["rms_norm_eps"]) * weight


def _decode(raw: bytes, dtype: str) -> np.ndarray:
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return np.frombuffer(raw, "<f4" if dtype == "F32" else "<f2").astype(np.float64)
