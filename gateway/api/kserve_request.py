"""The two bodies of KServe v2 over HTTP as tensors: `infer` names them, `generate` has a key for each.

Apart from the routes because it is pure. Sources: KServe's Open Inference Protocol v2, Triton's binary tensor data and
generate extensions.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from gateway.core.errors import InvalidRequest
from gateway.serving.tensor_bytes import unpack
from gateway.serving.tensors import INPUTS, Tensor, wrong

_KINDS: dict[str, type | tuple[type, ...]] = {
    "BYTES": str,
    "BOOL": bool,
    "INT32": int,
    "UINT64": int,
    "FP32": (int, float),
}
_OBJECT = msgspec.json.Decoder(dict[str, Any])


class _Input(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None
    parameters: dict[str, Any] = {}


class Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class InferBody(msgspec.Struct):
    """The JSON of `infer`; `binary` tells of an output whether it should leave as bytes."""

    inputs: list[_Input]
    id: str = ""
    outputs: list[Output] = []
    parameters: dict[str, Any] = {}

    def binary(self, name: str) -> bool:
        everywhere = self.parameters.get("binary_data_output", False)
        chosen = [output.parameters.get("binary_data", everywhere) for output in self.outputs if output.name == name]
        return bool(chosen[0] if chosen else everywhere)


def read_infer(body: bytes, json_size: int | None) -> tuple[InferBody, dict[str, Tensor]]:
    """`json_size`: how much of the body is JSON, where raw tensors follow it. Raises InvalidRequest."""
    try:
        asked = msgspec.json.decode(body[:json_size], type=InferBody)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The body is not an inference request: {error}.", code="invalid_json") from None
    tail = memoryview(body)[len(body) if json_size is None else json_size :]
    tensors: dict[str, Tensor] = {}
    for given in asked.inputs:
        if given.name in tensors:
            raise wrong(given.name, f"The input {given.name[:128]!r} is given twice.")
        size = given.parameters.get("binary_data_size")
        if size is None:
            values = _checked(given.name, given.datatype, list(_flat(given.data or [])))
        elif isinstance(size, int) and 0 <= size <= len(tail):
            values, tail = unpack(given.name, given.datatype, bytes(tail[:size])), tail[size:]
        else:
            raise wrong(given.name, f"'binary_data_size' of {given.name[:128]!r} is not within the body.")
        tensors[given.name] = Tensor(given.datatype, given.shape, values)
    if len(tail):
        raise InvalidRequest(f"{len(tail)} bytes after the JSON belong to no input.", code="invalid_value")
    return asked, tensors


def read_generate(body: bytes) -> tuple[str, dict[str, Tensor]]:
    """The request's id, and its tensors: a key at the top or in `parameters` is an input. Raises InvalidRequest."""
    try:
        fields = _OBJECT.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The body is not a JSON object: {error}.", code="invalid_json") from None
    name, parameters = fields.pop("id", ""), fields.pop("parameters", {})
    if not isinstance(parameters, dict) or not isinstance(name, str):
        raise InvalidRequest("'parameters' must be an object and 'id' a string.", param="parameters")
    for twice in fields.keys() & parameters.keys():
        raise wrong(twice, f"{twice[:128]!r} stands at the top and in 'parameters'.")
    return name, {key: _tensor(key, value) for key, value in (fields | parameters).items() if value is not None}


def _tensor(name: str, value: Any) -> Tensor:
    """Of the type its name has; an unknown name is refused later, with those there are."""
    datatype = INPUTS[name].datatype if name in INPUTS else ""
    values = value if isinstance(value, list) else [value]
    return Tensor(datatype, [len(values)], _checked(name, datatype, values))


def _checked(name: str, datatype: str, values: list[Any]) -> list[Any]:
    kind = _KINDS.get(datatype, object)
    for value in values:
        if not isinstance(value, kind) or (datatype != "BOOL" and isinstance(value, bool) and datatype in _KINDS):
            raise wrong(name, f"The input {name[:128]!r} must have values of the datatype {datatype}.")
    return values


def _flat(data: list[Any]) -> Iterator[Any]:
    for value in data:
        if isinstance(value, list):
            yield from _flat(value)
        else:
            yield value
