"""penstock.v1's ChatRequest as the JSON of POST /v1/chat/completions, which is what is checked and what engines take.

Apart from the service because it is pure. What proto3 cannot tell from "absent" (an empty string, no entries)
is left out.
"""

import math
from typing import Any

import msgspec

from gateway.core.errors import InvalidRequest
from gateway.protos.penstock.v1 import chat_pb2 as pb

_ROLES = {
    pb.ROLE_SYSTEM: "system",
    pb.ROLE_DEVELOPER: "developer",
    pb.ROLE_USER: "user",
    pb.ROLE_ASSISTANT: "assistant",
    pb.ROLE_TOOL: "tool",
}
_MODES = {
    pb.ToolChoice.MODE_AUTO: "auto",
    pb.ToolChoice.MODE_NONE: "none",
    pb.ToolChoice.MODE_REQUIRED: "required",
}
_SCALARS = (
    "temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty", "seed",
    "min_tokens",
)  # fmt: skip
_LISTS = ("stop", "stop_token_ids", "bad_words")


def body_of(chat: pb.ChatRequest, *, stream: bool) -> bytes:
    """Raises InvalidRequest for what the typed messages allow and JSON cannot say."""
    body: dict[str, Any] = _extra(chat.extra_json)
    given: dict[str, Any] = {"model": chat.model, "messages": [_message(message) for message in chat.messages]}
    given |= {name: getattr(chat, name) for name in ("max_tokens", "n", "parallel_tool_calls") if chat.HasField(name)}
    given |= {name: value for name in ("reasoning_effort", "user") if (value := getattr(chat, name))}
    given |= _sampling(chat.sampling) | _tools(chat) | _constraint(chat.constraint)
    if chat.logprobs:
        given["logprobs"] = True
    if chat.HasField("top_logprobs"):
        given["top_logprobs"] = chat.top_logprobs
    if stream:
        given |= {"stream": True, "stream_options": {"include_usage": True}}
    if twice := body.keys() & (given.keys() | {"stream", "stream_options"}):
        name = min(twice)
        raise InvalidRequest(f"'extra_json' may not hold {name!r}: it is a field of its own.", param="extra_json")
    return msgspec.json.encode(given | body)


def _extra(text: str) -> dict[str, Any]:
    if not text:
        return {}
    try:
        return dict(msgspec.json.decode(text, type=dict[str, msgspec.Raw]))
    except (msgspec.DecodeError, RecursionError):
        raise InvalidRequest("'extra_json' must be a JSON object.", param="extra_json", code="invalid_json") from None


def _message(message: pb.Message) -> dict[str, Any]:
    if message.role not in _ROLES:
        raise InvalidRequest("Each message needs a role.", param="messages", code="missing_required_parameter")
    if message.content and message.parts:
        raise InvalidRequest("A message has either 'content' or 'parts'.", param="messages", code="invalid_value")
    said: dict[str, Any] = {"role": _ROLES[message.role], "content": message.content}
    if message.parts:
        said["content"] = [_part(part) for part in message.parts]
    elif message.tool_calls and not message.content:
        said["content"] = None
    if message.tool_calls:
        said["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments_json}}
            for call in message.tool_calls
        ]
    texts = ("name", "tool_call_id", "reasoning", "refusal")
    return said | {name: value for name in texts if (value := getattr(message, name))}


def _part(part: pb.ContentPart) -> dict[str, Any]:
    kind = part.WhichOneof("part")
    if kind == "image_url":
        return {"type": "image_url", "image_url": {"url": part.image_url}}
    if kind == "text":
        return {"type": "text", "text": part.text}
    raise InvalidRequest("A content part is empty.", param="messages", code="invalid_value")


def _sampling(sampling: pb.Sampling) -> dict[str, Any]:
    given: dict[str, Any] = {name: getattr(sampling, name) for name in _SCALARS if sampling.HasField(name)}
    for name, value in given.items():
        if not math.isfinite(value):  # JSON would say null, which means "not given"
            raise InvalidRequest(f"{name!r} must be a finite number.", param=name, code="invalid_value")
    given |= {name: list(value) for name in _LISTS if (value := getattr(sampling, name))}
    if sampling.logit_bias:
        given["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    return given


def _tools(chat: pb.ChatRequest) -> dict[str, Any]:
    given: dict[str, Any] = {}
    if chat.tools:
        given["tools"] = [{"type": "function", "function": _function(tool)} for tool in chat.tools]
    kind = chat.tool_choice.WhichOneof("choice")
    if kind == "function":
        given["tool_choice"] = {"type": "function", "function": {"name": chat.tool_choice.function}}
    elif kind == "mode" and chat.tool_choice.mode in _MODES:
        given["tool_choice"] = _MODES[chat.tool_choice.mode]
    return given


def _function(tool: pb.Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.parameters_json_schema:
        function["parameters"] = _schema(tool.parameters_json_schema, "tools")
    if tool.HasField("strict"):
        function["strict"] = tool.strict
    return function


def _constraint(constraint: pb.Constraint) -> dict[str, Any]:
    kind = constraint.WhichOneof("kind")
    if kind is None:
        return {}
    wanted: Any = getattr(constraint, kind)
    if kind == "json_object":
        return {"response_format": {"type": "json_object"}} if wanted else {}
    if kind == "json_schema":
        return {"structured_outputs": {"json": _schema(wanted, "constraint")}}
    return {"structured_outputs": {kind: list(wanted.values) if kind == "choice" else wanted}}


def _schema(text: str, param: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        raise InvalidRequest(
            f"{param!r}: a JSON schema must be a JSON object.", param=param, code="invalid_json"
        ) from None
