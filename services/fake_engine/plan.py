"""An answer and its faults as a timetable: lazily, a sequence of steps on a schedule that is absolute.

A pipeline of generators, each one concern: say the chunks, strike the faults, interleave comments, put HTTP around,
cut into pieces. The player (exchange.py) knows nothing of any of this; it performs steps when they are due.
"""

import enum
import math
from collections.abc import Iterator
from typing import NamedTuple

from fake_engine.answer import Answer, Chunk
from fake_engine.errors import error_event
from fake_engine.frames import Frames
from fake_engine.script import Die, Point, Script
from fake_engine.wire import Framing

RESET_GRACE_S = 0.05
"""A reset destroys what the receiver has not read yet: let it read what came before."""

COMMENT = b": keep-alive"


class Action(enum.Enum):
    """What a step does after its bytes."""

    NOTHING = enum.auto()
    FINISH = enum.auto()
    CLOSE = enum.auto()
    RESET = enum.auto()
    EXIT = enum.auto()


class Event(NamedTuple):
    """Before HTTP. `data` None: nothing on the wire; b"": at least the head. `at_s` after the start; inf is never."""

    at_s: float
    data: bytes | None
    tokens: int = 0
    is_content: bool = False
    action: Action = Action.NOTHING
    is_half: bool = False


class Step(NamedTuple):
    """Bytes for the wire, due at `at_s` after the start. `is_alone`: not to be joined with its neighbours."""

    at_s: float
    data: bytes
    tokens: int = 0
    action: Action = Action.NOTHING
    is_alone: bool = False


class Sse:
    """How one event is written down; some engines use CRLF or leave out the space after `data:`."""

    def __init__(self, script: Script) -> None:
        newline = {"lf": b"\n", "crlf": b"\r\n", "cr": b"\r"}[script.newline]
        self._before = b"data: " if script.data_space else b"data:"
        self._after = newline + newline

    def event(self, data: bytes) -> bytes:
        return self._before + data + self._after

    def comment(self) -> bytes:
        return COMMENT + self._after


# ---- what is said ----


def stream_events(frames: Frames, answer: Answer, script: Script, choices: int, sse: Sse) -> Iterator[Event]:
    """Role, content, finish, usage, [DONE]; rows of `choices` events at the same time."""
    reason = answer.finish_reason()
    at_s, tokens, reasoning, rows = script.ttft_s, 0, 0, 0
    merged_finish = reason if script.finish_chunk == "merged" else None
    for chunk, is_last in _with_last(answer.chunks()):
        at_s = script.ttft_s + rows * script.itl_s
        tokens += chunk.tokens * choices
        reasoning += chunk.tokens * choices if chunk.kind == "reasoning" else 0
        if rows == 0 and script.role_chunk == "separate":
            yield from _roles(frames, choices, at_s, sse)
        has_role = rows == 0 and script.role_chunk == "merged"
        for index in range(choices):
            data = frames.part(index, chunk, merged_finish if is_last else None, has_role, tokens)
            yield Event(at_s, sse.event(data), 0 if index else chunk.tokens * choices, is_content=True)
        rows += 1
    if rows == 0 and script.role_chunk == "separate":
        yield from _roles(frames, choices, at_s, sse)
    if script.finish_chunk == "separate" or (merged_finish and rows == 0):
        yield from (Event(at_s, sse.event(frames.finish(index, reason, tokens))) for index in range(choices))
    for event in frames.extra_events(sse.event) if script.extra_events else ():
        yield Event(at_s, event)
    if frames.sends_usage:
        yield Event(at_s, sse.event(frames.usage(tokens, reasoning)))
    if script.done:
        yield Event(at_s, sse.event(b"[DONE]"))


def _roles(frames: Frames, choices: int, at_s: float, sse: Sse) -> Iterator[Event]:
    if frames.has_roles:
        yield from (Event(at_s, sse.event(frames.role(index))) for index in range(choices))


def _with_last(chunks: Iterator[Chunk]) -> Iterator[tuple[Chunk, bool]]:
    previous = next(chunks, None)
    for chunk in chunks:
        if previous is not None:
            yield previous, False
        previous = chunk
    if previous is not None:
        yield previous, True


def whole_events(body: bytes, chunks: list[Chunk], script: Script, choices: int) -> Iterator[Event]:
    """An answer that is not streamed: its tokens come silently on the same schedule, then the body at once."""
    at_s = script.ttft_s
    for row, chunk in enumerate(chunks):
        at_s = script.ttft_s + row * script.itl_s
        yield Event(at_s, None, chunk.tokens * choices, is_content=True)
    yield Event(at_s, body)


# ---- what goes wrong, and what comes between ----


def with_error_event(events: Iterator[Event], script: Script, sse: Sse) -> Iterator[Event]:
    fault = script.error_event
    if fault is None:
        yield from events
        return
    at_s = script.ttft_s
    for event in _until(events, fault.after_chunks):
        if event.action is Action.FINISH:
            at_s = event.at_s
            break
        yield event
    yield Event(at_s, sse.event(error_event(fault.message, fault.type, fault.code)))
    if fault.done:
        yield Event(at_s, sse.event(b"[DONE]"))


def with_strikes(events: Iterator[Event], script: Script, body: bytes | None) -> Iterator[Event]:
    """Hang or die. `body`: of an answer that is not streamed, for half of it."""
    point: Point | None = script.die.at if script.die else script.hang
    if point is None:
        yield from events
        return
    if point == "before_headers":
        yield _strike(script.die, Event(script.ttft_s, None), body)
    elif point == "after_headers":
        yield Event(script.ttft_s if script.die else 0.0, b"")
        yield _strike(script.die, Event(script.ttft_s, None), body)
    else:
        for event in _until(events, int(point)):
            if event.action is Action.FINISH:
                yield _strike(script.die, event, body)
                return
            yield event


def _until(events: Iterator[Event], chunks: int) -> Iterator[Event]:
    """Events up to `chunks` content chunks; then the next one, marked FINISH (it was not said)."""
    seen, last = 0, Event(0.0, None)
    for event in events:
        if seen == chunks and (event.is_content or chunks > 0):
            yield event._replace(action=Action.FINISH)
            return
        seen += event.is_content
        last = event
        yield event
    yield Event(last.at_s, None, action=Action.FINISH)


def _strike(die: Die | None, instead_of: Event, body: bytes | None) -> Event:
    if die is None:
        return Event(math.inf, None)
    action = {"close": Action.CLOSE, "reset": Action.RESET, "exit": Action.EXIT}[die.how]
    at_s = instead_of.at_s if die.how == "close" else instead_of.at_s + RESET_GRACE_S
    data = (instead_of.data or body) if die.half_event else None
    return Event(at_s, data, action=action, is_half=die.half_event)


def with_comments(events: Iterator[Event], period_s: float | None, sse: Sse) -> Iterator[Event]:
    """A comment every `period_s` from the start, also while the engine hangs."""
    if period_s is None:
        yield from events
        return
    count = 1
    for event in events:
        while event.at_s > count * period_s:
            yield Event(count * period_s, sse.comment())
            count += 1
        yield event


# ---- HTTP around it, and pieces ----


def on_the_wire(events: Iterator[Event], framing: Framing) -> Iterator[Step]:
    """Adds the head before the first bytes (in one write with them) and the end after the last ones."""
    has_head, at_s = False, 0.0
    for event in events:
        data, at_s = b"", event.at_s
        if event.data is not None:
            data = framing.wrap(event.data)
            if event.is_half:
                data = data[: len(data) // 2]
            if not has_head:
                data, has_head = framing.head + data, True
        yield Step(event.at_s, data, event.tokens, event.action)
        if event.action is not Action.NOTHING:
            return
    yield Step(at_s, (b"" if has_head else framing.head) + framing.end, 0, Action.FINISH)


def in_pieces(steps: Iterator[Step], size_bytes: int | None, pause_s: float) -> Iterator[Step]:
    """Every step's bytes in pieces of `size_bytes`, each its own write, `pause_s` apart."""
    if size_bytes is None:
        yield from steps
        return
    free_s = 0.0
    for step in steps:
        at_s = max(step.at_s, free_s)
        starts = range(0, len(step.data), size_bytes)
        for start in starts:
            is_first, is_last = start == 0, start + size_bytes >= len(step.data)
            piece = step.data[start : start + size_bytes]
            yield Step(at_s, piece, step.tokens if is_first else 0, step.action if is_last else Action.NOTHING, True)
            at_s += pause_s
        if not starts:
            yield step._replace(at_s=at_s)
        free_s = at_s
