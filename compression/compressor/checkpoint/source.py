"""Reading a Hugging Face checkpoint: configuration, which tensors there are, and one tensor at a time.

Nothing is loaded ahead: a model of any size is read by its blocks. What is broken is found here, with the file's name.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from compressor.errors import BadCheckpointError

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor is. `size_bytes`: as stored."""

    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        count = 1
        for extent in self.shape:
            count *= extent
        return count * BYTES.get(self.dtype, 1)


class Source:
    """A checkpoint that is there already. Raises BadCheckpointError from the constructor and from every read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = _config(folder)

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """All tensors by name."""
        found: dict[str, Entry] = {}
        for file in _files(self.folder):
            found |= entries_of(file)
        _compare_with_index(self.folder, found)
        return found

    @property
    def dtype(self) -> torch.dtype:
        """What dense weights are stored in."""
        return dtype_of(self.config)

    @property
    def size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.entries.values())

    def names(self, prefix: str) -> list[str]:
        """Tensors under a module's name."""
        return [name for name in self.entries if name.startswith(f"{prefix}.")]

    def read(self, name: str, *, may_be_nan: bool = False) -> Tensor:
        """One tensor, as stored."""
        entry = self.entries.get(name)
        if entry is None:
            raise BadCheckpointError(f"{self.folder} has no tensor {name}: is a shard missing?")
        try:
            with _opened(entry.file) as opened:
                tensor: Tensor = opened.get_tensor(name)
        except SafetensorError as error:
            raise BadCheckpointError(f"{entry.file}: tensor {name} cannot be read: {error}") from error
        if tensor.is_floating_point() and not may_be_nan and not bool(tensor.float().isfinite().all()):
            raise BadCheckpointError(f"{entry.file}: tensor {name} holds NaN or infinite values")
        return tensor

    def read_module(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under a module's name, keyed relative to it."""
        return {name.removeprefix(f"{prefix}."): self.read(name) for name in self.names(prefix)}


def dtype_of(config: dict[str, Any]) -> torch.dtype:
    """What a config.json says that dense weights are stored in; bfloat16 where it says nothing."""
    named = str(config.get("torch_dtype") or config.get("dtype") or "bfloat16").removeprefix("torch.")
    dtype = getattr(torch, named, None)
    return dtype if isinstance(dtype, torch.dtype) else torch.bfloat16


def entries_of(file: Path) -> dict[str, Entry]:
    """The tensors of one file. Raises BadCheckpointError."""
    with _opened(file) as opened:
        parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - safe_open is no mapping
        return {name: Entry(file, str(part.get_dtype()), tuple(part.get_shape())) for name, part in parts.items()}


def _config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise BadCheckpointError(
            f"{folder} is not a folder: give a Hugging Face checkpoint (config.json, *.safetensors)"
        )
    path = folder / "config.json"
    if not path.is_file():
        adapter = (
            " It is a LoRA adapter: merge it into its base first." if (folder / "adapter_config.json").is_file() else ""
        )
        raise BadCheckpointError(f"{folder} is not a checkpoint: it has no config.json.{adapter}")
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadCheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise BadCheckpointError(f"{path} is not a JSON object")
    return config


def _files(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        try:
            names = set(json.loads((folder / INDEX).read_text("utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise BadCheckpointError(f"{folder / INDEX} cannot be read: {error!r}") from error
        files = [folder / str(name) for name in sorted(names)]
    else:
        files = [folder / WHOLE] if (folder / WHOLE).is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = next(folder.glob("*.bin"), None)
        hint = (
            f" {pickles.name} is a pickle, which runs code when read: convert it to safetensors first."
            if pickles
            else ""
        )
        raise BadCheckpointError(f"{folder} has no *.safetensors files.{hint}")
    for file in files:
        if not file.is_file():
            raise BadCheckpointError(f"{file} is missing: {folder / INDEX} names it")
    return files


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        size = file.stat().st_size if file.exists() else 0
        raise BadCheckpointError(f"{file} is no whole safetensors file ({size:,} bytes): {error}") from error


def _compare_with_index(folder: Path, found: dict[str, Entry]) -> None:
    if not (folder / INDEX).is_file():
        return
    for name, file in json.loads((folder / INDEX).read_text("utf-8"))["weight_map"].items():
        if name not in found:
            raise BadCheckpointError(f"{folder / str(file)} lacks tensor {name}, which {folder / INDEX} promises")
