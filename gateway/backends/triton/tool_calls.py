"""Hermes' tool calls in an answer's text, `<tool_call>{"name": ..., "arguments": ...}</tool_call>`, taken apart as they
come: text, the start of a call, fragments of its arguments.

The end of the arguments is found by reading the JSON's strings and brackets: a string may hold anything that looks
like an end.
"""

import re
from collections.abc import Callable
from typing import Literal, NamedTuple

import msgspec

from gateway.backends.triton.text import overlap
from gateway.backends.triton.tools import CLOSE, OPEN

_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"\\]+)"\s*,\s*"arguments"\s*:\s*(?=[^\s])')


class Piece(NamedTuple):
    """`call` is a tool's name, `arguments` a fragment of its JSON."""

    kind: Literal["text", "call", "arguments"]
    value: str


class ToolCalls:
    """Text of one answer in, pieces out as early as they are certain. Blanks around calls are not content.

    `inside`: the answer begins within a call, because the prompt ended with the mark.
    """

    __slots__ = (
        "_before",
        "_blanks",
        "_buffer",
        "_depth",
        "_escaped",
        "_in_string",
        "_state",
        "_steps",
        "calls",
        "is_closed",
    )

    def __init__(self, *, inside: bool = False) -> None:
        self._buffer = self._blanks = self._before = ""
        self._state = "head" if inside else "text"
        self._steps: dict[str, Callable[[list[Piece]], bool]] = {
            "text": self._text, "head": self._head, "arguments": self._arguments, "tail": self._tail,
        }  # fmt: skip
        self._depth = 0
        self._in_string = self._escaped = False
        self.calls = 0
        self.is_closed = False

    def feed(self, text: str) -> list[Piece]:
        """The pieces that `text` makes certain. `is_closed` tells afterwards that a call has just ended."""
        self._buffer += text
        self.is_closed = False
        pieces: list[Piece] = []
        while self._steps[self._state](pieces):
            pass
        return pieces

    def finish(self) -> list[Piece]:
        """What is left when the answer ends, be it in the middle of a call."""
        pieces: list[Piece] = []
        if self._state == "text":
            self._give(self._buffer, pieces)
            if self._blanks and not self.calls:
                pieces.append(Piece("text", self._blanks))
        elif self._state == "head":
            self._whole(self._buffer, "", pieces)
        self._buffer = self._blanks = ""
        return pieces

    def _text(self, pieces: list[Piece]) -> bool:
        before, found, after = self._buffer.partition(OPEN)
        if not found:
            cut = len(before) - overlap(before, OPEN)
            before, after = before[:cut], before[cut:]
        self._give(before, pieces)
        self._buffer = after
        if found:
            self._state, self._before, self._blanks = "head", self._blanks, ""
        return bool(found)

    def _give(self, text: str, pieces: list[Piece]) -> None:
        text = self._blanks + text
        solid = text.rstrip()
        self._blanks = text[len(solid) :]
        if solid:
            pieces.append(Piece("text", solid))

    def _head(self, pieces: list[Piece]) -> bool:
        match = _HEAD.match(self._buffer)
        if match is not None:
            self._begin(match[1], pieces)
            self._buffer, self._state, self._depth = self._buffer[match.end() :], "arguments", 0
            return True
        inside, closed, after = self._buffer.partition(CLOSE)
        if not closed:
            return False
        self._whole(inside, CLOSE, pieces)  # written in another order, or not a call at all
        self._buffer, self._state, self.is_closed = after, "text", True
        return True

    def _whole(self, inside: str, end: str, pieces: list[Piece]) -> None:
        try:
            call = msgspec.json.decode(inside)
        except msgspec.DecodeError:
            call = None
        if isinstance(call, dict) and isinstance(call.get("name"), str):
            self._begin(call["name"], pieces)
            pieces.append(Piece("arguments", msgspec.json.encode(call.get("arguments", {})).decode()))
        elif inside.strip():
            self._give(self._before + OPEN + inside + end, pieces)  # the client sees what the model wrote

    def _begin(self, name: str, pieces: list[Piece]) -> None:
        self.calls += 1
        pieces.append(Piece("call", name))

    def _arguments(self, pieces: list[Piece]) -> bool:
        end = self._scan()
        fragment = self._buffer if end is None else self._buffer[:end]
        if fragment:
            pieces.append(Piece("arguments", fragment))
        self._buffer = "" if end is None else self._buffer[end + 1 :]
        if end is None:
            return False
        self._state, self.is_closed = "tail", True
        return True

    def _scan(self) -> int | None:
        """Where the brace is that closes the call: the first one that closes nothing of the arguments."""
        for place, char in enumerate(self._buffer):
            if self._in_string:
                self._in_string = self._escaped or char != '"'
                self._escaped = char == "\\" and not self._escaped
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                if not self._depth:
                    return place
                self._depth -= 1
        return None

    def _tail(self, pieces: list[Piece]) -> bool:  # noqa: ARG002
        _, found, after = self._buffer.partition(CLOSE)
        if found:
            self._buffer, self._state = after, "text"
        return bool(found)
