"""What the compressor must know of an architecture: where its blocks are and which linears read the same input.

A new architecture is one entry here, if its blocks are pre-norm and made of `torch.nn.Linear`.
"""

from dataclasses import dataclass
from typing import Any

from compressor.errors import BadCheckpointError


@dataclass(frozen=True, slots=True)
class Group:
    """Linears of a block that read the same tensor; names are relative to the block.

    `source`: the norm or linear whose output that tensor is, row for row, so that a factor can move between them.
    `kind`: attention inputs, attention output, MLP inputs, MLP output.
    """

    kind: str
    source: str
    linears: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Family:
    """`blocks`, `embeddings`, `final_norm`, `head`: names in the checkpoint. `groups`: in order of the forward pass.

    `norm`: "rms" or "layer" (with a bias). `positions`: learned position embeddings, None where they are rotary.
    """

    model_types: tuple[str, ...]
    blocks: str
    embeddings: str
    final_norm: str
    groups: tuple[Group, ...]
    head: str = "lm_head"
    norm: str = "rms"
    positions: str | None = None

    @property
    def linears(self) -> tuple[str, ...]:
        """All linears of a block, in the order of the forward pass."""
        return tuple(name for group in self.groups for name in group.linears)

    def block(self, index: int) -> str:
        """Name of a block: "model.layers.3"."""
        return f"{self.blocks}.{index}"


_LLAMA_GROUPS = (
    Group("attention inputs", "input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    Group("attention output", "self_attn.v_proj", ("self_attn.o_proj",)),
    Group("mlp inputs", "post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    Group("mlp output", "mlp.up_proj", ("mlp.down_proj",)),
)
_OPT_GROUPS = (
    Group("attention inputs", "self_attn_layer_norm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    Group("attention output", "self_attn.v_proj", ("self_attn.out_proj",)),
    Group("mlp inputs", "final_layer_norm", ("fc1",)),
    Group("mlp output", "fc1", ("fc2",)),
)
FAMILIES = (
    Family(
        model_types=("llama", "mistral", "qwen2", "qwen3"),
        blocks="model.layers",
        embeddings="model.embed_tokens",
        final_norm="model.norm",
        groups=_LLAMA_GROUPS,
    ),
    Family(
        model_types=("opt",),
        blocks="model.decoder.layers",
        embeddings="model.decoder.embed_tokens",
        final_norm="model.decoder.final_layer_norm",
        groups=_OPT_GROUPS,
        norm="layer",
        positions="model.decoder.embed_positions",
    ),
)


def family_of(config: dict[str, Any]) -> Family:
    """Raises BadCheckpointError for an architecture that is not known here."""
    model_type = config.get("model_type")
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.model_types)
    raise BadCheckpointError(
        f"its config.json says model_type {model_type!r}, which the compressor does not know; it knows {known} "
        "(compression/compressor/families.py)"
    )
