"""The engine: joins the parts, sends each request to its answer, and holds what is shared (script, meter, stats)."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from fake_engine import embeddings, ops
from fake_engine.answer import Answer, echoed_text
from fake_engine.asked import Asked, EndpointName, read_body
from fake_engine.connection import Connection, Request
from fake_engine.engines import ENGINES
from fake_engine.errors import RequestError, error_body
from fake_engine.exchange import Exchange
from fake_engine.frames import Frames
from fake_engine.metrics import Meter
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
from fake_engine.script import Error, Fields, Script, ScriptError, ScriptShelf, read_script, script_in_text
from fake_engine.stats import Stats
from fake_engine.wire import Framing, framing, junk, reply

GENERATION_PATHS: dict[str, EndpointName] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
}
_ID_PREFIX = {"chat": "chatcmpl-", "completions": "cmpl-", "embeddings": "embd-"}


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line sets once. `max_running` None: no queue, every request runs at once."""

    models: tuple[str, ...] = ("fake",)
    engine: str = "vllm"
    max_model_len: int = 32_768
    embedding_size: int = 64
    max_running: int | None = None
    max_queued: int | None = None
    kv_capacity_tokens: int = 1_000_000
    api_key: str | None = None


class Engine:
    """Everything one fake engine knows. Handed to each connection; there is no other state."""

    def __init__(self, settings: Settings, base_script: Fields) -> None:
        self.settings = settings
        self.kind = ENGINES[settings.engine]
        self.scripts = ScriptShelf(base_script)
        self.stats = Stats()
        self.meter = Meter(self.kind, settings.models[0], settings.kv_capacity_tokens)
        self.health_status = 200
        self.connections: set[Connection] = set()
        self._waiting: deque[Exchange] = deque()
        self._count = 0

    def becomes_healthy(self) -> None:
        self.health_status = 200

    # ---- from connections ----

    def arriving(self, connection: Connection, request: Request) -> Script | None:
        """The headers are there. The script in force decides how the body is read, or that it is not."""
        if request.path.startswith("/_fake/"):
            connection.becomes_control()
        if request.method != "POST" or request.path not in GENERATION_PATHS:
            return None
        request.fields = self.scripts.take()
        script = read_script(request.fields)
        if script.error is not None and script.error.before_body:
            self.stats.requests += 1
            self.stats.active += 1
            self.stats.end("failed")
            connection.write(self._scripted_error(script.error, closes=True))
            connection.close()
        return script

    def handle(self, connection: Connection, request: Request) -> None:
        """One whole request: an exchange for a generation, an immediate answer for everything else."""
        if request.path.startswith("/_fake/"):
            self._reply(connection, request, *ops.control(self, request))
            return
        self.stats.count_path(request.method, request.path)
        if request.method == "POST":
            self.stats.remember(request.method, request.path, request.headers, bytes(request.body))
        is_generation = request.method == "POST" and request.path in GENERATION_PATHS
        self.stats.requests += is_generation
        self.stats.active += is_generation
        try:
            self._authenticate(request)
            if not is_generation:
                self._reply(connection, request, *ops.operate(self, request))
                return
            exchange = self._generate(connection, request)
        except RequestError as error:
            if is_generation:
                self.stats.end("failed")
            self._refuse(connection, request, error)
        else:
            connection.exchange = exchange
            self._schedule(exchange)

    def refuse(self, connection: Connection, message: str) -> None:
        """Bytes that are not a request: answer 400 and close."""
        body, content_type = error_body(self.kind.error_shape, 400, message)
        connection.write(reply(400, body, content_type, {}, closes=True))
        connection.close()

    def release(self, exchange: Exchange) -> None:
        """An exchange ended: its slot is free, or its place in the queue."""
        if not exchange.is_running:
            self._waiting.remove(exchange)
        self.meter.waiting = len(self._waiting)
        if self._waiting and self._has_slot():
            waiting = self._waiting.popleft()
            self.meter.waiting = len(self._waiting)
            waiting.start()

    # ---- one generation ----

    def _generate(self, connection: Connection, request: Request) -> Exchange:
        endpoint = GENERATION_PATHS[request.path]
        asked = read_body(endpoint, bytes(request.body))
        script = self._script(request, asked)
        self._check(asked)
        self._count += 1
        answer_id = _ID_PREFIX[endpoint] + (request.header("x-request-id") or f"fake-{self._count}")
        closes = script.close_after is not None or not request.keeps_alive
        if script.error is not None or (script.error_event is not None and not asked.stream):
            steps, closes, reason = self._error_steps(script, closes)
            exchange = Exchange(connection, steps, closes, asked.prompt_tokens)
            exchange.outcome, exchange.reason = "failed", reason
            return exchange
        steps, reason, closes = self._answer_steps(request, asked, script, answer_id, closes)
        self.meter.cached_tokens += min(script.cached_tokens or 0, asked.prompt_tokens)
        exchange = Exchange(connection, steps, closes, asked.prompt_tokens)
        exchange.reason = reason
        return exchange

    def _script(self, request: Request, asked: Asked) -> Script:
        try:
            return read_script(script_in_text(asked.last_text) or {}, request.fields)
        except ScriptError as error:
            raise RequestError(400, str(error)) from None

    def _check(self, asked: Asked) -> None:
        if asked.model not in self.settings.models:
            message = f"The model `{asked.model}` does not exist."
            raise RequestError(404, message, param="model", code="model_not_found")
        limit = self.settings.max_model_len
        wanted = asked.prompt_tokens + (asked.max_tokens or 0)
        if asked.prompt_tokens >= limit or wanted > limit:
            message = (
                f"This model's maximum context length is {limit} tokens. However, you requested "
                f"{asked.max_tokens or 0} output tokens and your prompt contains {asked.prompt_tokens} input tokens."
            )
            raise RequestError(400, message, param="input_tokens", code="context_length_exceeded")
        room = self.settings.max_queued
        if room is not None and not self._has_slot() and len(self._waiting) >= room:
            self.meter.rejected["queue_full"] += 1
            raise RequestError(503, "The request queue is full.", type="Service Unavailable")

    def _error_steps(self, script: Script, closes: bool) -> tuple[Iterator[Step], bool, str]:
        at_s = script.ttft_s
        if script.error is not None:
            data = self._scripted_error(script.error, closes=closes)
        else:
            event = script.error_event
            assert event is not None
            at_s += event.after_chunks * script.itl_s
            error = Error(message=event.message, type=event.type, code=event.code)
            data = self._scripted_error(error, closes=closes)
        steps = iter((Step(at_s, data), Step(at_s, b"", 0, Action.FINISH)))
        return in_pieces(steps, script.write_bytes, script.write_pause_s), closes, "error"

    def _answer_steps(
        self, request: Request, asked: Asked, script: Script, answer_id: str, closes: bool
    ) -> tuple[Iterator[Step], str, bool]:
        reason, body = "stop", None
        sse = Sse(script)
        if asked.endpoint == "embeddings":
            body = embeddings.embed(asked, self.settings.embedding_size)
            events: Iterator[Event] = iter((Event(script.ttft_s, body),))
        else:
            frames = Frames(asked, script, self.kind, answer_id)
            answer = Answer(script, asked, echoed_text(script, request.headers, bytes(request.body)))
            reason = answer.finish_reason() if answer.finish_reason() == "length" else "stop"
            if asked.stream and script.junk is None:
                events = stream_events(frames, answer, script, asked.choices, sse)
                events = with_error_event(events, script, sse)
            else:
                chunks = list(answer.chunks())
                body = frames.whole(answer, chunks)
                events = whole_events(body, chunks, script, asked.choices)
        if script.junk is not None:
            data, closes = junk(script.junk, body or b"{}")
            steps = iter((Step(script.ttft_s, data), Step(script.ttft_s, b"", 0, Action.FINISH)))
            return in_pieces(steps, script.write_bytes, script.write_pause_s), reason, closes
        events = with_strikes(events, script, body)
        if asked.stream and "before_headers" not in (script.hang, script.die.at if script.die else None):
            events = with_comments(events, script.keep_alive_s, sse)
        if script.early_headers:
            events = _chain_head(events)
        framed = self._framing(request, script, body, closes)
        steps = on_the_wire(events, framed)
        closes = closes or b"connection: close" in framed.head
        return in_pieces(steps, script.write_bytes, script.write_pause_s), reason, closes

    def _framing(self, request: Request, script: Script, body: bytes | None, closes: bool) -> Framing:
        kind: str = script.framing
        if kind == "auto" or (kind == "length" and body is None):
            kind = "length" if body is not None else "chunked"
        if kind == "chunked" and request.is_http_1_0:
            kind = "close"
        content_type = "text/event-stream; charset=utf-8" if body is None else "application/json"
        headers = {"content-type": content_type, **script.headers}
        is_announced = closes and script.close_after != "silent"
        length = None if body is None else len(body)
        return framing(kind, length, headers, closes=is_announced, hints=script.early_hints)

    # ---- slots ----

    def _has_slot(self) -> bool:
        limit = self.settings.max_running
        return limit is None or self.meter.running < limit

    def _schedule(self, exchange: Exchange) -> None:
        self.meter.started += 1
        if self._has_slot():
            exchange.start()
        else:
            self._waiting.append(exchange)
            self.meter.waiting = len(self._waiting)

    # ---- plain answers ----

    def _authenticate(self, request: Request) -> None:
        key = self.settings.api_key
        if key and request.path.startswith("/v1") and request.header("authorization") != f"Bearer {key}":
            raise RequestError(401, "Unauthorized")

    def _refuse(self, connection: Connection, request: Request, error: RequestError) -> None:
        shape = self.kind.unauthorized if error.status == 401 else self.kind.error_shape
        body, content_type = error_body(
            shape, error.status, error.message, type=error.type, param=error.param, code=error.code
        )
        self._reply(connection, request, error.status, body, content_type)

    def _scripted_error(self, error: Error, *, closes: bool) -> bytes:
        shape = error.shape or self.kind.error_shape
        body, content_type = error_body(
            shape, error.status, error.message, type=error.type, param=error.param, code=error.code
        )
        headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
        return reply(error.status, body, content_type, headers, closes=closes)

    def _reply(
        self, connection: Connection, request: Request, status: int, body: bytes, content_type: str = "application/json"
    ) -> None:
        connection.write(reply(status, body, content_type, {}, closes=not request.keeps_alive))
        connection.answered(closes=not request.keeps_alive)


def _chain_head(events: Iterator[Event]) -> Iterator[Event]:
    yield Event(0.0, b"")
    yield from events
