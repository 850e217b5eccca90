"""A checkpoint of any format seen as a plain one: encoded linears are read as the dense weights that they stand for.

What reads checkpoints by plain names (a whole model, the skeleton that goes block by block) needs no knowledge of
formats then.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compressor.checkpoint.source import Entry, Source
from compressor.errors import BadCheckpointError
from compressor.export.gguf_source import GGUFSource, gguf_of
from compressor.formats.lookup import format_of

_PLAIN = ("weight", "bias")


class DenseSource(Source):
    """`config` is without its quantization_config, for transformers would act on it; `stored`: the checkpoint as it is.

    Raises BadCheckpointError, also for a quantization that no format of ours reads.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.stored = Source(folder) if gguf_of(folder) is None else GGUFSource(folder)
        self.format = format_of(self.config)
        self.quantization: Mapping[str, Any] = self.config.get("quantization_config") or {}
        if self.quantization and self.format is None:
            named = self.quantization.get("quant_method")
            raise BadCheckpointError(f"{folder} is quantized by {named!r}, a layout that is not read here")
        self.config = {key: value for key, value in self.config.items() if key != "quantization_config"}

    @cached_property
    def encoded(self) -> frozenset[str]:
        """Full names of linears that are stored as more than a weight and a bias."""
        if self.format is None:
            return frozenset()
        parts: dict[str, set[str]] = {}
        for name in self.stored.entries:
            module, _, part = name.rpartition(".")
            parts.setdefault(module, set()).add(part)
        return frozenset(module for module, found in parts.items() if _is_encoded(found))

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Plain names only. The shape of an encoded weight is that of its first stored part."""
        found: dict[str, Entry] = {}
        for name, entry in self.stored.entries.items():
            module, _, part = name.rpartition(".")
            if module in self.encoded and part != "bias":
                found.setdefault(f"{module}.weight", replace(entry, dtype="F32"))
            elif self.format is None or part in _PLAIN:
                found[name] = entry
        return found

    def read(self, name: str, *, may_be_nan: bool = False) -> Tensor:
        """One plain tensor: as stored, or float32 where it was encoded."""
        linear = name.removesuffix(".weight")
        if linear == name or linear not in self.encoded:
            return self.stored.read(name, may_be_nan=may_be_nan)
        assert self.format is not None
        weight = self.format.read(self.stored, linear).dense()
        if not may_be_nan and not bool(torch.isfinite(weight).all()):
            raise BadCheckpointError(f"{self.folder}: {name} is NaN or infinite once decoded")
        return weight

    def scales(self, module: str) -> dict[str, Tensor]:
        """Calibrated scales of a linear ("input_scale") or an attention module ("k_scale", "v_scale")."""
        return {} if self.format is None else self.format.scales(self.stored, module)


def _is_encoded(parts: set[str]) -> bool:
    """`weight_packed` and the like, or a weight with a scale; k_scale alone belongs to an attention module."""
    rest = parts - {*_PLAIN, "k_scale", "v_scale", "q_scale"}
    return bool(rest)
