"""Tensors of the KServe v2 protocol as Python values: what a model takes and gives, and their raw form on the wire.

Values are flat and row-major. Apart from the wires because both need them, and without numpy: a request holds a few
scalars and one list of token ids.
Source: Triton's `protocol/extension_binary_data.md` for the raw form; contracts section 3.1.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from gateway.core.errors import UpstreamError

CODES: dict[str, str] = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP32": "f",
    "FP64": "d",
}
"""struct's letter of each datatype; BYTES has none, FP16 and BF16 never carry anything the gateway reads."""
_ONE = {datatype: struct.Struct(f"<{code}") for datatype, code in CODES.items()}
_LENGTH = struct.Struct("<I")


class Spec(NamedTuple):
    """What metadata says of a tensor. `rank` counts the batch dimension where the model has one."""

    datatype: str
    rank: int


class Tensor(NamedTuple):
    """One input of a request. BYTES values are bytes."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Sequence[Any]


class ModelInfo(msgspec.Struct):
    """A model as its server describes it: metadata, and what of its configuration matters here.

    `parameters` are those of config.pbtxt. `decoupled`: it may answer a request with any number of responses.
    """

    name: str
    inputs: dict[str, Spec]
    outputs: dict[str, Spec]
    platform: str = ""
    decoupled: bool = True
    parameters: dict[str, str] = {}


class Outputs(NamedTuple):
    """One response: output values by name; `final`: nothing comes after it."""

    values: Mapping[str, Sequence[Any]]
    final: bool


class Inputs:
    """Builds a request's tensors in the types and ranks that the model's metadata asks for."""

    def __init__(self, model: ModelInfo) -> None:
        self._specs = model.inputs
        self.tensors: list[Tensor] = []

    def put(self, name: str, *values: Any, width: int | None = None) -> None:
        """A scalar or list; with `width`, a matrix of rows so wide. Raises UpstreamError when there is no such input.

        Dimensions are filled up on the left to the rank in the metadata: a batch of one.
        """
        spec = self._specs.get(name)
        if spec is None:
            raise UpstreamError(f"The model's metadata lists no input {name!r}, which its contract requires.")
        shape: tuple[int, ...] = (len(values),) if width is None else (len(values) // width, width)
        shape = (1,) * (spec.rank - len(shape)) + shape
        self.tensors.append(Tensor(name, spec.datatype, shape, values))

    def put_known(self, name: str, *values: Any) -> None:
        """The same, or nothing where the model has no such input."""
        if name in self._specs:
            self.put(name, *values)


def to_raw(tensor: Tensor) -> bytes:
    """Little-endian elements; BYTES each behind its length."""
    values = tensor.values
    if tensor.datatype == "BYTES":
        return b"".join([_LENGTH.pack(len(value)) + value for value in values])
    return struct.pack(f"<{len(values)}{CODES[tensor.datatype]}", *values)


def from_raw(datatype: str, data: bytes) -> Sequence[Any]:
    """Raises UpstreamError for bytes that cannot be such a tensor."""
    if datatype == "BYTES":
        return _strings(data)
    one = _ONE.get(datatype)
    if one is None:
        return ()
    size = one.size
    if len(data) == size:  # nearly always: a stream's next token
        return one.unpack(data)
    if len(data) % size:
        raise UpstreamError(f"The engine sent {len(data)} bytes as a tensor of {datatype}.")
    return struct.unpack(f"<{len(data) // size}{CODES[datatype]}", data)


def _strings(data: bytes) -> list[bytes]:
    values: list[bytes] = []
    at = 0
    while at < len(data):
        end = at + 4 + (_LENGTH.unpack_from(data, at)[0] if at + 4 <= len(data) else 0)
        if end > len(data) or at + 4 > len(data):
            raise UpstreamError("The engine sent a string tensor that ends in the middle of a string.")
        values.append(data[at + 4 : end])
        at = end
    return values
