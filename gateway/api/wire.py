"""The HTTP/1.1 wire: uvicorn's protocol with limits, and a straight way in for the hot routes.

A request on a hot route (the inference endpoints) becomes an `Exchange`; every other path runs as
ordinary ASGI (FastAPI). Limits, timeouts and parse errors are answered here, because at this level there is no
framework to do it. docs/decisions/0002 has the reasons and figures.

Built on the inside of uvicorn 0.54 (httptools protocol); pyproject.toml pins that minor version.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_to_bytes

import httptools
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from gateway.api.exchange import STATUS_LINES, Exchange
from gateway.api.request_id import accept_request_id
from gateway.core.errors import (
    BodyTooLarge,
    HeadersTooLarge,
    InvalidRequest,
    MethodNotAllowed,
    PenstockError,
    RequestTimeout,
    UnsupportedEncoding,
)

Handler = Callable[[Any], Coroutine[Any, Any, None]]
"""Gets the Exchange, of the type `Wire.exchange_type`."""

LINGER_S = 10.0
SWEEP_S = 1.0
NEVER = float("inf")
FRAMING_RATIO = 16
"""Bytes of chunk headers that a byte of body may cost; a client that sends it byte by byte needs 5."""
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(slots=True)
class Wire:
    """What every connection shares. Sizes in bytes, times in seconds.

    Connections hold the moment they expire; one sweep closes them, so that a request sets no timers.
    """

    hot_routes: dict[bytes, Handler]
    exchange_type: type[Exchange]
    on_refusal: Callable[[str], None]  # told the error's code
    error_at: Callable[[str, PenstockError, str], bytes]  # an error's body, by path and request id
    body_limit_bytes: int = 32 * 2**20
    header_limit_bytes: int = 64 * 2**10
    receive_timeout_s: float = 60.0
    send_timeout_s: float = 60.0
    prefix_routes: dict[bytes, Handler] = field(default_factory=dict)
    """For paths that begin so and are no hot route themselves."""
    _default_headers: tuple[object, bytes] = (None, b"")
    _is_sweeping: bool = False

    def by_prefix(self, path: bytes) -> Handler | None:
        return next((handler for prefix, handler in self.prefix_routes.items() if path.startswith(prefix)), None)

    def watch(self, state: ServerState, loop: asyncio.AbstractEventLoop) -> None:
        if not self._is_sweeping:
            self._is_sweeping = True
            loop.call_later(SWEEP_S, self._sweep, state, loop)

    def _sweep(self, state: ServerState, loop: asyncio.AbstractEventLoop) -> None:
        now_s = loop.time()
        for connection in list(state.connections):
            if isinstance(connection, WireProtocol):
                connection.check_time(now_s)
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
        self.url = b""  # of the request being received
        self.exchange: Exchange | None = None  # the one being received
        self.running: Exchange | None = None  # the one being answered
        self.is_receiving = False  # head or body of a request is not complete
        self.is_cold = False  # the request being received belongs to the framework
        self.is_refused = False  # what still comes is read and dropped
        self.refusal: PenstockError | None = None  # to be said after the answers to earlier requests
        self.is_held = False  # the client leaves its answers unread: no next request until it reads
        self.received_bytes = 0  # of the request being received, framing included
        self.body_bytes = 0
        self.expires_s = NEVER
        self.unsent_bytes = 0
        self.unsent_since_s = 0.0

    # ---- connection ----

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.expires_s = self.loop.time() + self.wire.receive_timeout_s
        self.wire.watch(self.server_state, self.loop)

    def connection_lost(self, exc: Exception | None) -> None:
        running = self.running
        if running is not None and not running.response_complete:
            running.disconnected = True
            if running.task is not None:
                running.task.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.is_refused:
            return
        self.received_bytes += len(data)
        self._feed(data)
        if self.is_receiving and self.received_bytes - FRAMING_RATIO * self.body_bytes > self.wire.header_limit_bytes:
            self.refuse(HeadersTooLarge(self._header_limit()))  # an endless head, trailer or chunk header

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._decline_upgrade(data[offer.args[0] :])
        except httptools.HttpParserError:
            self.refuse(InvalidRequest("The request is not valid HTTP/1.1.", code="invalid_http"))

    def _decline_upgrade(self, rest: bytes) -> None:
        """The parser stops after the head, where another protocol could begin. We take up no offer (Java's
        client makes one with every first request): the request is read again without it."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            self.refuse(MethodNotAllowed("This is not a proxy: CONNECT is not taken."))
            return
        head = [b"%b %b HTTP/%b\r\n" % (method, self.url, self.parser.get_http_version().encode())]
        head += [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        self._feed(b"".join([*head, b"\r\n", rest]))

    def check_time(self, now_s: float) -> None:
        """Called by the sweep."""
        if now_s >= self.expires_s:
            self._expire(now_s)
        if self.flow.write_paused or self.transport.is_closing():
            self._check_unsent(now_s)

    def _expire(self, now_s: float) -> None:
        """Nothing came for too long: on an idle connection that is its end, inside a request a 408."""
        limit_s = self.wire.receive_timeout_s
        if self.is_refused:
            self.transport.abort()
        elif not self.is_receiving:
            self.expires_s = NEVER
            self.transport.close()
        elif self._is_behind_others():
            self.expires_s = now_s + limit_s  # it may be us who do not read on
        else:
            self.refuse(RequestTimeout(f"The request was not complete after {limit_s:g} seconds."))

    def _check_unsent(self, now_s: float) -> None:
        unsent_bytes = self.transport.get_write_buffer_size()
        if unsent_bytes != self.unsent_bytes:
            self.unsent_bytes, self.unsent_since_s = unsent_bytes, now_s
        elif unsent_bytes and now_s - self.unsent_since_s >= self.wire.send_timeout_s:
            self.transport.abort()

    # ---- parser callbacks ----

    def on_message_begin(self) -> None:
        if self.is_refused:
            return
        self.is_receiving = True
        self.is_cold = False
        self.exchange = None
        self.body_bytes = 0
        self.expires_s = self.loop.time() + self.wire.receive_timeout_s
        self.url = b""
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self.is_refused or self.parser.should_upgrade():
            return None
        limit_bytes = self.wire.header_limit_bytes  # 0 received: it came together with the end of the one before it
        if not 0 < self.received_bytes <= limit_bytes and self._size_of_head() > limit_bytes:
            return self.refuse(HeadersTooLarge(self._header_limit()))
        path = self.url
        if path not in self.wire.hot_routes:
            self.url = _origin_form(path)
            path = unquote_to_bytes(self.url.partition(b"?")[0])
        if (path in self.wire.hot_routes or self.wire.by_prefix(path)) and self.parser.get_method() == b"POST":
            return self._open_exchange(path)
        return self._open_cycle()

    def _open_cycle(self) -> None:
        """Hand the request to the framework: uvicorn makes its ASGI scope first, then takes the head."""
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        for name, value in headers:
            super().on_header(name, value)
        super().on_headers_complete()
        self.is_cold = True

    def _size_of_head(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _open_exchange(self, path: bytes) -> None:
        is_http10 = self.parser.get_http_version() == "1.0"
        headers = dict(self.headers)
        exchange = self.wire.exchange_type(
            self, path, headers, not is_http10 and self.parser.should_keep_alive(), is_http10
        )
        previous: Any = self.cycle
        self.cycle = self.exchange = exchange  # type: ignore[assignment]
        if previous is None or previous.response_complete:
            exchange.is_turn = True
        else:
            if self.pipeline:  # not at the first: while we do not read, we do not see the client leave
                self.flow.pause_reading()
            self.pipeline.appendleft((exchange, self.app))  # type: ignore[arg-type]
        if int(headers.get(b"content-length", 0)) > self.wire.body_limit_bytes:
            self.refuse(self._too_large())
        elif b"content-encoding" in headers and headers[b"content-encoding"].strip().lower() != b"identity":
            self.refuse(UnsupportedEncoding("Compressed request bodies are not accepted; send plain JSON."))
        elif b"expect" in headers and exchange.is_turn:
            self._invite(exchange)

    def _invite(self, exchange: Exchange) -> None:
        """A client that asks first whether it may send its body."""
        if exchange.headers.get(b"expect", b"").lower() == b"100-continue" and not exchange.is_http10:
            self.transport.write(CONTINUE)

    def on_body(self, body: bytes) -> None:
        self.body_bytes += len(body)
        if self.is_refused:
            return
        if self.body_bytes > self.wire.body_limit_bytes:
            self.refuse(self._too_large())
        elif self.exchange is not None:
            self.exchange.add_body(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self.is_refused:
            return
        self.is_receiving = False
        self.received_bytes = 0
        self.expires_s = NEVER
        exchange = self.exchange
        if self.is_cold:
            super().on_message_complete()
            if self.cycle.response_complete:  # answered before its body was here
                self.expires_s = self.loop.time() + self.timeout_keep_alive
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
        else:
            self._invite(cycle)

    def _run(self, exchange: Exchange) -> None:
        handler = self.wire.hot_routes.get(exchange.path) or self.wire.by_prefix(exchange.path)
        assert handler is not None
        task = self.loop.create_task(handler(exchange))
        exchange.task = task
        exchange.paused = self.flow.write_paused
        self.running = exchange
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        self.running = None
        if self.transport.is_closing():
            return
        if self.flow.write_paused:
            self.is_held = True
            self.flow.pause_reading()
        else:
            self._go_on()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.running is not None:
            self.running.paused = True

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.running is not None:
            self.running.paused = False
        if self.is_held:
            self.is_held = False
            self._go_on()

    def _go_on(self) -> None:
        if len(self.pipeline) <= 2:
            self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self.refusal is not None:
            self._answer_refusal(self.refusal)
        elif not self.is_receiving:
            self.expires_s = self.loop.time() + self.timeout_keep_alive

    # ---- refusing ----

    def refuse(self, error: PenstockError) -> None:
        """Answer a request that is not worth reading further, after those that came before it, and close."""
        if self.is_refused or self.transport.is_closing():
            return
        self.is_refused = True
        self.expires_s = NEVER
        cycle: Any = self.cycle
        if self.is_cold:  # the framework answers without having read the body
            cycle.keep_alive = False
            if cycle.response_complete:
                self._linger()
        elif self._is_behind_others():
            self.refusal = error
            if self.exchange is not None:
                self.pipeline.popleft()
        else:
            self._answer_refusal(error)

    def _is_behind_others(self) -> bool:
        """The answer to an earlier request is under way while this one is received."""
        if self.exchange is not None:
            return not self.exchange.is_turn
        cycle: Any = self.cycle
        return not self.is_cold and cycle is not None and not cycle.response_complete

    def _answer_refusal(self, error: PenstockError) -> None:
        if self.exchange is not None:
            self.exchange.response_complete = True
        self.wire.on_refusal(error.code or "")
        request_id = accept_request_id(dict(self.headers or ()).get(b"x-request-id"))
        path = self.url.decode("latin-1") if self.exchange is None else self.exchange.path.decode("utf-8", "replace")
        body = self.wire.error_at(path, error, request_id.decode())
        head = (
            b"x-request-id: %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        ) % (request_id, len(body))
        self.transport.write(STATUS_LINES[error.status] + self.default_headers() + head + body)
        self._linger()

    def _linger(self) -> None:
        """Close without a reset: a reset would take the answer away from a client still sending."""
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.expires_s = self.loop.time() + LINGER_S

    def default_headers(self) -> bytes:
        return self.wire.default_headers(self.server_state.default_headers)

    def _header_limit(self) -> str:
        return f"The request's headers are larger than {self.wire.header_limit_bytes} bytes."

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"The request body is larger than {self.wire.body_limit_bytes} bytes.")


def _origin_form(target: bytes) -> bytes:
    """A request target without scheme and host (RFC 9112 section 3.2.2). Raises HttpParserError."""
    if target.startswith(b"/"):
        return target
    url = httptools.parse_url(target)
    return (url.path or b"/") + (b"?" + url.query if url.query else b"")
