"""Writing a checkpoint piece by piece into a folder that nobody takes for a finished one.

A piece (a block, the embeddings) is one file, written whole, synced and renamed; pieces that are there survive an
interruption. `finish` gives them their final names and an index; publishing the folder is publish.py's.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from compressor.checkpoint.disk import refuse_full_disk
from compressor.checkpoint.source import INDEX, WHOLE

# Small checkpoints are put into one file at the end, as people expect; pieces of large ones stay shards.
ONE_FILE_BYTES = 64 * 2**20


class Sink:
    """`config`: what config.json will say; whoever writes the tensors sets it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def has(self, piece: str) -> bool:
        """Whether a piece was written, now or before an interruption."""
        return self._path(piece).exists()

    def write(self, piece: str, tensors: Mapping[str, Tensor]) -> None:
        """One piece, whole or not at all. Raises NoSpaceError when the disk is full."""
        fresh = self._path(piece).with_suffix(".part")
        whole = _apart({name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)})
        with refuse_full_disk(self.folder):
            save_file(whole, fresh, metadata={"format": "pt"})
            fresh.chmod(0o644)
            _sync(fresh)
            os.replace(fresh, self._path(piece))

    def finish(self) -> None:
        """Final names, index and config.json. Pieces keep the order in which they were first written."""
        pieces = sorted(self.folder.glob("piece-*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
        with refuse_full_disk(self.folder):
            if sum(path.stat().st_size for path in pieces) <= ONE_FILE_BYTES:
                self._join(pieces)
            else:
                self._index(pieces)
            write_json(self.folder / "config.json", self.config)

    def _join(self, pieces: list[Path]) -> None:
        tensors = {name: tensor for piece in pieces for name, tensor in _read(piece).items()}
        save_file(tensors, self.folder / WHOLE, metadata={"format": "pt"})
        (self.folder / WHOLE).chmod(0o644)
        for piece in pieces:
            piece.unlink()

    def _index(self, pieces: list[Path]) -> None:
        weight_map: dict[str, str] = {}
        total = 0
        for number, piece in enumerate(pieces, 1):
            shard = f"model-{number:05}-of-{len(pieces):05}.safetensors"
            with safe_open(piece, framework="pt") as opened:
                weight_map.update(dict.fromkeys(opened.keys(), shard))
            total += piece.stat().st_size
            os.replace(piece, self.folder / shard)
        write_json(self.folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})

    def _path(self, piece: str) -> Path:
        return self.folder / f"piece-{piece}.safetensors"


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _read(piece: Path) -> dict[str, Tensor]:
    with safe_open(piece, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - safe_open is no mapping


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A scale that several linears share is stored for each of them; safetensors takes no tensor twice."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.untyped_storage().data_ptr() in seen:
            tensors[name] = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
    return tensors


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
