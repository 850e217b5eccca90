"""What an answer must look like: a JSON schema, a regular expression, a grammar, a choice, or tool calls.

A constraint is plain data here, because it travels to the process that checks grammars (grammar_check.py) as JSON
and is turned into the library's configuration on both sides by the same function.
"""

import json
from typing import Any, Literal

import msgspec
import openvino_genai

from openvino_engine.json_grammar import compact_grammar

TOOL_OPEN = "<tool_call>"
TOOL_CLOSE = "</tool_call>"
TOOL_NAME = r"[a-zA-Z0-9_.-]{1,64}"


class ToolFrame(msgspec.Struct, frozen=True):
    """The blanks of a model's own tool-call format: after the opening mark, before the closing one, between calls."""

    after_open: str = "\n"
    before_close: str = "\n"
    between: str = "\n"

    def begin(self, name: str) -> str:
        """What comes before the arguments of a call."""
        return f'{TOOL_OPEN}{self.after_open}{{"name": "{name}", "arguments": '

    def end(self) -> str:
        """What comes after them."""
        return f"}}{self.before_close}{TOOL_CLOSE}"


class Tool(msgspec.Struct, frozen=True):
    """A function that the model may call; ``schema`` is its parameters as JSON text."""

    name: str
    schema: str


class Constraint(msgspec.Struct, frozen=True, omit_defaults=True):
    """Exactly one of the forms is set. ``tool_mode``: auto leaves free text, required is calls and nothing else."""

    json_schema: str | None = None
    regex: str | None = None
    grammar: str | None = None
    choice: tuple[str, ...] | None = None
    tools: tuple[Tool, ...] | None = None
    tool_mode: Literal["auto", "required"] = "auto"
    parallel: bool = True
    frame: ToolFrame = ToolFrame()

    @property
    def leaves_free_text(self) -> bool:
        """Whether the answer may hold text that no grammar shapes."""
        return self.tools is not None and self.tool_mode == "auto"

    def config(self) -> Any:
        """The library's StructuredOutputConfig. Nothing is compiled yet: the library does that inside step()."""
        kinds = openvino_genai.StructuredOutputConfig
        if self.tools is not None:
            return kinds(structural_tags_config=self._tags(kinds))
        if self.choice is not None:
            return kinds(structural_tags_config=_union([kinds.ConstString(text) for text in self.choice], kinds))
        if self.json_schema is not None:
            compact = compact_grammar(self.json_schema)
            return kinds(json_schema=self.json_schema) if compact is None else kinds(grammar=compact)
        return kinds(regex=self.regex) if self.regex is not None else kinds(grammar=self.grammar)

    def _tags(self, kinds: Any) -> Any:
        frame = self.frame
        tags = [kinds.Tag(frame.begin(tool.name), _json(tool.schema, kinds), frame.end()) for tool in self.tools or ()]
        once = not self.parallel
        if self.tool_mode == "auto":
            return kinds.TriggeredTags([TOOL_OPEN], tags, stop_after_first=once)
        return kinds.TagsWithSeparator(tags, frame.between, at_least_one=True, stop_after_first=once)


def _union(parts: list[Any], kinds: Any) -> Any:
    return parts[0] if len(parts) == 1 else kinds.Union(parts)


def _json(schema: str, kinds: Any) -> Any:
    compact = compact_grammar(schema)
    return kinds.JSONSchema(schema) if compact is None else kinds.EBNF(compact)


def schema_json(schema: object) -> str:
    """A schema as JSON text, in the client's key order (the order in which the model writes the keys)."""
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
