"""The HTTP/1.1 wire: uvicorn's protocol with limits, and a straight way in for the hot routes.

A hot route (the inference endpoints) gets an `Exchange`: the whole body, and writes that go to the
transport without ASGI messages, tasks per chunk or middleware in between. Every other path runs as
ordinary ASGI (FastAPI). Limits, timeouts and parse errors are answered here, in OpenAI's error shape,
because at this level there is no framework to do it. docs/decisions/0002 has the reasons and figures.

Built on the inside of uvicorn 0.54 (httptools protocol); pyproject.toml pins that minor version.
"""

import asyncio
import http
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from gateway.api.errors import error_body
from gateway.core.errors import (
    BodyTooLarge,
    HeadersTooLarge,
    InvalidRequest,
    PenstockError,
    RequestTimeout,
    UnsupportedEncoding,
)

Headers = list[tuple[bytes, bytes]]
Handler = Callable[["Exchange"], Coroutine[Any, Any, None]]

STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in http.HTTPStatus}
LINGER_S = 2.0
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Wire:
    """What every connection shares. Sizes in bytes, times in seconds."""

    hot_routes: dict[bytes, Handler] = field(default_factory=dict)
    body_limit_bytes: int = 32 * 2**20
    header_limit_bytes: int = 64 * 2**10
    receive_timeout_s: float = 60.0


class _NoEvent:
    """Stands where uvicorn's cycle has an asyncio.Event: an Exchange never waits for messages."""

    __slots__ = ()

    def set(self) -> None:
        pass


_NO_EVENT = _NoEvent()


class Exchange:
    """One request on a hot route and the answer to it.

    `headers` are in order, names lower-case. The handler runs once the body is complete and is
    cancelled when the client leaves.
    """

    __slots__ = (
        "_chunked",
        "_wire",
        "body",
        "disconnected",
        "headers",
        "http_version",
        "is_turn",
        "keep_alive",
        "message_event",
        "more_body",
        "path",
        "response_complete",
        "response_started",
        "task",
    )

    def __init__(self, wire: "WireProtocol", path: bytes, headers: Headers, keep_alive: bool) -> None:
        self._wire = wire
        self.path = path
        self.headers = headers
        self.keep_alive = keep_alive
        self.http_version = wire.parser.get_http_version()
        self.body = bytearray()
        self.more_body = True
        self.is_turn = False
        self.disconnected = False
        self.response_started = False
        self.response_complete = False
        self.message_event = _NO_EVENT
        self.task: asyncio.Task[None] | None = None
        self._chunked = False

    def header(self, name: bytes) -> bytes | None:
        for key, value in self.headers:
            if key == name:
                return value
        return None

    @property
    def client_host(self) -> str:
        return self._wire.client[0] if self._wire.client else ""

    @property
    def paused(self) -> bool:
        """The client reads slower than we write; await `drain()` before writing more."""
        return self._wire.flow.write_paused and not self.disconnected

    async def drain(self) -> None:
        await self._wire.flow.drain()

    def respond(self, status: int, headers: bytes, body: bytes) -> None:
        """A whole answer. `headers` are lines, each ending in CRLF."""
        if self.disconnected:
            return
        self.response_started = True
        head = self._head(status, headers)
        self._wire.transport.write(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body))
        self._finish()

    def start(self, status: int, headers: bytes, first: bytes) -> None:
        """The head of a chunked answer, in one write with its first bytes."""
        if self.disconnected:
            return
        self.response_started = True
        self._chunked = self.http_version != "1.0"
        head = self._head(status, headers)
        if self._chunked:
            self._wire.transport.write(b"%btransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (head, len(first), first))
        else:
            self.keep_alive = False
            self._wire.transport.write(b"%b\r\n%b" % (head, first))

    def write(self, data: bytes) -> None:
        if self.disconnected or not data:
            return
        self._wire.transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def end(self, last: bytes = b"") -> None:
        if self.disconnected:
            return
        if self._chunked:
            self._wire.transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last) if last else b"0\r\n\r\n")
        elif last:
            self._wire.transport.write(last)
        self._finish()

    def abort(self) -> None:
        """Break the connection: the client must not take what it has for a complete answer."""
        self.response_complete = True
        self._wire.transport.abort()

    def _head(self, status: int, headers: bytes) -> bytes:
        connection = b"" if self.keep_alive else b"connection: close\r\n"
        return b"%b%b%b%b" % (STATUS_LINES[status], self._wire.default_headers(), headers, connection)

    def _finish(self) -> None:
        self.response_complete = True
        if not self.keep_alive:
            self._wire.transport.close()
        self._wire.on_response_complete()


class WireProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, one per connection, with hot routes and limits."""

    def __init__(
        self,
        wire: Wire,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.wire = wire
        self.exchange: Exchange | None = None  # the one whose body is being received
        self.receiving = False  # inside a request: head or body not complete
        self.in_head = False
        self.is_cold = False  # the request being received belongs to the framework
        self.is_lingering = False  # refused: what still comes is read and dropped, so the answer arrives
        self.head_bytes = 0
        self.body_bytes = 0
        self.receive_timer: asyncio.TimerHandle | None = None

    # ---- connection ----

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        cycles: list[Any] = [self.cycle, *(queued for queued, _ in self.pipeline)]
        for cycle in cycles:
            if isinstance(cycle, Exchange) and not cycle.response_complete:
                cycle.disconnected = True
                if cycle.task is not None:
                    cycle.task.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.is_lingering:
            return
        if self.in_head or not self.receiving:
            self.head_bytes += len(data)
        super().data_received(data)
        if not self.receiving or self.is_lingering:
            if self.receive_timer is not None:
                self._disarm()
        elif self.in_head and self.head_bytes > self.wire.header_limit_bytes:
            self.refuse(HeadersTooLarge(self._header_limit()))
        elif self.receive_timer is None:
            self._arm()

    def _arm(self) -> None:
        self.receive_timer = self.loop.call_later(self.wire.receive_timeout_s, self._receive_timed_out)

    def _disarm(self) -> None:
        if self.receive_timer is not None:
            self.receive_timer.cancel()
            self.receive_timer = None

    def _receive_timed_out(self) -> None:
        self.receive_timer = None
        if not self.receiving:
            self.transport.close()
            return
        limit_s = self.wire.receive_timeout_s
        self.refuse(RequestTimeout(f"The request was not complete after {limit_s:g} seconds."))

    # ---- parser callbacks ----

    def on_message_begin(self) -> None:
        self.receiving = self.in_head = True
        self.is_cold = False
        self.exchange = None
        self.body_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self.in_head = False
        if sum(len(name) + len(value) for name, value in self.headers) + len(self.url) > self.wire.header_limit_bytes:
            return self.refuse(HeadersTooLarge(self._header_limit()))
        path, _, _ = self.url.partition(b"?")
        if self.is_lingering:
            return None
        if self.parser.get_method() != b"POST" or path not in self.wire.hot_routes:
            self.is_cold = True
            return super().on_headers_complete()
        return self._open_exchange(path)

    def _open_exchange(self, path: bytes) -> None:
        keep_alive = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        exchange = Exchange(self, path, self.headers, keep_alive)
        previous, self.cycle = self.cycle, exchange  # type: ignore[assignment]
        self.exchange = exchange
        if previous is None or previous.response_complete:
            exchange.is_turn = True
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((exchange, self.app))  # type: ignore[arg-type]
        length = exchange.header(b"content-length")
        if length is not None and int(length) > self.wire.body_limit_bytes:
            return self.refuse(self._too_large())
        encoding = exchange.header(b"content-encoding")
        if encoding is not None and encoding.strip().lower() != b"identity":
            self.refuse(UnsupportedEncoding("Compressed request bodies are not accepted; send plain JSON."))
        elif self.expect_100_continue and exchange.is_turn:
            self.transport.write(CONTINUE)
        return None

    def on_body(self, body: bytes) -> None:
        self.body_bytes += len(body)
        if self.is_lingering:
            return
        if self.body_bytes > self.wire.body_limit_bytes:
            self.refuse(self._too_large())
        elif self.exchange is not None:
            self.exchange.body += body
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self.receiving = False
        self.head_bytes = 0
        exchange = self.exchange
        if self.is_cold:
            super().on_message_complete()
        elif exchange is not None and not exchange.response_complete:
            exchange.more_body = False
            if exchange.is_turn:
                self._run(exchange)

    # ---- running ----

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if not isinstance(cycle, Exchange):
            super()._start_asgi_task(cycle, app)
            return
        cycle.is_turn = True
        if not cycle.more_body:
            self._run(cycle)

    def _run(self, exchange: Exchange) -> None:
        task = self.loop.create_task(self.wire.hot_routes[exchange.path](exchange))
        exchange.task = task
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def refuse(self, error: PenstockError) -> None:
        """Answer a request that is not worth reading further, and close."""
        if self.is_lingering or self.transport.is_closing():
            return
        if not self._may_answer():  # another answer is on its way on this connection: no room for words
            self.transport.abort()
            return
        if self.exchange is not None:
            self.exchange.response_complete = True
        body = error_body(error)
        head = b"%b%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % (
            STATUS_LINES[error.status],
            self.default_headers(),
            len(body),
        )
        self.transport.write(head + body)
        self._linger()

    def _may_answer(self) -> bool:
        cycle: Any = self.cycle
        if self.is_cold:
            return False
        if cycle is self.exchange and self.exchange is not None:
            return self.exchange.is_turn and not self.exchange.response_complete
        return cycle is None or bool(cycle.response_complete)

    def _linger(self) -> None:
        """Close without a reset: a reset would take the answer away from a client still sending."""
        self.is_lingering = True
        self._unset_keepalive_if_required()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.abort)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 (uvicorn's words are not ours)
        self.refuse(InvalidRequest("The request is not valid HTTP/1.1.", code="invalid_http"))

    def default_headers(self) -> bytes:
        return b"".join([b"%b: %b\r\n" % header for header in self.server_state.default_headers])

    def _header_limit(self) -> str:
        return f"The request's headers are larger than {self.wire.header_limit_bytes} bytes."

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"The request body is larger than {self.wire.body_limit_bytes} bytes.")
