"""From many key/value heads to few: successive heads become one, their mean or the first of them.

GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints, arXiv 2305.13245, section 2.1. The
KV cache shrinks by the same factor, and with it what decoding must read per token; the weights hardly do. Exact only
where the heads that become one are equal; the paper trains on afterwards (5 % of the original steps), which here is
fine-tuning of the checkpoint that this writes. A norm over the head (Qwen3's k_norm) is shared by all heads and stays.
Linear in the weights: a block at a time, no data.
"""

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from compressor.errors import BadCheckpointError, BadRecipeError
from compressor.methods import base
from compressor.passes import ModelPass

Pool = Literal["mean", "first"]
# Architectures whose config.json has num_key_value_heads, and engines that go by it.
GROUPED = frozenset({"llama", "mistral", "qwen2", "qwen3"})


class GQAParams(base.Params):
    kv_heads: int | None = Field(None, ge=1, description="key/value heads afterwards; null: half of those there are")
    pool: Pool = Field("mean", description="what heads that become one become: their mean, or the first of them")


class GQA:
    name: ClassVar[str] = "gqa"
    about: ClassVar[str] = "pools key/value heads: a smaller KV cache on every engine, but train on afterwards"
    source: ClassVar[str] = (
        "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints, arXiv 2305.13245"
    )
    needs_inputs: ClassVar[bool] = False
    Params: ClassVar[type[base.Params]] = GQAParams

    def __init__(self, params: GQAParams) -> None:
        self._params = params

    @property
    def structure(self) -> str | None:
        return None

    def run(self, work: ModelPass) -> None:
        source, family, config = work.source, work.family, work.source.config
        before = _heads(config)
        after = kv_heads_after(config, self._params.kv_heads)
        outside = [name for name in source.entries if not name.startswith(f"{family.blocks}.")]
        work.sink.write("00000-outside", {name: source.read(name) for name in outside})
        pooled = {f"{name}.{leaf}" for name in family.groups[0].linears[1:] for leaf in ("weight", "bias")}
        blocks = int(config["num_hidden_layers"])
        with work.screen.work("blocks", blocks):
            for index in range(blocks):
                name = family.block(index)
                tensors = {
                    f"{name}.{key}": pool(tensor, before, after, self._params.pool) if key in pooled else tensor
                    for key, tensor in source.read_module(name).items()
                }
                work.sink.write(f"{index + 1:05}", tensors)
                work.screen.step(f"block {index + 1} of {blocks}")
        work.sink.config = dict(config) | {"num_key_value_heads": after}
        work.facts["kv_heads"] = {"before": before, "after": after}
        sizes = {"before": kv_bytes_a_token(config), "after": kv_bytes_a_token(work.sink.config)}
        work.facts["kv_bytes_per_token"] = sizes
        work.screen.say(f"KV cache in 16 bits: {sizes['before']:,} → {sizes['after']:,} bytes a token")


def pool(rows: Tensor, before: int, after: int, how: Pool = "mean") -> Tensor:
    """A key or value projection's weight [before · d, I] or bias [before · d] with `after` heads, same dtype."""
    heads = rows.reshape(after, before // after, -1, *rows.shape[1:])
    one = heads[:, 0] if how == "first" else heads.double().mean(1).to(rows.dtype)
    return one.reshape(-1, *rows.shape[1:]).contiguous()


def kv_heads_after(config: dict[str, Any], wanted: int | None) -> int:
    """Raises BadCheckpointError and BadRecipeError for what cannot be."""
    model_type, before = config.get("model_type"), _heads(config)
    if model_type not in GROUPED:
        raise BadCheckpointError(f"{model_type} has a key/value head for each query head, in its architecture")
    after = before // 2 if wanted is None else wanted
    if not 0 < after < before or before % after:
        possible = ", ".join(str(count) for count in range(1, before) if before % count == 0)
        told = f"kv_heads may be {possible}" if possible else "one is the least"
        raise BadRecipeError(f"{before} key/value heads cannot become {after}: {told}")
    return after


def kv_bytes_a_token(config: dict[str, Any], element_bytes: int = 2) -> int:
    """Keys and values of one token in all blocks."""
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(2 * config["num_hidden_layers"] * _heads(config) * head_dim * element_bytes)


def _heads(config: dict[str, Any]) -> int:
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])
