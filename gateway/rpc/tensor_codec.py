"""KServe's protobuf tensors as serving/tensors.py has them, and back. Contents come typed or raw.

Answers are raw, as Triton's are: clients that were written for it look there.
"""

from collections.abc import Mapping
from typing import Any

from gateway.protos import inference_pb2 as pb
from gateway.serving.tensor_bytes import pack, unpack
from gateway.serving.tensors import Tensor, wrong

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
        raise wrong("raw_input_contents", f"There are {len(request.inputs)} inputs, but {len(raw)} raw_input_contents.")
    tensors: dict[str, Tensor] = {}
    for index, given in enumerate(request.inputs):
        if given.name in tensors:
            raise wrong(given.name, f"The input {given.name[:128]!r} is given twice.")
        if raw and given.HasField("contents"):
            raise wrong(given.name, f"The input {given.name[:128]!r} has typed contents beside raw_input_contents.")
        values = unpack(given.name, given.datatype, raw[index]) if raw else _typed(given)
        tensors[given.name] = Tensor(given.datatype, list(given.shape), values)
    return tensors


def _typed(given: pb.ModelInferRequest.InferInputTensor) -> list[Any]:
    name = _LISTS.get(given.datatype)
    if name is None:
        return []
    values = list(getattr(given.contents, name))
    if not values and given.contents.ByteSize():
        raise wrong(given.name, f"The input {given.name[:128]!r} ({given.datatype}) must have its values in {name}.")
    return values


def put(response: pb.ModelInferResponse, outputs: Mapping[str, Tensor]) -> None:
    """Add the outputs to a response."""
    for name, tensor in outputs.items():
        response.outputs.add(name=name, datatype=tensor.datatype, shape=tensor.shape)
        response.raw_output_contents.append(pack(tensor))
