"""Where the tensors of a safetensors file are, read from its header alone: 8 bytes of length, JSON, then the data.

Apart from source.py because it needs no torch: whoever only looks at a checkpoint has none.
Layout: https://github.com/huggingface/safetensors#format
"""

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from compressor.errors import BadCheckpointError

_LENGTH_BYTES = 8
_LIMIT_BYTES = 100 * 2**20
BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor on disk. `begin`, `end`: bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def count(self) -> int:
        """Elements."""
        return prod(self.shape)


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of one file by name. Raises BadCheckpointError when the file is not whole."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_LENGTH_BYTES)
            length = struct.unpack("<Q", head)[0] if len(head) == _LENGTH_BYTES else 0
            if not 0 < length <= min(_LIMIT_BYTES, size):
                raise _broken(path, size, "its header is cut off or no header at all")
            entries = json.loads(file.read(length))
    except OSError as error:
        raise BadCheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise _broken(path, size, "its header is no JSON") from error
    if not isinstance(entries, dict):
        raise _broken(path, size, "its header is no JSON object")
    start = _LENGTH_BYTES + length
    found = {name: _stored(path, name, entry, start) for name, entry in entries.items() if name != "__metadata__"}
    whole = max((tensor.end for tensor in found.values()), default=start)
    if whole != size:
        raise _broken(path, size, f"its header promises {whole:,}")
    return found


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the model itself, not those of adapters in folders below."""
    return sorted(folder.glob("*.safetensors"))


def read_headers(folder: Path) -> dict[str, Stored]:
    """All tensors of a checkpoint. Raises BadCheckpointError."""
    return {name: tensor for file in weight_files(folder) for name, tensor in read_header(file).items()}


def _stored(path: Path, name: str, entry: Any, start: int) -> Stored:
    try:
        begin, end = entry["data_offsets"]
        tensor = Stored(str(entry["dtype"]), tuple(map(int, entry["shape"])), start + int(begin), start + int(end))
    except (KeyError, TypeError, ValueError) as error:
        raise BadCheckpointError(f"{path}: the header's entry of {name} is broken") from error
    bits = BITS.get(tensor.dtype)
    if bits is not None and (tensor.end - tensor.begin) * 8 != tensor.count * bits:
        raise BadCheckpointError(f"{path}: {name} has {tensor.end - tensor.begin:,} bytes, not those of its shape")
    return tensor


def _broken(path: Path, size: int, why: str) -> BadCheckpointError:
    return BadCheckpointError(f"{path} is no whole safetensors file ({size:,} bytes): {why}; copy it again")
