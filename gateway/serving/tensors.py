"""TensorRT-LLM's tensor names as a request to /v1/completions, for every model whatever its engine.

Apart from the doors because gRPC and HTTP speak KServe v2 with the same names: they only carry tensors, this file says
what they mean. Names, types and shapes: the `ensemble` and `tensorrt_llm_bls` models of TensorRT-LLM's Triton backend.

What differs from them, because any engine may stand behind: only `text_input` is required; `finish_reason` is told.
"""

import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from gateway.core.errors import InvalidRequest, ModelNotFound, PenstockError

VERSION = "1"
PLATFORM = "penstock"


class WrongTensor(InvalidRequest):
    """`param` is a tensor's name, not a field's of /v1/completions."""


class Tensor(msgspec.Struct, gc=False):
    """`values` flat and row-major: bool, int, float; bytes or str for BYTES."""

    datatype: str
    shape: list[int]
    values: list[Any]


@dataclass(frozen=True, slots=True)
class Input:
    """`field`: of /v1/completions, where the value goes as it is. `unset`: the value that means "not given"."""

    datatype: str
    is_list: bool = False
    field: str | None = None
    unset: Any = None

    @property
    def shape(self) -> list[int]:
        return [-1 if self.is_list else 1]


INPUTS: dict[str, Input] = {
    "text_input": Input("BYTES", field="prompt"),
    "max_tokens": Input("INT32", field="max_tokens"),
    "stream": Input("BOOL"),
    "temperature": Input("FP32", field="temperature"),
    "top_p": Input("FP32", field="top_p", unset=0.0),
    "top_k": Input("INT32", field="top_k", unset=0),
    "seed": Input("UINT64", field="seed"),
    "stop_words": Input("BYTES", is_list=True, field="stop"),
    "bad_words": Input("BYTES", is_list=True, field="bad_words"),
    "repetition_penalty": Input("FP32", field="repetition_penalty", unset=1.0),
    "presence_penalty": Input("FP32", field="presence_penalty", unset=0.0),
    "frequency_penalty": Input("FP32", field="frequency_penalty", unset=0.0),
    "min_tokens": Input("INT32", field="min_tokens", unset=0),
    "guided_decoding_guide_type": Input("BYTES"),
    "guided_decoding_guide": Input("BYTES"),
    "exclude_input_in_output": Input("BOOL"),
    "return_num_input_tokens": Input("BOOL"),
    "return_num_output_tokens": Input("BOOL"),
    "return_log_probs": Input("BOOL"),
}
OUTPUTS: dict[str, tuple[str, list[int]]] = {
    "text_output": ("BYTES", [-1]),
    "finish_reason": ("BYTES", [-1]),
    "num_input_tokens": ("INT32", [1]),
    "num_output_tokens": ("INT32", [1]),
    "cum_log_probs": ("FP32", [-1]),
    "output_log_probs": ("FP32", [-1, -1]),
}
_SWITCHES = {
    "num_input_tokens": "return_num_input_tokens",
    "num_output_tokens": "return_num_output_tokens",
    "cum_log_probs": "return_log_probs",
    "output_log_probs": "return_log_probs",
}
_TENSOR_OF = {spec.field: name for name, spec in INPUTS.items() if spec.field} | {
    "structured_outputs": "guided_decoding_guide",
    "logprobs": "return_log_probs",
}
_SEED_LIMIT = 2**63
_FP32_MAX = (2 - 2**-23) * 2.0**127


@dataclass(frozen=True, slots=True)
class Asked:
    """A request's body for /v1/completions, and how its answer must look.

    `echo`: the prompt, where it comes back before the text; `outputs`: names; `is_batched`: shapes have a batch
    dimension of one, as the request's had.
    """

    body: bytes
    stream: bool
    outputs: frozenset[str]
    echo: str = ""
    is_batched: bool = False


@dataclass(slots=True)
class Reading:
    """The tensors of one request, checked one by one. `outputs`: the names it asked for; all when empty."""

    model: str
    tensors: Mapping[str, Tensor]
    outputs: Collection[str] = ()
    values: dict[str, Any] = field(default_factory=dict)

    def asked(self, *, stream: bool | None = None) -> Asked:
        """`stream`: what holds where the tensor `stream` is absent; None where only one answer can be given.

        Raises InvalidRequest naming the tensor.
        """
        for name, tensor in self.tensors.items():
            self.values[name] = self._value(name, tensor)
        if "text_input" not in self.values:
            raise wrong("text_input", f"The model {self.model[:128]!r} needs the input 'text_input' (BYTES, [1]).")
        streams = self.values.get("stream", bool(stream))
        if streams and stream is None:
            raise wrong("stream", "'stream' needs ModelStreamInfer, or generate_stream over HTTP: this is one answer.")
        outputs = self._outputs()
        is_batched = len(self.tensors["text_input"].shape) > 1
        return Asked(self._body(streams, outputs), streams, outputs, self._echo(streams), is_batched)

    def _value(self, name: str, tensor: Tensor) -> Any:
        spec = INPUTS.get(name)
        if spec is None:
            names = ", ".join(INPUTS)
            raise WrongTensor(
                f"Unexpected input {name[:128]!r} for the model {self.model[:128]!r}; there are: {names}.",
                param=name[:128], code="unknown_parameter",
            )  # fmt: skip
        if tensor.datatype != spec.datatype:
            raise wrong(name, f"The input {name!r} must have the datatype {spec.datatype}, not {tensor.datatype!r}.")
        values, shape = tensor.values, tensor.shape
        size = len(values)
        if shape not in ([size], [1, size]) or (size != 1 and not spec.is_list):
            wanted = "[n] or [1, n]" if spec.is_list else "[1] or [1, 1] (send one request for each prompt)"
            raise wrong(name, f"The input {name!r} must have the shape {wanted}, not {shape[:8]} for {size} values.")
        if spec.datatype == "BYTES":
            values = [_text(name, value) for value in values]
        elif spec.datatype == "FP32":
            values = [_short(name, value) for value in values]
        return [value for value in values if value] if spec.is_list else values[0]

    def _outputs(self) -> frozenset[str]:
        for name in self.outputs:
            if name not in OUTPUTS:
                raise WrongTensor(
                    f"Unexpected output {name[:128]!r} for the model {self.model[:128]!r}; there are: "
                    f"{', '.join(OUTPUTS)}.", param=name[:128], code="unknown_parameter",
                )  # fmt: skip
        if self.outputs:
            return frozenset(self.outputs)
        return frozenset(name for name in OUTPUTS if name not in _SWITCHES or self.values.get(_SWITCHES[name]))

    def _echo(self, streams: bool) -> str:
        excluded = self.values.get("exclude_input_in_output")
        if streams and excluded is False:
            raise wrong(
                "exclude_input_in_output",
                "'exclude_input_in_output' cannot be false when streaming: a stream has no echo.",
            )
        return "" if streams or excluded else self.values["text_input"]

    def _body(self, streams: bool, outputs: frozenset[str]) -> bytes:
        body: dict[str, Any] = {"model": self.model}
        for name, value in self.values.items():
            spec = INPUTS[name]
            if spec.field is not None and value not in (spec.unset, []):
                body[spec.field] = value
        if body.get("seed", 0) >= _SEED_LIMIT:
            raise wrong("seed", "'seed' must be less than 2^63.")
        if not body.keys() & {"temperature", "top_p", "top_k"}:
            body["temperature"] = 0  # TensorRT-LLM is greedy unless it is told how to sample
        if outputs & {"cum_log_probs", "output_log_probs"}:
            body["logprobs"] = 1
        if (guide := self._guide()) is not None:
            body["structured_outputs"] = guide
        if streams:
            body["stream"] = True
            if outputs & {"num_input_tokens", "num_output_tokens"}:
                body["stream_options"] = {"include_usage": True}
        return msgspec.json.encode(body)

    def _guide(self) -> dict[str, Any] | None:
        kind, guide = self.values.get("guided_decoding_guide_type", ""), self.values.get("guided_decoding_guide", "")
        if not kind and not guide:
            return None
        if kind == "json":
            return {"json_object": True}
        name = {"json_schema": "json", "regex": "regex", "ebnf_grammar": "grammar"}.get(kind)
        if name is None:
            raise wrong(
                "guided_decoding_guide_type",
                f"'guided_decoding_guide_type' must be json, json_schema, regex or ebnf_grammar, not {kind[:64]!r}.",
            )
        if not guide:
            raise wrong("guided_decoding_guide", f"The guide type {kind!r} needs a 'guided_decoding_guide'.")
        return {name: _schema(guide) if name == "json" else guide}


def check_version(model: str, version: str) -> None:
    """Raises ModelNotFound: every model has one version."""
    if version not in ("", VERSION):
        raise ModelNotFound(f"The model {model[:128]!r} has the version {VERSION} only.", param="model_version")


def in_tensor_words(error: PenstockError) -> PenstockError:
    """An error that names a field of /v1/completions, naming the tensor instead."""
    tensor = _TENSOR_OF.get(error.param or "")
    if tensor is not None and error.param is not None and not isinstance(error, WrongTensor):
        error.message = error.message.replace(repr(error.param), repr(tensor))
        error.param = tensor
    return error


def wrong(name: str, message: str) -> WrongTensor:
    """The tensor `name` is to blame."""
    return WrongTensor(message, param=name[:128], code="invalid_value")


def _text(name: str, value: bytes | str) -> str:
    try:
        return value if isinstance(value, str) else value.decode()
    except UnicodeDecodeError as error:
        raise wrong(name, f"The input {name!r} is not valid UTF-8 (byte {error.start}).") from None


def _schema(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        raise wrong("guided_decoding_guide", "'guided_decoding_guide' must be a JSON schema (an object).") from None


def _short(name: str, value: float) -> float:
    """The shortest decimal that is the same 32-bit number: 0.7, not 0.699999988079071."""
    if not abs(value) <= _FP32_MAX:  # NaN is not, either: JSON would say null, which means "not given"
        raise wrong(name, f"The input {name!r} must be a finite number of 32 bits.")
    for digits in (7, 8):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == struct.pack("<f", value):
            return short
    return value
