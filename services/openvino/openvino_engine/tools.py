"""The request's tool fields: what the client offers, what it demands, and the constraint that follows."""

import re
from dataclasses import dataclass
from typing import Any

from openvino_engine.constraint import TOOL_CLOSE, TOOL_NAME, TOOL_OPEN, Constraint, Tool, ToolFrame
from openvino_engine.errors import ApiError, invalid, unsupported
from openvino_engine.fields import Fields
from openvino_engine.requests import schema_text
from openvino_engine.template import ChatTemplate

_NAME = re.compile(f"^{TOOL_NAME}$")
_MOST_TOOLS = 128
_PROBE = re.compile(
    f'{TOOL_OPEN}(\\s*){{"name": "probe", "arguments": {{.*?}}}}(\\s*){TOOL_CLOSE}(\\s*){TOOL_OPEN}', re.DOTALL
)


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What the request's tool fields mean: the list for the template, and the constraint on the answer."""

    offered: list[dict[str, Any]] | None = None
    constraint: Constraint | None = None


def detect_frame(template: ChatTemplate) -> ToolFrame:
    """Read the blanks of the model's tool-call format off its template; Hermes' newlines where it shows none."""
    call = {"id": "call_0", "type": "function", "function": {"name": "probe", "arguments": {"a": 1}}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": [call, call]},
    ]
    try:
        found = _PROBE.search(template.render(messages, None, {}))
    except ApiError:
        found = None
    return ToolFrame(*found.groups()) if found else ToolFrame()


def read_tools(fields: Fields, frame: ToolFrame) -> ToolUse:
    """Read tools, tool_choice and parallel_tool_calls. Raises ApiError 400 naming what is wrong."""
    offered, choice = fields.get("tools"), fields.get("tool_choice")
    parallel = fields.boolean("parallel_tool_calls", default=True)
    if not offered:
        if offered not in (None, []):
            raise invalid("tools", "'tools' must be a list", code="invalid_type")
        if choice not in (None, "none", "auto"):
            raise invalid("tool_choice", "'tool_choice' needs 'tools'")
        return ToolUse()
    tools = _tools(offered)
    if choice == "none":
        return ToolUse()
    if choice is None or choice == "auto":
        return ToolUse(offered, Constraint(tools=tools, tool_mode="auto", parallel=parallel, frame=frame))
    if choice == "required":
        return ToolUse(offered, Constraint(tools=tools, tool_mode="required", parallel=parallel, frame=frame))
    named = _named(choice, tools)
    return ToolUse(offered, Constraint(tools=(named,), tool_mode="required", parallel=False, frame=frame))


def _tools(offered: object) -> tuple[Tool, ...]:
    if not isinstance(offered, list) or len(offered) > _MOST_TOOLS:
        raise invalid("tools", f"'tools' must be a list of at most {_MOST_TOOLS}", code="invalid_type")
    tools = tuple(_tool(item, f"tools[{index}]") for index, item in enumerate(offered))
    if len({tool.name for tool in tools}) != len(tools):
        raise invalid("tools", "two tools have the same name")
    return tools


def _tool(item: object, param: str) -> Tool:
    if not isinstance(item, dict) or item.get("type") != "function" or not isinstance(item.get("function"), dict):
        raise invalid(param, f"{param!r} must be {{type: function, function: {{name, parameters}}}}")
    function = item["function"]
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.match(name):
        raise invalid(f"{param}.function.name", "a tool's name has 1 to 64 letters, digits, '_', '.' or '-'")
    parameters = function.get("parameters")
    schema = {"type": "object", "properties": {}} if parameters is None else parameters
    return Tool(name, schema_text(schema, f"{param}.function.parameters"))


def _named(choice: object, tools: tuple[Tool, ...]) -> Tool:
    if not isinstance(choice, dict):
        raise invalid("tool_choice", "'tool_choice' must be none, auto, required or a named function")
    if choice.get("type") != "function" or not isinstance(choice.get("function"), dict):
        raise unsupported("tool_choice", "only {type: function, function: {name}} is")
    name = choice["function"].get("name")
    found = next((tool for tool in tools if tool.name == name), None)
    if found is None:
        raise invalid("tool_choice", f"'tool_choice' names {name!r}, which is not among 'tools'")
    return found
