"""The contract of a format: encoded weights to the tensors and configuration an engine reads, and back."""

from collections.abc import Collection
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from compressor.checkpoint.source import Source
from compressor.numbers.encoded import Encoded
from compressor.numbers.grids import ScaleKind
from compressor.numbers.schemes import Scheme


class Format(Protocol):
    """`name`: in recipes (`export: {format: ...}`); `scale`: what plain scales are stored as.

    Every name is a full one: "model.layers.3.self_attn.q_proj".
    """

    name: ClassVar[str]
    scale: ClassVar[ScaleKind]

    def check(self, scheme: Scheme) -> None:
        """Raises BadRecipeError when this format cannot hold that scheme, naming one that can."""

    def tensors(self, name: str, weight: Encoded, dtype: torch.dtype) -> dict[str, Tensor]:
        """Everything that stands for the linear `name` on disk, by full tensor name (bias apart)."""

    def config(self, scheme: Scheme, ignore: Collection[str], *, has_kv_scales: bool) -> dict[str, Any]:
        """The `quantization_config` of config.json."""

    def read(self, source: Source, name: str) -> Encoded:
        """The inverse of `tensors`, from a checkpoint that says it is in this format."""
