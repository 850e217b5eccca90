"""Chat messages as clients send them, checked and brought to the form that chat templates read."""

from typing import Any

import msgspec

from openvino_engine.errors import invalid, unsupported

_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
_KEYS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "refusal"})
_MOST_MESSAGES = 10_000


def read_messages(value: object) -> list[dict[str, Any]]:
    """Checked copies: content is text, tool-call arguments are objects. Raises ApiError 400 naming the message."""
    if not isinstance(value, list) or not value:
        raise invalid("messages", "'messages' must be a list with at least one message")
    if len(value) > _MOST_MESSAGES:
        raise invalid("messages", f"'messages' holds more than {_MOST_MESSAGES} messages")
    return [_message(item, f"messages[{index}]") for index, item in enumerate(value)]


def _message(item: object, param: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise invalid(param, f"{param!r} must be an object", code="invalid_type")
    role = item.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise invalid(f"{param}.role", f"'{param}.role' must be one of {', '.join(sorted(_ROLES))}")
    unknown = [key for key, part in item.items() if key not in _KEYS and part is not None]
    if unknown:
        raise invalid(f"{param}.{unknown[0]}", f"unknown field '{param}.{unknown[0]}'", code="unknown_parameter")
    message = {key: part for key, part in item.items() if part is not None}
    calls = message.get("tool_calls")
    if role != "assistant" and calls is not None:
        raise invalid(f"{param}.tool_calls", "only assistant messages have 'tool_calls'")
    if calls is not None:
        message["tool_calls"] = _calls(calls, f"{param}.tool_calls")
    message["content"] = _content(item.get("content"), f"{param}.content", may_be_empty=bool(calls))
    return message


def _content(content: object, param: str, *, may_be_empty: bool) -> str:
    if content is None and may_be_empty:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise invalid(param, f"{param!r} must be a string or a list of parts", code="invalid_type")
    return "\n".join(_part(part, f"{param}[{index}]") for index, part in enumerate(content))


def _part(part: object, param: str) -> str:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise invalid(param, f"{param!r} must be a content part with a type", code="invalid_type")
    if part["type"] not in ("text", "refusal"):
        raise unsupported(f"{param}.type", f"{part['type']!r} content needs a multimodal model")
    text = part.get(part["type"])
    if not isinstance(text, str):
        raise invalid(param, f"{param!r} must hold text", code="invalid_type")
    return text


def _calls(calls: object, param: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise invalid(param, f"{param!r} must be a list", code="invalid_type")
    return [_call(call, f"{param}[{index}]") for index, call in enumerate(calls)]


def _call(call: object, param: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise invalid(param, f"{param!r} must be {{id, type: function, function: {{name, arguments}}}}")
    try:
        arguments = msgspec.json.decode(function.get("arguments") or "{}")
    except (msgspec.DecodeError, TypeError, RecursionError) as error:
        raise invalid(f"{param}.function.arguments", "a tool call's arguments must be a JSON string") from error
    # Templates write arguments with tojson: they want the value, not the text.
    assert isinstance(call, dict)
    return {"id": call.get("id"), "type": "function", "function": {"name": function["name"], "arguments": arguments}}
