"""KServe's protobuf tensors as serving/tensors.py has them, and back. Contents come typed or raw.

Answers are raw, as Triton's are: clients that were written for it look there.
"""

import struct
from collections.abc import Mapping
from typing import Any

from gateway.core.errors import InvalidRequest
from gateway.protos import inference_pb2 as pb
from gateway.serving.tensors import Tensor

_FORMATS = {"BOOL": "?", "INT32": "i", "UINT64": "Q", "FP32": "f"}
_LISTS = {
    "BOOL": "bool_contents",
    "INT32": "int_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "BYTES": "bytes_contents",
}


def tensors_of(request: pb.ModelInferRequest) -> dict[str, Tensor]:
    """By name. A datatype that no input has is left without values: it is refused by name. Raises InvalidRequest."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise _wrong(
            "raw_input_contents", f"There are {len(request.inputs)} inputs, but {len(raw)} raw_input_contents."
        )
    tensors: dict[str, Tensor] = {}
    for index, given in enumerate(request.inputs):
        if given.name in tensors:
            raise _wrong(given.name, f"The input {given.name[:128]!r} is given twice.")
        if raw and given.HasField("contents"):
            raise _wrong(given.name, f"The input {given.name[:128]!r} has typed contents beside raw_input_contents.")
        values = _from_raw(given, raw[index]) if raw else _from_typed(given)
        tensors[given.name] = Tensor(given.datatype, list(given.shape), values)
    return tensors


def _from_typed(given: pb.ModelInferRequest.InferInputTensor) -> list[Any]:
    name = _LISTS.get(given.datatype)
    if name is None:
        return []
    values = list(getattr(given.contents, name))
    if not values and given.contents.ByteSize():
        raise _wrong(given.name, f"The input {given.name[:128]!r} ({given.datatype}) must have its values in {name}.")
    return values


def _from_raw(given: pb.ModelInferRequest.InferInputTensor, data: bytes) -> list[Any]:
    if given.datatype == "BYTES":
        return _split(given.name, data)
    letter = _FORMATS.get(given.datatype)
    if letter is None:
        return []
    size = struct.calcsize(f"<{letter}")
    if len(data) % size:
        raise _wrong(
            given.name,
            f"The raw contents of {given.name[:128]!r} ({given.datatype}) must be a multiple of {size} bytes.",
        )
    return list(struct.unpack(f"<{len(data) // size}{letter}", data))


def _split(name: str, data: bytes) -> list[bytes]:
    """Elements, each behind its length in four bytes."""
    values, at = [], 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        if at + 4 > len(data) or end > len(data):
            raise _wrong(name, f"The raw contents of {name[:128]!r} (BYTES) end in the middle of an element.")
        values.append(data[at + 4 : end])
        at = end
    return values


def put(response: pb.ModelInferResponse, outputs: Mapping[str, Tensor]) -> None:
    """Add the outputs to a response."""
    for name, tensor in outputs.items():
        response.outputs.add(name=name, datatype=tensor.datatype, shape=tensor.shape)
        if tensor.datatype == "BYTES":
            data = b"".join([len(value).to_bytes(4, "little") + value for value in tensor.values])
        else:
            data = struct.pack(f"<{len(tensor.values)}{_FORMATS[tensor.datatype]}", *tensor.values)
        response.raw_output_contents.append(data)


def _wrong(name: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, param=name[:128], code="invalid_value")
