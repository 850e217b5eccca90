"""Read tensors of a Hugging Face checkpoint with nothing but numpy.

The format is a little-endian u64 header length, a JSON header (name -> dtype, shape, byte range) and the raw bytes
(https://github.com/huggingface/safetensors#format). It is apart from the converter because it knows nothing of models.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_HEADER_LIMIT_BYTES = 100_000_000
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


class SafetensorsError(ValueError):
    """The file is not a readable safetensors file; the message names the file and what is wrong."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies on disk. ``dtype`` is F32, F16 or BF16; ``shape`` is row-major."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset_bytes: int
    size_bytes: int

    def read(self) -> npt.NDArray[Any]:
        """The values: float16 for F16, float32 for F32 and for BF16 (which widens exactly)."""
        with self.path.open("rb") as file:
            file.seek(self.offset_bytes)
            raw = file.read(self.size_bytes)
        if len(raw) != self.size_bytes:
            raise SafetensorsError(f"{self.path} ends inside a tensor: the download or copy is incomplete")
        if self.dtype == "BF16":
            halves = np.frombuffer(raw, dtype="<u2").astype(np.uint32)
            return (halves << 16).view(np.float32).reshape(self.shape)
        return np.frombuffer(raw, dtype="<f4" if self.dtype == "F32" else "<f2").reshape(self.shape)


class TensorFolder(Mapping[str, StoredTensor]):
    """All tensors of a checkpoint folder, one file or many shards, by name.

    Raises SafetensorsError when there is no safetensors file, a header is broken, or a dtype is not a plain float.
    """

    def __init__(self, folder: Path) -> None:
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            raise SafetensorsError(f"no *.safetensors file in {folder}")
        self._tensors: dict[str, StoredTensor] = {}
        for path in paths:
            self._tensors.update(_read_header(path))
        self._check_index(folder)

    def __getitem__(self, name: str) -> StoredTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def _check_index(self, folder: Path) -> None:
        index = folder / "model.safetensors.index.json"
        if not index.exists():
            return
        wanted = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        missing = sorted(set(wanted) - set(self._tensors))
        if missing:
            raise SafetensorsError(f"{folder}: {len(missing)} tensors of the index are missing, first {missing[0]!r}")


def _read_header(path: Path) -> dict[str, StoredTensor]:
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(_HEADER_LIMIT_BYTES, size_bytes - 8):
            raise SafetensorsError(f"{path} is not a safetensors file (header length {length})")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise SafetensorsError(f"{path}: the header is not JSON: {error}") from error
    start = 8 + length
    return {
        name: _stored(path, name, entry, start, size_bytes) for name, entry in header.items() if name != "__metadata__"
    }


def _stored(path: Path, name: str, entry: dict[str, Any], start: int, file_bytes: int) -> StoredTensor:
    dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if dtype not in _ITEM_BYTES:
        raise SafetensorsError(
            f"{path}: tensor {name!r} is {dtype}; only F32, F16 and BF16 are read. "
            "Quantized checkpoints need a GGUF or OpenVINO export"
        )
    count = int(np.prod(shape, dtype=np.int64))
    if end - begin != count * _ITEM_BYTES[dtype] or start + end > file_bytes:
        raise SafetensorsError(f"{path}: tensor {name!r} does not fit its byte range")
    return StoredTensor(path, dtype, shape, start + begin, end - begin)
