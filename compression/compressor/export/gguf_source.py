"""Reading a folder with a model.gguf as if it were a dense checkpoint, for whoever measures what was written.

The inverse of gguf_folder.py: plain names, rotary rows in their plain order, blocks times scales in float32.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from compressor.checkpoint.source import Entry, Source
from compressor.errors import BadCheckpointError
from compressor.export.gguf_names import plain_names, shape_of


def gguf_of(folder: Path) -> Path | None:
    """The one GGUF file of a folder whose weights are nowhere else."""
    found = sorted(folder.glob("*.gguf"))
    return found[0] if len(found) == 1 and not any(folder.glob("*.safetensors")) else None


class GGUFSource(Source):
    """Raises BadCheckpointError from the constructor and from every read."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.file = gguf_of(folder)
        if self.file is None:
            raise BadCheckpointError(f"{folder} has no GGUF file, or more than one")
        self.shape = shape_of(self.config)

    @cached_property
    def _stored(self) -> dict[str, Any]:
        try:
            found = {tensor.name: tensor for tensor in gguf.GGUFReader(self.file).tensors}
        except (ValueError, IndexError, OSError) as error:
            raise BadCheckpointError(f"{self.file} is no whole GGUF file: {error}") from error
        names = plain_names(self.shape)
        unknown = next((name for name in found if name not in names), None)
        if unknown is not None:
            raise BadCheckpointError(f"{self.file} has a tensor {unknown}, which {self.shape.architecture} has not")
        return {names[name]: tensor for name, tensor in found.items()}

    @cached_property
    def entries(self) -> dict[str, Entry]:
        assert self.file is not None
        return {
            name: Entry(self.file, "F32", tuple(int(extent) for extent in reversed(tensor.shape)))
            for name, tensor in self._stored.items()
        }

    def read(self, name: str, *, may_be_nan: bool = False) -> Tensor:
        tensor = self._stored.get(name)
        if tensor is None:
            raise BadCheckpointError(f"{self.file} has no tensor for {name}")
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if not may_be_nan and not np.isfinite(values).all():
            raise BadCheckpointError(f"{self.file}: tensor {tensor.name} holds NaN or infinite values")
        if self.shape.architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = self.shape.heads if "q_proj" in name else self.shape.kv_heads
            values = values[np.argsort(rotary_order(values.shape[0], heads))]
        return torch.from_numpy(np.ascontiguousarray(values))


def rotary_order(rows: int, heads: int) -> Any:
    """Which plain row each row of Llama's q and k is in GGUF, where pairs that turn together are (0, 1), (2, 3), …
    and not (0, d/2), (1, d/2 + 1), …: [rows], head by head."""
    return np.arange(rows).reshape(heads, 2, rows // heads // 2).transpose(0, 2, 1).ravel()
