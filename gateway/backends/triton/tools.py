"""The tool fields of a chat request: what is offered, and how a call is forced where the client demands one.

A forced call is written by guided decoding: the prompt ends with the model's own `<tool_call>` mark and a JSON schema
shapes what follows, so that the answer looks as the model was trained to write it.
"""

import re
from typing import Any

import msgspec

from gateway.core.errors import InvalidRequest

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
_MOST = 128
_DEFINITIONS = ("$defs", "definitions")


class ToolUse(msgspec.Struct, frozen=True):
    """`offered` goes to the chat template; `forced`: the schema of the call that the answer must be."""

    offered: list[dict[str, Any]] | None = None
    forced: dict[str, Any] | None = None
    parallel: bool = True


def read_tools(fields: dict[str, Any]) -> ToolUse:
    """From decoded fields. Raises InvalidRequest naming what is wrong."""
    tools, choice = fields.get("tools"), fields.get("tool_choice")
    if not tools:
        if choice not in (None, "none", "auto"):
            raise InvalidRequest("'tool_choice' needs 'tools'.", param="tool_choice")
        return ToolUse()
    _check(tools)
    if choice == "none":
        return ToolUse()
    parallel = fields.get("parallel_tool_calls", True)
    if choice in (None, "auto"):
        return ToolUse(tools, parallel=parallel)
    return ToolUse(tools, _schema(tools if choice == "required" else [_named(choice, tools)]), parallel=False)


def _check(tools: list[dict[str, Any]]) -> None:
    if len(tools) > _MOST:
        raise InvalidRequest(f"'tools' must hold at most {_MOST} tools.", param="tools")
    for place, tool in enumerate(tools):
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, dict):
            raise InvalidRequest("Only tools of the type 'function' are supported.", param=f"tools[{place}]")
        if not _NAME.fullmatch(function["name"]):
            raise InvalidRequest(
                "A tool's name has 1 to 64 letters, digits, '_', '.' or '-'.", param=f"tools[{place}].function.name"
            )
    if len({tool["function"]["name"] for tool in tools}) != len(tools):
        raise InvalidRequest("Two tools have the same name.", param="tools")


def _named(choice: Any, tools: list[dict[str, Any]]) -> dict[str, Any]:
    function = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    if not isinstance(function, dict):
        raise InvalidRequest(
            "'tool_choice' must be none, auto, required or {type: function, function: {name}}.", param="tool_choice"
        )
    for tool in tools:
        if tool["function"]["name"] == function.get("name"):
            return tool
    raise InvalidRequest(
        f"'tool_choice' names {str(function.get('name'))[:64]!r}, which is not among 'tools'.", param="tool_choice"
    )


def _schema(tools: list[dict[str, Any]]) -> dict[str, Any]:
    """Of one call to one of `tools`. Their definitions move to the root, where their references look for them."""
    calls: list[dict[str, Any]] = []
    definitions: dict[str, dict[str, Any]] = {}
    for tool in tools:
        parameters = dict(tool["function"].get("parameters") or {"type": "object", "properties": {}})
        for key in _DEFINITIONS:
            if key in parameters:
                definitions.setdefault(key, {}).update(parameters.pop(key))
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool["function"]["name"]}, "arguments": parameters},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return (calls[0] if len(calls) == 1 else {"anyOf": calls}) | definitions
