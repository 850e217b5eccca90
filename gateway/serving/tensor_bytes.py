"""Tensors as bytes, as KServe v2 and Triton lay them out: little-endian, BYTES elements each behind a 4-byte length.

Apart from the doors because gRPC's raw contents and HTTP's binary tensors are the same.
"""

import struct
from typing import Any

from gateway.serving.tensors import Tensor, wrong

_FORMATS = {"BOOL": "?", "INT32": "i", "UINT64": "Q", "FP32": "f"}


def unpack(name: str, datatype: str, data: bytes) -> list[Any]:
    """The values of input `name`; none for a datatype that no input has. Raises InvalidRequest."""
    if datatype == "BYTES":
        return _split(name, data)
    letter = _FORMATS.get(datatype)
    if letter is None:
        return []
    size = struct.calcsize(f"<{letter}")
    if len(data) % size:
        raise wrong(name, f"The raw contents of {name[:128]!r} ({datatype}) must be a multiple of {size} bytes.")
    return list(struct.unpack(f"<{len(data) // size}{letter}", data))


def pack(tensor: Tensor) -> bytes:
    if tensor.datatype == "BYTES":
        return b"".join([len(value).to_bytes(4, "little") + value for value in tensor.values])
    return struct.pack(f"<{len(tensor.values)}{_FORMATS[tensor.datatype]}", *tensor.values)


def _split(name: str, data: bytes) -> list[bytes]:
    values, at = [], 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        if at + 4 > len(data) or end > len(data):
            raise wrong(name, f"The raw contents of {name[:128]!r} (BYTES) end in the middle of an element.")
        values.append(data[at + 4 : end])
        at = end
    return values
