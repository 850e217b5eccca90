"""The model's `<tool_call>` text, piece by piece, into text, calls and fragments of arguments.

The grammar (constraint.py) guarantees the form `<tool_call>{"name": "NAME", "arguments": JSON}</tool_call>`, with the
model's own blanks. The end of the arguments is found by reading the JSON's strings and brackets, because a string may
contain anything that looks like the end.
"""

import re
from dataclasses import dataclass
from typing import Literal

from openvino_engine.constraint import TOOL_CLOSE, TOOL_NAME, TOOL_OPEN

_HEAD = re.compile(rf'\s*\{{"name": "({TOOL_NAME})", "arguments": ')


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of the answer: free text, the start of a call (its name), or a fragment of its arguments."""

    kind: Literal["text", "call", "arguments"]
    value: str


class ToolParser:
    """Text of one answer in, pieces out, as early as they are certain. Blanks around calls are not content."""

    def __init__(self) -> None:
        self._buffer = ""
        self._state: Literal["text", "head", "arguments", "tail"] = "text"
        self._blanks = ""  # seen, given out only if text follows
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self.calls = 0

    @property
    def inside(self) -> bool:
        """Whether a call was opened and not closed yet."""
        return self._state != "text"

    def feed(self, text: str) -> list[Piece]:
        """The pieces that ``text`` makes certain."""
        self._buffer += text
        pieces: list[Piece] = []
        steps = {"text": self._text, "head": self._head, "arguments": self._arguments, "tail": self._tail}
        while steps[self._state](pieces):
            pass
        return pieces

    def finish(self) -> list[Piece]:
        """What is left when the answer ends, be it in the middle of a call."""
        pieces: list[Piece] = []
        if self._state == "text":
            self._give_text(self._buffer, pieces)
            if self._blanks and not self.calls:
                pieces.append(Piece("text", self._blanks))
        self._buffer = self._blanks = ""
        return pieces

    def _text(self, pieces: list[Piece]) -> bool:
        before, found, after = self._buffer.partition(TOOL_OPEN)
        if not found:
            keep = _overlap(self._buffer, TOOL_OPEN)
            before, after = self._buffer[: len(self._buffer) - keep], self._buffer[len(self._buffer) - keep :]
        self._give_text(before, pieces)
        self._buffer = after
        if found:
            self._state, self._blanks = "head", ""
        return bool(found)

    def _give_text(self, text: str, pieces: list[Piece]) -> None:
        text = self._blanks + text
        solid = text.rstrip()
        self._blanks = text[len(solid) :]
        if solid:
            pieces.append(Piece("text", solid))

    def _head(self, pieces: list[Piece]) -> bool:
        match = _HEAD.match(self._buffer)
        if match is None:
            return False
        self.calls += 1
        pieces.append(Piece("call", match[1]))
        self._buffer, self._state, self._depth = self._buffer[match.end() :], "arguments", 0
        return True

    def _arguments(self, pieces: list[Piece]) -> bool:
        end = self._scan()
        fragment = self._buffer if end is None else self._buffer[:end]
        if fragment:
            pieces.append(Piece("arguments", fragment))
        self._buffer = "" if end is None else self._buffer[end + 1 :]
        if end is None:
            return False
        self._state = "tail"
        return True

    def _scan(self) -> int | None:
        """Position of the brace that closes the call, which is the first one that closes nothing of the arguments."""
        for position, char in enumerate(self._buffer):
            if self._in_string:
                self._in_string = self._escaped or char != '"'
                self._escaped = char == "\\" and not self._escaped
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                if self._depth == 0:
                    return position
                self._depth -= 1
        return None

    def _tail(self, _pieces: list[Piece]) -> bool:
        _, found, after = self._buffer.partition(TOOL_CLOSE)
        if found:
            self._buffer, self._state = after, "text"
        return bool(found)


def _overlap(text: str, mark: str) -> int:
    for size in range(min(len(mark) - 1, len(text)), 0, -1):
        if text.endswith(mark[:size]):
            return size
    return 0
