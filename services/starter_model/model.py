"""Qwen3ForCausalLM in plain PyTorch, numerically equal to Hugging Face's: so that training needs no transformers.

Follows the Qwen3 technical report (arXiv:2505.09388): pre-norm blocks, grouped-query attention with RMS norm on each
head's queries and keys, rotary positions (arXiv:2104.09864, half-split form), SwiGLU, tied embeddings, no biases.
Parameter names are those of the checkpoint format. Suffixes: B batch, L length, D hidden, H heads, K key/value heads,
E head size, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """The numbers of config.json that decide the shape. Hidden is a multiple of 128, heads are 64 wide."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int = 2048
    head_dim: int = 64
    max_position_embeddings: int = 2048
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6


STARTER = Shape(256, 4, 4, 2, 512)
DRAFT = Shape(128, 2, 2, 1, 256)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(x.dtype)


def rotary_tables(shape: Shape, length: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """(cos_LE, sin_LE) in float32 for positions 0 .. length - 1."""
    steps = torch.arange(0, shape.head_dim, 2, device=device).float() / shape.head_dim
    angles = torch.outer(torch.arange(length, device=device).float(), shape.rope_theta**-steps)
    doubled_LE = torch.cat((angles, angles), dim=-1)
    return doubled_LE.cos(), doubled_LE.sin()


def rotate(x_BHLE: Tensor, cos_LE: Tensor, sin_LE: Tensor) -> Tensor:
    """Rotary embedding: pairs are (i, i + E/2)."""
    left, right = x_BHLE.chunk(2, dim=-1)
    return x_BHLE * cos_LE + torch.cat((-right, left), dim=-1) * sin_LE


class Attention(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.shape = s
        self.q_proj = nn.Linear(s.hidden_size, s.num_attention_heads * s.head_dim, bias=False)
        self.k_proj = nn.Linear(s.hidden_size, s.num_key_value_heads * s.head_dim, bias=False)
        self.v_proj = nn.Linear(s.hidden_size, s.num_key_value_heads * s.head_dim, bias=False)
        self.o_proj = nn.Linear(s.num_attention_heads * s.head_dim, s.hidden_size, bias=False)
        self.q_norm = RMSNorm(s.head_dim, s.rms_norm_eps)
        self.k_norm = RMSNorm(s.head_dim, s.rms_norm_eps)

    def forward(self, x_BLD: Tensor, cos_LE: Tensor, sin_LE: Tensor, mask_B1LL: Tensor | None = None) -> Tensor:
        s, (batch, length, _) = self.shape, x_BLD.shape
        q_BHLE = self.q_norm(self.q_proj(x_BLD).view(batch, length, -1, s.head_dim)).transpose(1, 2)
        k_BKLE = self.k_norm(self.k_proj(x_BLD).view(batch, length, -1, s.head_dim)).transpose(1, 2)
        v_BKLE = self.v_proj(x_BLD).view(batch, length, -1, s.head_dim).transpose(1, 2)
        q_BHLE, k_BKLE = rotate(q_BHLE, cos_LE, sin_LE), rotate(k_BKLE, cos_LE, sin_LE)
        groups = s.num_attention_heads // s.num_key_value_heads
        k_BHLE, v_BHLE = k_BKLE.repeat_interleave(groups, dim=1), v_BKLE.repeat_interleave(groups, dim=1)
        y_BHLE = F.scaled_dot_product_attention(
            q_BHLE, k_BHLE, v_BHLE, attn_mask=mask_B1LL, is_causal=mask_B1LL is None
        )
        out: Tensor = self.o_proj(y_BHLE.transpose(1, 2).reshape(batch, length, -1))
        return out


class MLP(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(s.hidden_size, s.intermediate_size, bias=False)
        self.up_proj = nn.Linear(s.hidden_size, s.intermediate_size, bias=False)
        self.down_proj = nn.Linear(s.intermediate_size, s.hidden_size, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x_BLD)) * self.up_proj(x_BLD))
        return out


class Block(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(s.hidden_size, s.rms_norm_eps)
        self.self_attn = Attention(s)
        self.post_attention_layernorm = RMSNorm(s.hidden_size, s.rms_norm_eps)
        self.mlp = MLP(s)

    def forward(self, x_BLD: Tensor, cos_LE: Tensor, sin_LE: Tensor, mask_B1LL: Tensor | None = None) -> Tensor:
        x_BLD = x_BLD + self.self_attn(self.input_layernorm(x_BLD), cos_LE, sin_LE, mask_B1LL)
        out: Tensor = x_BLD + self.mlp(self.post_attention_layernorm(x_BLD))
        return out


class Decoder(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(s.vocab_size, s.hidden_size)
        self.layers = nn.ModuleList(Block(s) for _ in range(s.num_hidden_layers))
        self.norm = RMSNorm(s.hidden_size, s.rms_norm_eps)


class Qwen3(nn.Module):
    """The whole model; `forward` gives logits, the output matrix being the embedding."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Decoder(shape)

    def forward(self, ids_BL: Tensor, mask_B1LL: Tensor | None = None) -> Tensor:
        """logits_BLV for ids_BL, each row alone. Causal, or where a boolean mask is given, what it allows."""
        x_BLD = self.model.embed_tokens(ids_BL)
        cos_LE, sin_LE = rotary_tables(self.shape, ids_BL.shape[1], ids_BL.device)
        cos_LE, sin_LE = cos_LE.to(x_BLD.dtype), sin_LE.to(x_BLD.dtype)
        for block in self.model.layers:
            x_BLD = block(x_BLD, cos_LE, sin_LE, mask_B1LL)
        return F.linear(self.model.norm(x_BLD), self.model.embed_tokens.weight)


def documents_mask(documents_BL: Tensor) -> Tensor:
    """mask_B1LL that is causal and keeps the documents of a packed row apart, as they are when served."""
    same_BLL = documents_BL[:, :, None] == documents_BL[:, None, :]
    return same_BLL.tril()[:, None]


def initialise(model: Qwen3, seed: int, twins: list[tuple[int, int]]) -> None:
    """Normal weights, residual outputs scaled down; twins (a word with and without its space) share one start."""
    generator = torch.Generator().manual_seed(seed)
    width = model.shape.hidden_size**-0.5
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.dim() < 2:
                continue
            depth = (
                (2 * model.shape.num_hidden_layers) ** -0.5
                if name.endswith(("o_proj.weight", "down_proj.weight"))
                else 1.0
            )
            std = 0.02 if "embed" in name else width * depth
            parameter.normal_(0.0, std, generator=generator)
        table = model.model.embed_tokens.weight
        for bare, spaced in twins:
            table[spaced] = table[bare]


def config_json(shape: Shape, *, eos: int, pad: int) -> dict[str, Any]:
    """config.json in the spellings that transformers 4 and 5 both read (torch_dtype, rope_theta)."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": eos,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.max_position_embeddings,
        "max_window_layers": shape.num_hidden_layers,
        "model_type": "qwen3",
        "num_attention_heads": shape.num_attention_heads,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_key_value_heads": shape.num_key_value_heads,
        "pad_token_id": pad,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": shape.rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": shape.vocab_size,
    }
