"""Reading an engine's event stream without rewriting it.

Bytes are cut at event boundaries and relayed as they came. Each event is decoded into the few fields
that are read: does it carry content, usage, a finish reason, an error. Four things may be changed: the
model's name; the usage event a client did not ask for (we ask the engine for it, to count tokens); the
name of the reasoning text, which clients find under `reasoning` whatever the engine calls it; and, where
the backend says so, events that say nothing of OpenAI's protocol are left out.

An event carries content when a choice has text, reasoning, or tool-call arguments that are not empty;
role, finish and usage events, comments and `[DONE]` do not (docs/request-life.md; OpenAI chat streaming).
"""

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from gateway.backends.errors import NOT_JSON, stream_error
from gateway.core.call import Chunk, Usage
from gateway.core.errors import UpstreamError

EVENT_LIMIT_BYTES = 16 * 2**20
ABORTED = "abort"
_BOUNDARY = re.compile(rb"\r?\n\r?\n|\r\r")


class _Function(msgspec.Struct, gc=False):
    arguments: str | None = None


class _ToolCall(msgspec.Struct, gc=False):
    function: _Function | None = None


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Event(msgspec.Struct, gc=False):
    choices: list[_Choice] = []
    usage: Usage | None = None
    error: Any = None


_DECODE = msgspec.json.Decoder(_Event).decode


def _has_content(choice: _Choice) -> bool:
    delta = choice.delta
    if delta is None:
        return bool(choice.text)
    if delta.content:
        return True
    if delta.tool_calls:
        return any(call.function is not None and call.function.arguments for call in delta.tool_calls)
    return bool(delta.reasoning or delta.reasoning_content or delta.refusal)


_NO_FRAME = (b"data: \0", b"\n\n", 7, 2)  # JSON never looks like this


class StreamReader:
    """Cuts one response body into `Chunk`s. `rename` is (name the engine uses, name the client sees).

    `drop_extras`: events without a choice, usage or an error are the engine's own and not for clients.
    """

    __slots__ = ("_drop_extras", "_drop_usage", "_frame", "_has_foreign_reasoning", "_renames", "_tail", "is_done")

    def __init__(self, *, rename: tuple[str, str] | None, drop_usage: bool, drop_extras: bool = False) -> None:
        self._tail = b""
        self._drop_usage = drop_usage
        self._drop_extras = drop_extras
        self._has_foreign_reasoning = False
        self._renames = model_renames(*rename) if rename else ()
        self._frame = _NO_FRAME
        self.is_done = False

    @property
    def has_partial_event(self) -> bool:
        return bool(self._tail.strip())

    def feed(self, data: bytes, at_s: float) -> Chunk | None:
        """The complete events in what arrived at `at_s`, or None while the next one is incomplete."""
        searched = 0
        if self._tail:
            searched = max(len(self._tail) - 3, 0)  # a boundary has four bytes at most
            data = self._tail + data
            self._tail = b""
        if not data.endswith(b"\n\n"):
            data, self._tail = _cut(data, searched)
            self._frame = _NO_FRAME  # the next read begins in the middle of an event
            if len(self._tail) > EVENT_LIMIT_BYTES:
                raise UpstreamError("The engine sent an event larger than the gateway holds.")
            if not data:
                return None
        for old, new in self._renames:
            data = data.replace(old, new)
        chunk = Chunk(data, at_s)
        if data.startswith(b"data: ") and data.find(b"\n") == len(data) - 2:  # one event, one line: nearly always
            if not self._read_event(data[6:], chunk):
                chunk.data = b""
            elif chunk.contents and chunk.usage is None and chunk.finish_reason is None:
                self._learn(data)
        else:
            self._read_events(data, chunk)
        if self._has_foreign_reasoning:
            self._has_foreign_reasoning = False
            chunk.data = own_reasoning(chunk.data)
        return chunk

    def is_plain(self, data: bytes) -> bool:
        """One event with the same bytes as the last around other words: content and nothing else, seen without
        decoding. It goes to the client as it is and need not be fed."""
        before, after, start, after_size = self._frame
        end = len(data) - after_size
        return start < end and data.startswith(before) and data.endswith(after) and data.find(b'"', start, end) < 0

    def _learn(self, event: bytes) -> None:
        """Remember what surrounds the content of an event that was decoded and carries nothing else."""
        if self._renames or self._tail or self._has_foreign_reasoning:
            return  # what comes next is not what goes out, or begins in the middle of an event
        start = event.find(b'"content":"') + 11
        end = event.find(b'"', start)
        if start > 10 and b"\\" not in event[start:end]:
            self._frame = event[:start], event[end:], start, len(event) - end

    def _read_events(self, data: bytes, chunk: Chunk) -> None:
        kept: list[bytes] | None = None  # only built when an event must go
        events = data.split(b"\n\n") if b"\r" not in data else _BOUNDARY.split(data)
        for index, event in enumerate(events):
            payload = _payload(event)
            keep = not payload or self._read_event(payload, chunk)
            if not keep and kept is None:
                kept = events[:index]
            elif keep and kept is not None:
                kept.append(event)
            if self.is_done and kept is None and any(events[index + 1 :]):
                kept = events[: index + 1]  # whatever follows [DONE] is not part of the answer
            if self.is_done or chunk.error is not None:
                break
        if kept is not None:
            chunk.data = b"".join([event + b"\n\n" for event in kept if event])

    def _read_event(self, payload: bytes, chunk: Chunk) -> bool:
        """Fill `chunk` from one event; False when the event is not for the client."""
        try:
            event = _DECODE(payload)
        except NOT_JSON:
            if payload.startswith(b"[DONE]"):
                self.is_done = chunk.is_last = True
                self._frame = _NO_FRAME  # nothing that follows is content
            return True  # not ours to judge: relayed as it came, counted as nothing
        if event.error:
            chunk.error = stream_error(payload)
            return False
        if event.usage is not None:
            chunk.usage = event.usage
        has_content = False
        for choice in event.choices:
            if choice.finish_reason:  # MNN says "" for "not yet"
                if choice.finish_reason == ABORTED:
                    chunk.error = aborted()
                    return False
                chunk.finish_reason = choice.finish_reason
            has_content = has_content or _has_content(choice)
            delta = choice.delta
            if delta is not None and delta.reasoning_content is not None and delta.reasoning is None:
                self._has_foreign_reasoning = True
        if has_content:
            chunk.contents += 1
        if event.choices:
            return True
        return not (self._drop_extras if event.usage is None else self._drop_usage)


def aborted() -> UpstreamError:
    """`finish_reason: "abort"` (vLLM, SGLang): an operator or the scheduler took the request out, unfinished."""
    return UpstreamError("The engine aborted the request before its answer was finished.")


def own_reasoning(data: bytes) -> bytes:
    """`reasoning_content` under the name that all engines' clients see: `reasoning`.

    Where both are there and ours is null, the two change places. Exact, although textual, as `model_renames` is:
    JSON holds no bare NUL.
    """
    for null in (b'"reasoning":null', b'"reasoning": null'):
        data = data.replace(null, b'"\0":null')
    return data.replace(b'"reasoning_content":', b'"reasoning":').replace(b'"\0":', b'"reasoning_content":')


def payloads(data: bytes) -> Iterator[bytes]:
    """The `data` of each of some complete events, comments left out."""
    events = data.split(b"\n\n") if b"\r" not in data else _BOUNDARY.split(data)
    return (payload for event in events if (payload := _payload(event)))


def _cut(data: bytes, searched: int) -> tuple[bytes, bytes]:
    """What is complete, and the rest; no boundary begins before `searched`."""
    end = max((match.end() for match in _BOUNDARY.finditer(data, searched)), default=0)
    return data[:end], data[end:]


def _payload(event: bytes) -> bytes:
    """The `data` of an event, joined when it has several lines; empty for comments."""
    if event.startswith(b"data:") and b"\n" not in event and b"\r" not in event:
        return event[5:].lstrip(b" ")
    lines = [line[5:].lstrip(b" ") for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines)


def model_renames(old: str, new: str) -> tuple[tuple[bytes, bytes], ...]:
    """Byte replacements of the `model` member, in the spellings JSON writers use.

    Exact, although textual: inside a JSON string every quote is escaped, so `"model":"x"` can only
    be a member of an object.
    """
    before, after = msgspec.json.encode(old), msgspec.json.encode(new)
    return tuple((b'"model":%b%b' % (space, before), b'"model":%b%b' % (space, after)) for space in (b"", b" "))
