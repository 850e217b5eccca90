"""Coupled structures: what must go together when a KV group or an MLP channel goes, and how to take it out of tensors.

A KV group is one key/value head with the query heads that read it: rows of q, k, v and columns of o. An MLP channel is
a row of gate and up and a column of down. LLM-Pruner, arXiv 2305.11627, section 3.1, with its head as the case of one
query head a group. Norms over a head (Qwen3) are shared by all heads and stay.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from compressor.families import Family

Kind = Literal["heads", "channels"]
# Elsewhere the size of a head is hidden size / heads, in the architecture or in vLLM's copy of it: fewer heads would
# change it. (OPT; Qwen2 in vllm/model_executor/models/qwen2.py.)
EXPLICIT_HEAD_DIM = frozenset({"llama", "mistral", "qwen3"})


@dataclass(frozen=True, slots=True)
class Part:
    """A linear's share in a structure: `width` successive rows (axis 0) or columns (axis 1)."""

    linear: str
    axis: int
    width: int

    def sums(self, score_OI: Tensor) -> Tensor:
        """The sum over each structure's entries, [structures]."""
        across = score_OI.sum(1 - self.axis)
        return across.reshape(-1, self.width).sum(1)

    def take(self, tensor: Tensor, kept: Tensor) -> Tensor:
        """The weight, or the bias of rows, with only the structures `kept` (indices in order)."""
        if tensor.dim() == 1 and self.axis == 1:
            return tensor
        return tensor.index_select(self.axis, self._spread(kept).to(tensor.device))

    def zero_(self, tensor: Tensor, gone: Tensor) -> None:
        """Zeroes the structures `gone` in place."""
        if tensor.dim() == 2 or self.axis == 0:
            tensor.index_fill_(self.axis, self._spread(gone).to(tensor.device), 0)

    def _spread(self, structures: Tensor) -> Tensor:
        return (structures[:, None] * self.width + torch.arange(self.width)).flatten()


@dataclass(frozen=True, slots=True)
class Structures:
    """One kind of them in a block: `count` structures, each made of all `parts`, the last of which writes out."""

    count: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Heads and channels of a model whose blocks are all alike, from its config.json."""

    blocks: int
    hidden: int
    query_heads: int
    kv_heads: int
    head_dim: int
    channels: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Geometry":
        heads = int(config["num_attention_heads"])
        return cls(
            blocks=int(config["num_hidden_layers"]),
            hidden=int(config["hidden_size"]),
            query_heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
            channels=int(config[channels_key(config)]),
        )

    @property
    def queries_a_group(self) -> int:
        """Query heads that read one key/value head."""
        return self.query_heads // self.kv_heads

    def structures(self, family: Family) -> dict[Kind, Structures]:
        """By kind: "heads" (KV groups) and "channels"."""
        inputs, output, mlp_inputs, mlp_output = family.groups
        query, *keys_values = inputs.linears
        wide = self.queries_a_group * self.head_dim
        heads = (
            Part(query, 0, wide),
            *(Part(name, 0, self.head_dim) for name in keys_values),
            *(Part(name, 1, wide) for name in output.linears),
        )
        channels = (
            *(Part(name, 0, 1) for name in mlp_inputs.linears),
            *(Part(name, 1, 1) for name in mlp_output.linears),
        )
        return {"heads": Structures(self.kv_heads, heads), "channels": Structures(self.channels, channels)}


def channels_key(config: Mapping[str, Any]) -> str:
    """Under which key config.json has the MLP's width."""
    return "ffn_dim" if "ffn_dim" in config else "intermediate_size"


def kept_count(count: int, share: float, multiple_of: int = 1) -> int:
    """How many stay when at most `share` may go and what stays must be a multiple (or all that there is)."""
    kept = count - int(count * share + 1e-9)
    return min(count, -(-kept // multiple_of) * multiple_of)


def inner_blocks(blocks: int, first: int | None, last: int | None) -> list[int]:
    """The blocks without the sensitive first and last ones: an eighth and a sixteenth of them, at least one each.

    Of 32 blocks 4 … 29 are left, as in the paper.
    """
    begin = max(1, blocks // 8) if first is None else first
    end = blocks - (max(1, blocks // 16) if last is None else last)
    return list(range(begin, end))
