"""Chat messages as clients send them, in the form that chat templates read: text content, arguments as values."""

from typing import Any

import msgspec

from gateway.core.errors import InvalidRequest

_ROLES = ("system", "developer", "user", "assistant", "tool")


def read_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Raises InvalidRequest naming the message."""
    return [_message(message, f"messages[{place}]") for place, message in enumerate(messages)]


def _message(given: dict[str, Any], param: str) -> dict[str, Any]:
    if given.get("role") not in _ROLES:
        raise _invalid(f"{param}.role", f"must be one of {', '.join(_ROLES)}")
    message = {name: value for name, value in given.items() if value is not None}
    calls = message.get("tool_calls")
    if calls is not None:
        if given["role"] != "assistant" or not isinstance(calls, list):
            raise _invalid(f"{param}.tool_calls", "must be a list, in a message of the assistant")
        message["tool_calls"] = [_call(call, f"{param}.tool_calls[{place}]") for place, call in enumerate(calls)]
    message["content"] = _content(message.get("content"), f"{param}.content", may_be_empty=bool(calls))
    return message


def _content(content: Any, param: str, *, may_be_empty: bool) -> str:
    if isinstance(content, str):
        return content
    if content is None and may_be_empty:
        return ""
    if not isinstance(content, list) or not content:
        raise _invalid(param, "must be text or a list of parts")
    return "\n".join([_part(part, f"{param}[{place}]") for place, part in enumerate(content)])


def _part(part: Any, param: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in ("text", "refusal"):
        raise InvalidRequest(
            f"'{param}.type' is {str(kind)[:40]!r}: the gateway writes text prompts for this engine.",
            param=f"{param}.type",
            code="unsupported_parameter",
        )
    text = part.get(kind)
    if not isinstance(text, str):
        raise _invalid(param, "must hold text")
    return text


def _call(call: Any, param: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise _invalid(param, "must be {id, type: function, function: {name, arguments}}")
    try:
        arguments = msgspec.json.decode(function.get("arguments") or "{}")
    except (msgspec.DecodeError, TypeError, RecursionError):
        raise _invalid(f"{param}.function.arguments", "must be a JSON text") from None
    return {"id": call.get("id"), "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _invalid(param: str, words: str) -> InvalidRequest:
    return InvalidRequest(f"{param!r} {words}.", param=param, code="invalid_value")
