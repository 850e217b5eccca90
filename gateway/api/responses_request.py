"""From a Responses request to the chat request that any engine understands.

Everything that cannot be said in chat, or needs what this gateway does not have, is refused by its name: a field that
is accepted and ignored would be a bug. Source: OpenAI Responses, openapi 2.3.0.
"""

import secrets
from typing import Any

import msgspec

from gateway.api.fields import invalid, string_of, unsupported
from gateway.core.call import Call, Endpoint
from gateway.core.openai import RESPONSES_EXTENSIONS

_ENCODE = msgspec.json.encode
LOGPROBS = "message.output_text.logprobs"
_ABSENT = ("conversation", "prompt", "max_tool_calls", "context_management", "moderation", "background")
_TEXT_PARTS = frozenset({"input_text", "output_text", "text"})
_ITEMS = {"message": "msg", "function_call": "fc", "function_call_output": "fc", "reasoning": "rs"}
_SAME = ("temperature", "top_p", "parallel_tool_calls", "user", "safety_identifier", *RESPONSES_EXTENSIONS)

PARAMS = {
    "messages": "input", "max_completion_tokens": "max_output_tokens", "response_format": "text",
    "reasoning_effort": "reasoning", "logprobs": "include",
}  # fmt: skip
"""Chat's name of a field -> the client's, for errors."""


def new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(24)}"


def refuse_absent(values: dict[str, Any]) -> None:
    """Raises InvalidRequest for what neither this gateway nor an engine behind it does."""
    for name in _ABSENT:
        if values.get(name) not in (None, False):
            raise unsupported(name, "this gateway does not offer it")
    if values.get("truncation") not in (None, "disabled"):
        raise unsupported("truncation", "only 'disabled' is: an input that is too long is an error")
    if values.get("service_tier") not in (None, "auto", "default"):
        raise unsupported("service_tier", "there is one tier: 'auto' and 'default'")
    if (values.get("stream_options") or {}).get("include_obfuscation"):
        raise unsupported("stream_options.include_obfuscation", "nothing is padded")
    for index, tool in enumerate(values.get("tools") or []):
        if tool.get("type") != "function":
            raise unsupported(f"tools[{index}]", f"a tool of type {tool.get('type')!r} would have to run on this side")


def chat_call(call: Call, values: dict[str, Any], items: list[dict[str, Any]]) -> Call:
    """`values`: the request's fields, decoded; `items`: its input, earlier turns first. Raises InvalidRequest."""
    messages = chat_messages(items)
    if values.get("instructions"):
        messages.insert(0, {"role": "system", "content": values["instructions"]})
    chat: dict[str, Any] = {"model": call.model, "messages": messages, "stream": call.stream}
    chat |= {name: values[name] for name in _SAME if values.get(name) is not None}
    if values.get("max_output_tokens") is not None:
        chat["max_completion_tokens"] = values["max_output_tokens"]
    chat |= _tools(values) | _format(values.get("text") or {}) | _logprobs(values) | _reasoning(values)
    fields = {name: msgspec.Raw(_ENCODE(value)) for name, value in chat.items()}
    return Call(
        Endpoint.CHAT, call.model, _ENCODE(fields), fields, stream=call.stream, wants_usage=True,
        request_id=call.request_id, received_s=call.received_s, key_name=call.key_name, traceparent=call.traceparent,
        door=Endpoint.RESPONSES.value, images=call.images,
    )  # fmt: skip


# ---- input ----


def input_items(given: str | list[Any]) -> list[dict[str, Any]]:
    """The input as items, each with its `type` and an `id`."""
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    items = []
    for index, item in enumerate(given):
        if not isinstance(item, dict):
            raise invalid(f"input[{index}]", "an item is an object")
        kind = item.get("type") or ("message" if "role" in item else "")
        prefix = _ITEMS.get(kind) if isinstance(kind, str) else None
        if prefix is None:
            raise unsupported(f"input[{index}].type", f"items of type {kind!r} cannot be told to an engine")
        items.append({"type": kind, **item, "id": item.get("id") or new_id(prefix)})
        if isinstance(item.get("content"), str):
            part = "output_text" if item.get("role") == "assistant" else "input_text"
            items[-1]["content"] = [{"type": part, "text": item["content"]}]
    return items


def chat_messages(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Calls join the assistant's message before them; reasoning of earlier turns is not told again."""
    messages: list[dict[str, Any]] = []
    for index, item in enumerate(items):
        where = f"input[{index}]"
        kind = item["type"]
        if kind == "message":
            messages.append(_message(item, where))
        elif kind == "function_call":
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": None})
            messages[-1].setdefault("tool_calls", []).append(_tool_call(item, where))
        elif kind == "function_call_output":
            content = _content(item.get("output"), f"{where}.output")
            messages.append({"role": "tool", "tool_call_id": string_of(item, "call_id", where), "content": content})
    if not messages:
        raise invalid("input", "it holds no message")
    return messages


def _message(item: dict[str, Any], where: str) -> dict[str, Any]:
    role = item.get("role")
    if role not in ("user", "assistant", "system", "developer"):
        raise invalid(f"{where}.role", "it must be user, assistant, system or developer")
    role = "system" if role == "developer" else role  # what templates of open models know
    return {"role": role, "content": _content(item.get("content"), f"{where}.content")}


def _tool_call(item: dict[str, Any], where: str) -> dict[str, Any]:
    function = {"name": string_of(item, "name", where), "arguments": string_of(item, "arguments", where)}
    return {"id": string_of(item, "call_id", where), "type": "function", "function": function}


def _content(content: Any, where: str) -> str | list[dict[str, Any]]:
    """Text alone as one string, which every template takes; with images, chat's parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(where, "it must be a string or a list of parts")
    parts = [_part(part, f"{where}[{index}]") for index, part in enumerate(content)]
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _part(part: Any, where: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise invalid(where, "a part is an object with a type")
    if kind in _TEXT_PARTS:
        return {"type": "text", "text": string_of(part, "text", where)}
    if kind == "refusal":
        return {"type": "text", "text": string_of(part, "refusal", where)}
    if kind == "input_image":
        image = {"url": string_of(part, "image_url", where)}
        if part.get("detail") is not None:
            image["detail"] = part["detail"]
        return {"type": "image_url", "image_url": image}
    raise unsupported(f"{where}.type", f"parts of type {kind!r} cannot be told to an engine")


# ---- the rest ----


def _tools(values: dict[str, Any]) -> dict[str, Any]:
    tools = values.get("tools") or []
    chat: dict[str, Any] = {}
    for index, tool in enumerate(tools):
        function = {name: tool[name] for name in ("name", "description", "parameters", "strict") if name in tool}
        string_of(tool, "name", f"tools[{index}]")
        chat.setdefault("tools", []).append(
            {
                "type": "function",
                "function": {name: value for name, value in function.items() if value is not None},
            }
        )
    choice = values.get("tool_choice")
    if isinstance(choice, dict):
        if choice.get("type") != "function":
            raise unsupported("tool_choice", f"a choice of type {choice.get('type')!r} is not among the functions")
        choice = {"type": "function", "function": {"name": string_of(choice, "name", "tool_choice")}}
    elif choice not in (None, "auto", "none", "required"):
        raise invalid("tool_choice", "it must be auto, none, required or a function")
    if choice is not None and (tools or choice not in ("auto", "none")):
        chat["tool_choice"] = choice
    return chat


def _format(text: dict[str, Any]) -> dict[str, Any]:
    if text.get("verbosity") not in (None, "medium"):
        raise unsupported("text.verbosity", "engines have no such setting")
    form = text.get("format") or {"type": "text"}
    if form.get("type") == "text":
        return {}
    if form.get("type") == "json_object":
        return {"response_format": {"type": "json_object"}}
    if form.get("type") != "json_schema" or not isinstance(form.get("schema"), dict):
        raise invalid("text.format", "it must be text, json_object, or json_schema with a schema")
    schema = {name: form[name] for name in ("name", "description", "schema", "strict") if form.get(name) is not None}
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", **schema}}}


def _logprobs(values: dict[str, Any]) -> dict[str, Any]:
    for name in values.get("include") or []:
        if name != LOGPROBS:
            raise unsupported("include", f"{name!r} does not exist here")
    if not wants_logprobs(values):
        return {}
    return {"logprobs": True, "top_logprobs": values.get("top_logprobs") or 0}


def wants_logprobs(values: dict[str, Any]) -> bool:
    return bool(values.get("top_logprobs")) or LOGPROBS in (values.get("include") or [])


def _reasoning(values: dict[str, Any]) -> dict[str, Any]:
    reasoning = values.get("reasoning") or {}
    for name, value in reasoning.items():
        if name != "effort" and value is not None:
            raise unsupported(f"reasoning.{name}", "reasoning is given as the engine gives it")
    effort = reasoning.get("effort")
    return {} if effort is None else {"reasoning_effort": effort}
