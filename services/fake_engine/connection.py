"""One client connection: HTTP/1.1 in (httptools), bytes out, back-pressure both ways, slow reading.

Reading goes on while an answer is under way, so that a client that leaves is noticed at once, also when the
engine is scripted to hang. Pipelined requests wait their turn.
"""

import asyncio
import os
import socket
import struct
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, cast

import httptools

from fake_engine.exchange import Exchange
from fake_engine.request import Request
from fake_engine.wire import CONTINUE

if TYPE_CHECKING:
    from fake_engine.engine import Engine

QUEUED_REQUESTS = 64
LINGER_S = 2.0


class Connection(asyncio.Protocol):
    """The engine answers through `write`, `answered`, `close` and `reset`."""

    def __init__(self, engine: "Engine") -> None:
        self.engine = engine
        self.is_paused = False
        self.exchange: Exchange | None = None
        self._transport: asyncio.Transport
        self._parser = httptools.HttpRequestParser(self)
        self._request = Request()
        self._queue: deque[Request] = deque()
        self._is_busy = self._is_control = self._is_closed = self._is_lingering = False
        self._body_since_s = 0.0
        self._read_bytes_per_s: float | None = None
        self._idle: asyncio.TimerHandle | None = None

    # ---- from the transport ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        if sock := transport.get_extra_info("socket"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.engine.connections.add(self)
        self.engine.stats.connections_open += 1
        self.engine.stats.connections_total += 1

    def connection_lost(self, _: Exception | None) -> None:
        self._is_closed = True
        self.engine.connections.discard(self)
        if not self._is_control:
            self.engine.stats.connections_open -= 1
        if self.exchange is not None:
            self.exchange.lost()

    def data_received(self, data: bytes) -> None:
        if self._is_lingering:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.engine.refuse(self, "this engine does not upgrade connections")
        except httptools.HttpParserError as error:
            self.engine.refuse(self, f"not HTTP/1.1: {error}")
        if not self._is_control:
            self.engine.stats.bytes_received += len(data)
        if self._read_bytes_per_s is not None:
            self._rest(len(data))

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False
        if self.exchange is not None:
            self.exchange.resume()

    # ---- from the parser ----

    def on_message_begin(self) -> None:
        self._request = Request()
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def on_url(self, url: bytes) -> None:
        self._request.target += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._request.headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        request = self._request
        request.method = self._parser.get_method().decode("latin-1")
        request.is_http_1_0 = self._parser.get_http_version() == "1.0"
        script = self.engine.arriving(self, request)
        if script is not None:
            self._read_bytes_per_s = script.read_bytes_per_s
            self._body_since_s = monotonic()
        if (request.header("expect") or "").lower() == "100-continue" and not self._is_busy:
            self.write(CONTINUE)

    def on_body(self, body: bytes) -> None:
        self._request.body += body

    def on_message_complete(self) -> None:
        self._request.keeps_alive = self._parser.should_keep_alive()
        rate, self._read_bytes_per_s = self._read_bytes_per_s, None
        if rate is None:
            self._queued(self._request)
        elif rate == 0:
            self._transport.pause_reading()
        else:
            owed_s = len(self._request.body) / rate - (monotonic() - self._body_since_s)
            asyncio.get_running_loop().call_later(max(0.0, owed_s), self._queued, self._request)

    # ---- for the engine ----

    def write(self, data: bytes | memoryview) -> None:
        if data and not self._transport.is_closing():
            self._transport.write(data)
            if not self._is_control:
                self.engine.stats.bytes_sent += len(data)

    def answered(self, closes: bool) -> None:
        """The current request has its whole answer."""
        self.exchange = None
        self._is_busy = False
        loop = asyncio.get_running_loop()
        if closes:
            self.close()
        elif self._queue:
            loop.call_soon(self._next)
        elif timeout_s := self.engine.settings.idle_timeout_s:
            self._idle = loop.call_later(timeout_s, self.close)

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def linger(self) -> None:
        """The answer came before the body: end our side, and take the rest unread, so that no RST eats the answer."""
        self._is_lingering = True
        self._transport.write_eof()
        asyncio.get_running_loop().call_later(LINGER_S, self.close)

    def reset(self) -> None:
        """Close with RST instead of FIN. Through a duplicate of the socket, since uvloop's own has no setsockopt."""
        with socket.socket(fileno=os.dup(self._transport.get_extra_info("socket").fileno())) as twin:
            twin.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def becomes_control(self) -> None:
        """A /_fake/ request came: this is the test's own connection, not one to count."""
        if not self._is_control:
            self._is_control = True
            self.engine.stats.connections_open -= 1
            self.engine.stats.connections_total -= 1

    def _queued(self, request: Request) -> None:
        if self._is_lingering or self._is_closed:
            return
        self._queue.append(request)
        self._next()
        if len(self._queue) > QUEUED_REQUESTS:
            self._transport.pause_reading()

    def _next(self) -> None:
        if self._queue and not self._is_busy and not self._transport.is_closing():
            self._is_busy = True
            self._transport.resume_reading()
            self.engine.handle(self, self._queue.popleft())

    def _rest(self, size: int) -> None:
        """Read on when `size` bytes have taken their time; at 0 bytes a second never."""
        self._transport.pause_reading()
        if self._read_bytes_per_s:
            asyncio.get_running_loop().call_later(size / self._read_bytes_per_s, self._read_on)

    def _read_on(self) -> None:
        if not self._is_closed:
            self._transport.resume_reading()
