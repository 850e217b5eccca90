"""From an Anthropic Messages request to the chat request that any engine understands.

What cannot be said in chat is refused by its name. Hints that never change an answer (`cache_control`, `metadata`,
the signature of a thought) are taken and not passed on. Source: Anthropic Messages, anthropic-python 2.12.
"""

from typing import Any

import msgspec

from gateway.api.fields import invalid, string_of, unsupported
from gateway.core.call import Call, Endpoint

_ENCODE = msgspec.json.encode
_ABSENT = ("container", "context_management", "mcp_servers")
_THOUGHTS = frozenset({"thinking", "redacted_thinking"})
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}

PARAMS = {
    "max_completion_tokens": "max_tokens", "stop": "stop_sequences", "response_format": "output_config.format",
    "reasoning_effort": "output_config.effort", "thinking_token_budget": "thinking.budget_tokens",
    "continue_final_message": "messages", "add_generation_prompt": "messages",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
}  # fmt: skip
"""Chat's name of a field -> the client's, for errors."""


def refuse_absent(values: dict[str, Any]) -> None:
    """Raises InvalidRequest for what neither this gateway nor an engine behind it does."""
    for name in _ABSENT:
        if values.get(name):
            raise unsupported(name, "this gateway does not offer it")
    if values.get("service_tier") not in (None, "auto", "standard_only"):
        raise unsupported("service_tier", "there is one tier: 'auto' and 'standard_only'")
    for index, tool in enumerate(values.get("tools") or []):
        if tool.get("type") not in (None, "custom"):
            raise unsupported(f"tools[{index}]", f"a tool of type {tool['type']!r} would have to run on this side")
    if isinstance(values.get("system"), list):
        _text_of(values["system"], "system")


def chat_call(call: Call, values: dict[str, Any]) -> Call:
    """`values`: the request's fields, decoded. Raises InvalidRequest."""
    messages = _system(values.get("system")) + chat_messages(values["messages"])
    chat: dict[str, Any] = {"model": call.model, "messages": messages, "stream": call.stream}
    chat["max_completion_tokens"] = values["max_tokens"]
    if messages[-1]["role"] == "assistant":  # the client began the answer; the model is to go on
        chat |= {"continue_final_message": True, "add_generation_prompt": False}
    if values.get("stop_sequences"):
        chat["stop"] = values["stop_sequences"]
    chat |= {name: values[name] for name in ("temperature", "top_p", "top_k") if values.get(name) is not None}
    chat |= _tools(values) | _output(values.get("output_config") or {}) | _thinking(values.get("thinking") or {})
    fields = {name: msgspec.Raw(_ENCODE(value)) for name, value in chat.items()}
    return Call(
        Endpoint.CHAT, call.model, _ENCODE(fields), fields, stream=call.stream, wants_usage=True,
        request_id=call.request_id, received_s=call.received_s, key_name=call.key_name, traceparent=call.traceparent,
        door=Endpoint.MESSAGES.value, images=call.images,
    )  # fmt: skip


# ---- the prompt ----


def _system(system: str | list[Any] | None) -> list[dict[str, Any]]:
    text = _text_of(system, "system") if system else ""
    return [{"role": "system", "content": text}] if text else []


def chat_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    chat: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        role, content = message.get("role"), message.get("content")
        if role not in ("user", "assistant", "system"):
            raise invalid(f"{where}.role", "it must be user or assistant")
        if isinstance(content, str):
            chat.append({"role": role, "content": content})
        elif not isinstance(content, list):
            raise invalid(f"{where}.content", "it must be a string or a list of blocks")
        elif role != "assistant" and not content:
            raise invalid(f"{where}.content", "it must not be empty")
        elif role == "assistant":
            chat.append(_assistant(content, f"{where}.content"))
        else:
            chat += _user(role, content, f"{where}.content")
    return chat


def _assistant(blocks: list[Any], where: str) -> dict[str, Any]:
    """Thoughts of earlier turns are not told again."""
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    for index, block in enumerate(blocks):
        at = f"{where}[{index}]"
        kind = _kind(block, at)
        if kind == "text":
            texts.append(string_of(block, "text", at))
        elif kind == "tool_use":
            arguments = _ENCODE(block.get("input") or {}).decode()
            function = {"name": string_of(block, "name", at), "arguments": arguments}
            calls.append({"id": string_of(block, "id", at), "type": "function", "function": function})
        elif kind not in _THOUGHTS:
            raise unsupported(f"{at}.type", f"a block of type {kind!r} cannot be told to an engine")
    said: dict[str, Any] = {"role": "assistant", "content": "".join(texts) if texts or not calls else None}
    return said | ({"tool_calls": calls} if calls else {})


def _user(role: str, blocks: list[Any], where: str) -> list[dict[str, Any]]:
    """What tools answered comes first, each as a message of its own."""
    results: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    for index, block in enumerate(blocks):
        at = f"{where}[{index}]"
        kind = _kind(block, at)
        if kind == "tool_result":
            results.append(_tool_result(block, at))
        else:
            parts.append(_part(block, kind, at))
    return [*results, {"role": role, "content": _joined(parts)}] if parts else results


def _tool_result(block: dict[str, Any], at: str) -> dict[str, Any]:
    given = block.get("content")
    if given is None or isinstance(given, str):
        content: Any = given or ""
    elif isinstance(given, list):
        places = [f"{at}.content[{index}]" for index in range(len(given))]
        content = _joined([_part(one, _kind(one, place), place) for one, place in zip(given, places, strict=True)])
    else:
        raise invalid(f"{at}.content", "it must be a string or a list of blocks")
    if block.get("is_error"):  # chat has no word for it
        content = f"Error: {content}" if isinstance(content, str) else [{"type": "text", "text": "Error:"}, *content]
    return {"role": "tool", "tool_call_id": string_of(block, "tool_use_id", at), "content": content}


def _part(block: dict[str, Any], kind: str, at: str) -> dict[str, Any]:
    if kind == "text":
        return {"type": "text", "text": string_of(block, "text", at)}
    if kind == "image":
        source = block.get("source")
        if not isinstance(source, dict):
            raise invalid(f"{at}.source", "it must be an object")
        # what it holds, images.py has looked at
        url = source["url"] if source["type"] == "url" else f"data:{source['media_type']};base64,{source['data']}"
        return {"type": "image_url", "image_url": {"url": url}}
    raise unsupported(f"{at}.type", f"a block of type {kind!r} cannot be told to an engine")


def _joined(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Text alone as one string, which every template takes; with images, chat's parts."""
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _text_of(given: str | list[Any], where: str) -> str:
    if isinstance(given, str):
        return given
    texts = []
    for index, block in enumerate(given):
        at = f"{where}[{index}]"
        if _kind(block, at) != "text":
            raise invalid(f"{at}.type", "it must be text")
        texts.append(string_of(block, "text", at))
    return "\n".join(texts)


def _kind(block: Any, at: str) -> str:
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(kind, str):
        raise invalid(at, "a block is an object with a type")
    return kind


# ---- the rest ----


def _tools(values: dict[str, Any]) -> dict[str, Any]:
    chat: dict[str, Any] = {}
    for index, tool in enumerate(values.get("tools") or []):
        at = f"tools[{index}]"
        function = {"name": string_of(tool, "name", at), "parameters": tool.get("input_schema") or {"type": "object"}}
        function |= {name: tool[name] for name in ("description", "strict") if tool.get(name) is not None}
        chat.setdefault("tools", []).append({"type": "function", "function": function})
    choice = values.get("tool_choice")
    if choice is None or not chat:
        return chat
    if choice.get("disable_parallel_tool_use"):
        chat["parallel_tool_calls"] = False
    if choice.get("type") == "tool":
        function = {"name": string_of(choice, "name", "tool_choice")}
        return chat | {"tool_choice": {"type": "function", "function": function}}
    if choice.get("type") not in _CHOICES:
        raise invalid("tool_choice.type", "it must be auto, any, tool or none")
    return chat | {"tool_choice": _CHOICES[choice["type"]]}


def _output(config: dict[str, Any]) -> dict[str, Any]:
    chat: dict[str, Any] = {}
    if config.get("effort") is not None:
        chat["reasoning_effort"] = config["effort"]
    form = config.get("format")
    if form is not None:
        if form.get("type") != "json_schema" or not isinstance(form.get("schema"), dict):
            raise invalid("output_config.format", "it must be json_schema with a schema")
        schema = {"name": "answer", "schema": form["schema"], "strict": True}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    return chat


def _thinking(thinking: dict[str, Any]) -> dict[str, Any]:
    """Whether a model thinks is its own affair; a budget is passed on to engines that keep one."""
    kind = thinking.get("type", "adaptive")
    if kind not in ("enabled", "disabled", "adaptive"):
        raise invalid("thinking.type", "it must be enabled, disabled or adaptive")
    if kind != "enabled":
        return {}
    budget = thinking.get("budget_tokens")
    if not isinstance(budget, int) or budget < 1:
        raise invalid("thinking.budget_tokens", "it must be a positive number of tokens")
    return {"thinking_token_budget": budget}
