"""The contract of a format: encoded weights to the tensors and configuration an engine reads, and back.

Two kinds of names pass through here. A linear's full name ("model.layers.3.self_attn.q_proj") is given to `tensors` and
`read`. Calibrated scales travel under neutral names until `extras` gives them the format's own:
`<linear>.input_scale`, what multiplies the codes of a static FP8 input, or the scale of a whole input tensor in NVFP4;
`<attention>.k_scale` and `<attention>.v_scale`, what multiplies the codes of cached keys and values.
"""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from compressor.checkpoint.source import Source
from compressor.errors import BadRecipeError
from compressor.numbers.encoded import Encoded
from compressor.numbers.grids import ScaleKind
from compressor.numbers.schemes import Scheme


class Stored(Protocol):
    """What `read` finds: an encoded weight, or in the dense format a plain one."""

    def dense(self) -> Tensor:
        """The weight [O, I], float32."""


class Format(Protocol):
    """`name`: in recipes (`export: {format: ...}`); `scale`: what plain scales are stored as; `scheme`: what weights
    are in, without which only `check` can be called."""

    name: ClassVar[str]
    scale: ClassVar[ScaleKind]
    scheme: Scheme | None

    def __init__(self, scheme: Scheme | None = None) -> None: ...

    @classmethod
    def of(cls, config: Mapping[str, Any], /) -> "Format":
        """Bound to the scheme that a `quantization_config` of this format describes. Raises BadCheckpointError."""

    def check(self, scheme: Scheme, /) -> None:
        """Raises BadRecipeError when this format cannot hold that scheme, naming one that can."""

    def tensors(self, name: str, weight: Encoded, dtype: torch.dtype, /) -> dict[str, Tensor]:
        """Everything that stands for the linear `name` on disk, by full tensor name (bias apart). Raises BadRecipeError
        when the linear's shape does not fit."""

    def extras(self, scales: Mapping[str, Tensor], /) -> dict[str, Tensor]:
        """Calibrated scales under neutral names to the format's tensors. Raises BadRecipeError."""

    def config(
        self, scheme: Scheme, ignore: Collection[str], *, has_kv_scales: bool = False, is_scattered: bool = False
    ) -> dict[str, Any]:
        """The `quantization_config` of config.json. `is_scattered`: groups are not successive inputs (act-order).
        Raises BadRecipeError where that cannot be said."""

    def files(self, config: Mapping[str, Any], /) -> dict[str, Any]:
        """Further JSON files that readers of this format look for, by name, made of `config`."""

    def read(self, source: Source, name: str, /) -> Stored:
        """The inverse of `tensors`, from a checkpoint of this scheme."""

    def scales(self, source: Source, name: str, /) -> dict[str, Tensor]:
        """The inverse of `extras` for one linear or attention module: "input_scale", or "k_scale" and "v_scale", each
        there only if stored, float32 scalars."""


class Plain:
    """What formats share that hold weights only, and say everything in config.json."""

    name: ClassVar[str]

    def extras(self, scales: Mapping[str, Tensor], /) -> dict[str, Tensor]:
        """Raises BadRecipeError: there is no place for calibrated scales."""
        if scales:
            raise BadRecipeError(f"format {self.name} has no place for {next(iter(scales))}: use compressed-tensors")
        return {}

    def need_successive(self, is_scattered: bool) -> None:
        """Raises BadRecipeError: the format knows a weight's group by its place."""
        if is_scattered:
            raise BadRecipeError(
                f"format {self.name} has no place for groups of scattered inputs: use act_order: static, or the gptq "
                "format, which vLLM no longer serves in that order"
            )

    def files(self, _config: Mapping[str, Any], /) -> dict[str, Any]:
        """None."""
        return {}

    def scales(self, _source: Source, _name: str, /) -> dict[str, Tensor]:
        """None."""
        return {}


def refuse(name: str, scheme: Scheme, why: str, instead: str) -> BadRecipeError:
    """The error of `check`, worded the same everywhere."""
    return BadRecipeError(f"format {name} cannot hold scheme {scheme.name}, because {why}: use {instead}")


def need_whole_groups(name: str, inputs: int, group_size: int | None) -> None:
    """Raises BadRecipeError: readers take no last group that is smaller."""
    if group_size is not None and inputs % group_size:
        raise BadRecipeError(
            f"{name} has {inputs} inputs, which groups of {group_size} do not divide: choose a group_size that does, "
            "or leave the layer out with `ignore`"
        )


def is_full_name(name: str) -> bool:
    """Whether a linear is named as in the checkpoint, with its block's number, and not as in a block."""
    return any(part.isdigit() for part in name.split("."))


def as_patterns(ignore: Collection[str]) -> list[str]:
    """Names of linears left alone: full ones and `lm_head` as they are, those within a block as a suffix "re:.*…".
    Heads are never encoded, so `lm_head` is always among them."""
    whole = {"lm_head", *ignore}
    return sorted(
        name if name == "lm_head" or _is_full(name) else f"re:.*{name.replace('.', chr(92) + '.')}$" for name in whole
    )


def _is_full(name: str) -> bool:
    return any(part.isdigit() for part in name.split("."))
