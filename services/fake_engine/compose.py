"""From a checked request and its script to a timetable: picks the generators of plan.py and joins them.

Apart from engine.py, which decides whether a request is answered at all, and when it may start.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from fake_engine import embeddings
from fake_engine.answer import Answer, echoed_text
from fake_engine.asked import Asked
from fake_engine.engines import EngineKind
from fake_engine.errors import error_body
from fake_engine.manners import MANNERS
from fake_engine.native import Native
from fake_engine.plan import (
    Action,
    Event,
    Sse,
    Step,
    in_pieces,
    on_the_wire,
    stream_events,
    whole_events,
    with_comments,
    with_error_event,
    with_strikes,
)
from fake_engine.request import Request
from fake_engine.script import Error, Script
from fake_engine.wire import Framing, framing, junk, reply


@dataclass(frozen=True, slots=True)
class Timetable:
    """`reason` and `outcome` are for the books (metrics.py, stats.py); `closes`: the connection, after the answer."""

    steps: Iterator[Step]
    closes: bool
    reason: str = "stop"
    outcome: str = "completed"


class Composer:
    """Makes timetables in the manner of one engine. `compose` raises RequestError for what it cannot answer."""

    def __init__(self, kind: EngineKind, embedding_size: int) -> None:
        self._kind = kind
        self._embedding_size = embedding_size

    def compose(self, request: Request, asked: Asked, script: Script, answer_id: str) -> Timetable:
        closes = script.close_after is not None or not request.keeps_alive
        table = self._refusal(asked, script, closes) or self._answer(request, asked, script, answer_id, closes)
        pieces = in_pieces(table.steps, script.write_bytes, script.write_pause_s)
        return Timetable(pieces, table.closes, table.reason, table.outcome)

    def scripted_error(self, error: Error, *, closes: bool) -> bytes:
        body, content_type = error_body(
            error.shape or self._kind.error_shape,
            error.status,
            error.message,
            type=error.type,
            param=error.param,
            code=error.code,
        )
        headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
        return reply(error.status, body, content_type, headers, closes=closes)

    def _refusal(self, asked: Asked, script: Script, closes: bool) -> Timetable | None:
        """A scripted error; what would be an error event in a stream is an HTTP error when nothing is streamed."""
        at_s, error = script.ttft_s, script.error
        if error is None and script.error_event is not None and not asked.stream:
            event = script.error_event
            at_s += event.after_chunks * script.itl_s
            error = Error(message=event.message, type=event.type, code=event.code)
        if error is None:
            return None
        return Timetable(_at_once(at_s, self.scripted_error(error, closes=closes)), closes, "error", "failed")

    def _answer(self, request: Request, asked: Asked, script: Script, answer_id: str, closes: bool) -> Timetable:
        sse = Sse(script)
        events, body, reason = self._events(request, asked, script, answer_id, sse)
        if script.junk is not None:
            data, closes = junk(script.junk, body or b"{}")
            return Timetable(_at_once(script.ttft_s, data), closes)
        events = with_strikes(events, script, body)
        if body is None and "before_headers" not in (script.hang, script.die.at if script.die else None):
            events = with_comments(events, script.keep_alive_s, sse)
        if script.early_headers:
            events = _head_first(events)
        framed = _framing(request, script, body, closes)
        return Timetable(on_the_wire(events, framed), closes or framed.ends_by_closing, reason)

    def _events(
        self, request: Request, asked: Asked, script: Script, answer_id: str, sse: Sse
    ) -> tuple[Iterator[Event], bytes | None, str]:
        """The events, the body when it is not a stream, and the finish reason for the books."""
        if asked.endpoint == "embeddings":
            body = embeddings.embed(asked, self._embedding_size)
            return iter((Event(script.ttft_s, body),)), body, "stop"
        if asked.endpoint not in ("chat", "completions"):
            native = Native(asked, script, answer_id, self._kind.manner)
            if asked.stream and script.junk is None:
                return with_error_event(native.events(), script, sse), None, native.reason
            body = native.body()
            return iter((Event(script.ttft_s, body, native.tokens, is_content=True),)), body, native.reason
        frames = MANNERS[self._kind.manner](asked, script, self._kind, answer_id)
        answer = Answer(script, asked, echoed_text(script, request.headers, bytes(request.body)))
        reason = "length" if answer.finish_reason() == "length" else "stop"
        if asked.stream and script.junk is None:
            events = stream_events(frames, answer, script, asked.choices, sse)
            return with_error_event(events, script, sse), None, reason
        chunks = list(answer.chunks())
        body = frames.whole(answer, chunks)
        return whole_events(body, chunks, script, asked.choices), body, reason


def _at_once(at_s: float, data: bytes) -> Iterator[Step]:
    return iter((Step(at_s, data), Step(at_s, b"", 0, Action.FINISH)))


def _head_first(events: Iterator[Event]) -> Iterator[Event]:
    yield Event(0.0, b"")
    yield from events


def _framing(request: Request, script: Script, body: bytes | None, closes: bool) -> Framing:
    kind: str = script.framing
    if kind == "auto" or (kind == "length" and body is None):
        kind = "length" if body is not None else "chunked"
    if kind == "chunked" and request.is_http_1_0:
        kind = "close"
    content_type = "text/event-stream; charset=utf-8" if body is None else "application/json"
    headers = {"content-type": content_type, **script.headers}
    says_close = closes and script.close_after != "silent"
    return framing(kind, None if body is None else len(body), headers, closes=says_close, hints=script.early_hints)
