"""The HTTP/1.1 wire: uvicorn's protocol with limits, and a straight way in for the hot routes.

A request on a hot route (the inference endpoints) becomes an `Exchange`; every other path runs as
ordinary ASGI (FastAPI). Limits, timeouts and parse errors are answered here, in OpenAI's error shape,
because at this level there is no framework to do it. docs/decisions/0002 has the reasons and figures.

Built on the inside of uvicorn 0.54 (httptools protocol); pyproject.toml pins that minor version.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import httptools
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from gateway.api.errors import error_body
from gateway.api.exchange import STATUS_LINES, Exchange
from gateway.core.errors import (
    BodyTooLarge,
    HeadersTooLarge,
    InvalidRequest,
    PenstockError,
    RequestTimeout,
    UnsupportedEncoding,
)

Handler = Callable[[Exchange], Coroutine[Any, Any, None]]

LINGER_S = 2.0
SWEEP_S = 1.0
NEVER = float("inf")
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(slots=True)
class Wire:
    """What every connection shares. Sizes in bytes, times in seconds.

    Connections hold the moment they expire; one sweep closes them, so that a request sets no timers.
    """

    hot_routes: dict[bytes, Handler] = field(default_factory=dict)
    body_limit_bytes: int = 32 * 2**20
    header_limit_bytes: int = 64 * 2**10
    receive_timeout_s: float = 60.0
    _default_headers: tuple[object, bytes] = (None, b"")
    _is_sweeping: bool = False

    def watch(self, state: ServerState, loop: asyncio.AbstractEventLoop) -> None:
        if not self._is_sweeping:
            self._is_sweeping = True
            loop.call_later(SWEEP_S, self._sweep, state, loop)

    def _sweep(self, state: ServerState, loop: asyncio.AbstractEventLoop) -> None:
        now_s = loop.time()
        for connection in list(state.connections):
            if isinstance(connection, WireProtocol) and now_s >= connection.expires_s:
                connection.expire()
        self._is_sweeping = False
        if state.connections:
            self.watch(state, loop)

    def default_headers(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """uvicorn replaces its list (the date) once a second; joined once for each."""
        if self._default_headers[0] is not headers:
            self._default_headers = headers, b"".join([b"%b: %b\r\n" % header for header in headers])
        return self._default_headers[1]


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
        self.exchange: Exchange | None = None  # the one being received
        self.is_receiving = False  # head or body of a request is not complete
        self.is_in_head = False
        self.is_cold = False  # the request being received belongs to the framework
        self.is_lingering = False  # refused: what still comes is read and dropped, so the answer arrives
        self.head_bytes = 0
        self.body_bytes = 0
        self.expires_s = NEVER

    # ---- connection ----

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.expires_s = self.loop.time() + self.wire.receive_timeout_s
        self.wire.watch(self.server_state, self.loop)

    def connection_lost(self, exc: Exception | None) -> None:
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
        self.head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # an offer we need not take up: answered as the plain request it is
        except httptools.HttpParserError:
            self.refuse(InvalidRequest("The request is not valid HTTP/1.1.", code="invalid_http"))
        if self.is_in_head and self.head_bytes > self.wire.header_limit_bytes:
            self.refuse(HeadersTooLarge(self._header_limit()))

    def expire(self) -> None:
        """Nothing came for too long: on an idle connection that is its end, inside a request a 408."""
        self.expires_s = NEVER
        if self.is_receiving:
            limit_s = self.wire.receive_timeout_s
            self.refuse(RequestTimeout(f"The request was not complete after {limit_s:g} seconds."))
        else:
            self.transport.close()

    # ---- parser callbacks ----

    def on_message_begin(self) -> None:
        self.is_receiving = self.is_in_head = True
        self.is_cold = False
        self.exchange = None
        self.body_bytes = 0
        self.expires_s = self.loop.time() + self.wire.receive_timeout_s
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_headers_complete(self) -> None:
        self.is_in_head = False
        if self.is_lingering:
            return None
        if self.head_bytes > self.wire.header_limit_bytes and self._size_of_head() > self.wire.header_limit_bytes:
            return self.refuse(HeadersTooLarge(self._header_limit()))
        path = self.url if b"?" not in self.url else self.url.partition(b"?")[0]
        if path in self.wire.hot_routes and self.parser.get_method() == b"POST":
            return self._open_exchange(path)
        return self._open_cycle()

    def _open_cycle(self) -> None:
        """Hand the request to the framework: uvicorn makes its ASGI scope first, then takes the head."""
        self.is_cold = True
        url, headers, expects_100 = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects_100
        self.headers.extend(headers)
        super().on_headers_complete()

    def _size_of_head(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _open_exchange(self, path: bytes) -> None:
        is_http10 = self.parser.get_http_version() == "1.0"
        headers = dict(self.headers)
        exchange = Exchange(
            self, path, headers, keep_alive=not is_http10 and self.parser.should_keep_alive(), is_http10=is_http10
        )
        previous: Any = self.cycle
        self.cycle = exchange  # type: ignore[assignment]
        self.exchange = exchange
        if previous is None or previous.response_complete:
            exchange.is_turn = True
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((exchange, self.app))  # type: ignore[arg-type]
        if int(headers.get(b"content-length", 0)) > self.wire.body_limit_bytes:
            self.refuse(self._too_large())
        elif b"content-encoding" in headers and headers[b"content-encoding"].strip().lower() != b"identity":
            self.refuse(UnsupportedEncoding("Compressed request bodies are not accepted; send plain JSON."))
        elif self.expect_100_continue and exchange.is_turn:
            self.transport.write(CONTINUE)

    def on_body(self, body: bytes) -> None:
        self.body_bytes += len(body)
        if self.is_lingering:
            return
        if self.body_bytes > self.wire.body_limit_bytes:
            self.refuse(self._too_large())
        elif self.exchange is not None:
            self.exchange.add_body(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self.is_receiving = False
        self.head_bytes = 0
        self.expires_s = NEVER
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

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif not self.is_receiving:
            self.expires_s = self.loop.time() + self.timeout_keep_alive

    # ---- refusing ----

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
        headers = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINES[error.status] + self.default_headers() + headers + body)
        self._linger()

    def _may_answer(self) -> bool:
        cycle: Any = self.cycle
        if self.is_cold:
            return False
        if self.exchange is not None:
            return self.exchange.is_turn and not self.exchange.response_complete
        return cycle is None or bool(cycle.response_complete)

    def _linger(self) -> None:
        """Close without a reset: a reset would take the answer away from a client still sending."""
        self.is_lingering = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.abort)

    def default_headers(self) -> bytes:
        return self.wire.default_headers(self.server_state.default_headers)

    def _header_limit(self) -> str:
        return f"The request's headers are larger than {self.wire.header_limit_bytes} bytes."

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"The request body is larger than {self.wire.body_limit_bytes} bytes.")
