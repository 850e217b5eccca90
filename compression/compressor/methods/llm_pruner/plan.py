"""What leaves how many blocks, and what the model is then: known from recipe and config.json alone."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field

from compressor.errors import BadCheckpointError, BadRecipeError
from compressor.families import Family
from compressor.methods import base
from compressor.methods.llm_pruner.groups import (
    EXPLICIT_HEAD_DIM,
    Geometry,
    Kind,
    Structures,
    channels_key,
    inner_blocks,
    kept_count,
)
from compressor.methods.llm_pruner.importance import Importance, Reduce
from compressor.methods.llm_pruner.model import is_uneven, uneven_config

_FIXED = "engines take a head of {} to be hidden size / heads wide"


class PrunerParams(base.Params):
    """`heads` and `channels` speak for one kind where `ratio` does for both."""

    ratio: float = Field(0.25, ge=0, lt=1, description="share of KV groups and of MLP channels to remove from a block")
    heads: float | None = Field(None, ge=0, lt=1, description="share of KV groups, where it is not `ratio`")
    channels: float | None = Field(None, ge=0, lt=1, description="share of MLP channels, where it is not `ratio`")
    importance: Importance = Field("param_first", description="how a weight counts; random, l1, l2 are baselines")
    reduce: Reduce = Field("sum", description="how the linears of a structure become one number")
    widths: Literal["uniform", "per_layer"] = Field(
        "uniform", description="all blocks alike (every engine loads it), or the first and last blocks whole"
    )
    spare_first: int | None = Field(None, ge=0, description="per_layer: first blocks left whole; null: an eighth")
    spare_last: int | None = Field(None, ge=0, description="per_layer: last blocks left whole; null: a sixteenth")
    multiple_of: int = Field(
        8, ge=1, description="MLP widths stay multiples of this; 128 if 4-bit groups of 128 are to follow"
    )
    iterative_steps: int = Field(1, ge=1, description="remove in so many steps, with new gradients before each")


class Plan:
    """How much leaves which block.

    `pruned`: the blocks that lose something; `inner`: those without the sensitive first and last ones. `kept`: how many
    structures of each kind stay in a pruned block.
    """

    def __init__(self, params: PrunerParams, config: Mapping[str, Any], family: Family) -> None:
        """Raises BadCheckpointError and BadRecipeError when these do not go together."""
        if is_uneven(config):
            raise BadCheckpointError("its blocks have sizes that differ already: prune the checkpoint it was made of")
        self.params, self.config, self.family = params, config, family
        self.geometry = Geometry.of(config)
        self.structures = self.geometry.structures(family)
        blocks = self.geometry.blocks
        self.inner = inner_blocks(blocks, params.spare_first, params.spare_last)
        self.pruned = self.inner if params.widths == "per_layer" else list(range(blocks))
        if not self.pruned:
            raise BadRecipeError(f"of {blocks} blocks none is left to prune: lower spare_first or spare_last")
        if params.heads and not self._has_head_dim():
            raise BadRecipeError(f"`heads` cannot be pruned: {_FIXED.format(config.get('model_type'))}; leave it out")
        self.kept: dict[Kind, int] = {
            "heads": kept_count(self.geometry.kv_heads, self._share("heads")),
            "channels": kept_count(self.geometry.channels, self._share("channels"), params.multiple_of),
        }
        if all(self.kept[kind] == held.count for kind, held in self.structures.items()):
            raise BadRecipeError(
                f"nothing would be removed: that share of {self.geometry.kv_heads} KV groups is less than one, and of "
                f"{self.geometry.channels} channels less than a multiple of {params.multiple_of}"
            )
        if self.is_renamed and (_has_bias(config, "attention") or _has_bias(config, "mlp")):
            raise BadRecipeError(
                f"engines refuse a Llama with biases whose hidden size, {self.geometry.hidden}, is no multiple of its "
                f"heads, {self.sizes(0)[0]}: give another share as `heads`, 0 for none"
            )

    def weights(self, blocks: Iterable[int]) -> list[str]:
        """Full names of the weights that lose something in these blocks."""
        parts = [part for held in self.structures.values() for part in held.parts]
        return [f"{self.family.block(index)}.{part.linear}.weight" for index in blocks for part in parts]

    def removed_parameters(self) -> int:
        """Weights and biases that leave, over all blocks."""
        return len(self.pruned) * sum(
            (held.count - self.kept[kind]) * self._size(held) for kind, held in self.structures.items()
        )

    def sizes(self, index: int) -> tuple[int, int, int]:
        """Query heads, KV heads and channels of a block afterwards."""
        is_pruned = index in set(self.pruned)
        groups = self.kept["heads"] if is_pruned else self.geometry.kv_heads
        channels = self.kept["channels"] if is_pruned else self.geometry.channels
        return groups * self.geometry.queries_a_group, groups, channels

    def new_config(self) -> dict[str, Any]:
        """config.json of the result; the size of a head is said, since it no longer follows from the others."""
        config = dict(self.config)
        if self._has_head_dim():
            config["head_dim"] = self.geometry.head_dim
        if self.params.widths == "per_layer":
            query_heads, kv_heads, channels = zip(*map(self.sizes, range(self.geometry.blocks)), strict=True)
            return uneven_config(config, query_heads, kv_heads, channels)
        query_head_count, kv_head_count, channel_count = self.sizes(0)
        if self.is_renamed:
            config = _as_mistral(config)
        config["num_attention_heads"] = query_head_count
        if "num_key_value_heads" in config or kv_head_count != query_head_count:
            config["num_key_value_heads"] = kv_head_count
        return config | {channels_key(config): channel_count}

    @property
    def is_renamed(self) -> bool:
        """Whether the result is written as Mistral: transformers 5, and with it vLLM and SGLang, refuse a Llama whose
        hidden size is no multiple of its heads, even where the size of a head is said."""
        is_llama = self.config.get("model_type") == "llama" and self.params.widths == "uniform"
        return is_llama and self.geometry.hidden % self.sizes(0)[0] != 0

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "importance": self.params.importance,
            "widths": self.params.widths,
            "pruned_blocks": self.pruned,
            "kv_groups": {"before": self.geometry.kv_heads, "after": self.kept["heads"]},
            "channels": {"before": self.geometry.channels, "after": self.kept["channels"]},
            "removed_parameters": self.removed_parameters(),
        }

    def why_attention_stays(self) -> str | None:
        """Where heads were to leave and none does."""
        if self._asked("heads") == 0 or self.kept["heads"] < self.geometry.kv_heads:
            return None
        if not self._has_head_dim():
            return _FIXED.format(self.config.get("model_type"))
        return f"{self._asked('heads'):g} of {self.geometry.kv_heads} KV groups is less than one"

    def _asked(self, kind: Kind) -> float:
        own = self.params.heads if kind == "heads" else self.params.channels
        return self.params.ratio if own is None else own

    def _share(self, kind: Kind) -> float:
        return 0.0 if kind == "heads" and not self._has_head_dim() else self._asked(kind)

    def _has_head_dim(self) -> bool:
        return self.config.get("model_type") in EXPLICIT_HEAD_DIM

    def _size(self, held: Structures) -> int:
        """Parameters of one structure. Biases of rows go along, where a model has them."""
        has_bias = {"heads": _has_bias(self.config, "attention"), "channels": _has_bias(self.config, "mlp")}
        kind = "heads" if held is self.structures["heads"] else "channels"
        return sum(part.width * (self.geometry.hidden + (part.axis == 0 and has_bias[kind])) for part in held.parts)


def _as_mistral(config: dict[str, Any]) -> dict[str, Any]:
    """config.json of the same network under its other name: Mistral is Llama without biases, with a window or, as here,
    without one."""
    kept = {key: value for key, value in config.items() if key not in ("attention_bias", "mlp_bias", "pretraining_tp")}
    return kept | {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None}


def _has_bias(config: Mapping[str, Any], what: Literal["attention", "mlp"]) -> bool:
    """Whether rows of these linears have a bias, which config.json says in a way of each architecture's own."""
    if config.get("model_type") == "opt":
        return bool(config.get("enable_bias", True))
    if what == "attention":
        return config.get("model_type") == "qwen2" or bool(config.get("attention_bias"))
    return bool(config.get("mlp_bias"))
