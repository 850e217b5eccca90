"""Our HTTP/1.1 client for engines: one asyncio.Protocol per connection, pooled, no task per request.

Why not a library: this is the hot half of the request path. A connection parses with one httptools
parser for its life, buffers what arrives (bounded: the socket is not read while the reader is behind)
and is used again only when a response ended cleanly. Nothing here knows about OpenAI.

Time limits cost nothing per request: each connection holds the moment its patience ends, and the
pool sweeps all busy connections a few times a second.
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import httptools

from gateway.core.errors import DeadlineExceeded, EngineUnreachable, UpstreamError, UpstreamTimeout

SWEEP_S = 0.1
HEADERS_LIMIT = 256
HEAD_LIMIT_BYTES = 256 * 2**10
FOREVER = float("inf")


class Connection(asyncio.Protocol):
    """One connection to a replica; one request at a time.

    Use: `send()`, `await head()`, then the body, then `release()`. The body comes by `await read_all()`, or
    to a callback the moment it arrives: `pipe_to()`, then `await progress()` until `is_complete`.
    `release()` before the end closes the connection: the engine sees it go and aborts its work.
    """

    __slots__ = (
        "_buffer",
        "_error",
        "_has_length",
        "_head_bytes",
        "_is_reading",
        "_keeps_alive",
        "_parser",
        "_pool",
        "_take",
        "_waiter",
        "deadline_s",
        "headers",
        "is_complete",
        "is_reused",
        "on_body",
        "patience_s",
        "status",
        "timeout_words",
        "transport",
    )

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._buffer: list[bytes] = []
        self.on_body = self._buffer.append  # the parser calls it for each piece: no Python function in between
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._is_reading = True
        self.transport: asyncio.Transport | None = None
        self.is_reused = False
        self._error: Exception | None = None
        self._has_length = False
        self._keeps_alive = False
        self.deadline_s = FOREVER  # the request's own end
        self.patience_s = FOREVER  # the replica must have said something by then
        self.timeout_words = ""
        self._start_over()

    def _start_over(self) -> None:
        """Forget the last response; a connection is only used again when nothing went wrong in it."""
        self._head_bytes = 0
        self._take: Callable[[bytes], None] | None = None
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.is_complete = False

    # ---- use ----

    def send(self, head: bytes, body: bytes, deadline_s: float) -> None:
        """Write a request: `head` ends in the blank line. `deadline_s` is monotonic."""
        assert self.transport is not None
        self._start_over()
        self.deadline_s = deadline_s
        if len(body) > 65536:
            self.transport.writelines([head, body])
        else:
            self.transport.write(head + body)

    def expect_within(self, timeout_s: float, words: str) -> None:
        """From now on the replica may be silent for `timeout_s`; `words` name the limit in the error."""
        self.patience_s = time.monotonic() + timeout_s
        self.timeout_words = words

    async def head(self) -> int:
        """The status; headers are in `headers`, names lower-case. Raises UpstreamError, DeadlineExceeded."""
        while not self.status:
            await self._wait()
        return self.status

    async def read_all(self, limit_bytes: int) -> bytes:
        """The whole body. Raises UpstreamError when it is larger than `limit_bytes`."""
        counted = size_bytes = 0
        while not self.is_complete:
            size_bytes += sum(map(len, self._buffer[counted:]))
            counted = len(self._buffer)
            if size_bytes > limit_bytes:
                raise UpstreamError(f"The engine's answer is larger than {limit_bytes} bytes.")
            await self._wait()
        if self._error is not None:
            raise self._error
        return self._take_buffer()

    def _take_buffer(self) -> bytes:
        buffer = self._buffer
        if len(buffer) == 1:
            return buffer.pop()
        data = b"".join(buffer)
        buffer.clear()
        return data

    def pipe_to(self, take: Callable[[bytes], None]) -> None:
        """From now on `take` gets the body as it arrives, inside the read callback: it must not block.

        What it raises ends the response and is raised by `progress()`.
        """
        self._take = take
        if self._buffer:
            try:
                take(self._take_buffer())
            except Exception as error:  # noqa: BLE001 (the same as for what arrives later)
                self._break_off(error)

    async def progress(self) -> None:
        """Wait for `nudge()`, the end of the response, or its failure."""
        if self._error is not None:
            raise self._error
        if not self.is_complete:
            await self._wait()

    def nudge(self) -> None:
        """Wake who waits in `progress()`."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def pause(self) -> None:
        if self._is_reading and self.transport is not None:
            self._is_reading = False
            self.transport.pause_reading()

    def resume(self) -> None:
        if not self._is_reading and self.transport is not None:
            self._is_reading = True
            self.transport.resume_reading()

    def _break_off(self, error: Exception) -> None:
        self.fail(error)
        if self.transport is not None:
            self.transport.abort()

    def release(self) -> None:
        """Give the connection back; it is closed instead when its response did not end cleanly."""
        self._pool.give_back(self)

    def close(self) -> None:
        self._pool.forget(self)
        if self.transport is not None:
            self.transport.abort()

    @property
    def may_be_reused(self) -> bool:
        return (
            self.is_complete
            and self._error is None
            and self._has_length
            and not self._buffer
            and self._is_reading
            and self.transport is not None
            and not self.transport.is_closing()
            and self._keeps_alive
        )

    @property
    def nothing_received(self) -> bool:
        return not self.status and not self.headers

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = self._pool.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def fail(self, error: Exception) -> None:
        """The response will not come: whoever waits gets `error`."""
        if self._error is None:
            self._error = error
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(self._error)

    def check_time(self, now_s: float) -> None:
        """Called by the sweep. Only a waiting reader is hurt by silence, not one held up by its client."""
        if self._waiter is None:
            return
        if now_s >= self.deadline_s:
            self.fail(DeadlineExceeded("The request's deadline is over."))
        elif now_s >= self.patience_s:
            self.fail(UpstreamTimeout(f"The engine was silent for too long ({self.timeout_words})."))

    # ---- asyncio.Protocol ----

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.forget(self)
        if self.status and not self._has_length and not self.is_complete and exc is None:
            self.is_complete = True  # a response without a length ends with the connection
            self.nudge()
        elif not self.is_complete:
            self.fail(UpstreamError("The engine closed the connection before its answer was complete."))

    def data_received(self, data: bytes) -> None:
        if self.is_complete:
            self.close()  # bytes nobody asked for: never let them start the next answer
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.fail(UpstreamError(f"The engine answered with invalid HTTP: {error}."))
            self.close()
            return
        take = self._take
        if take is None:
            if not self.status:
                self._check_head(len(data))
            self.nudge()
        elif self._buffer and self._error is None:
            try:
                take(self._buffer.pop() if len(self._buffer) == 1 else self._take_buffer())
            except Exception as error:  # noqa: BLE001 (it is raised again where the response is awaited)
                self._break_off(error)

    def _check_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > HEAD_LIMIT_BYTES:
            self.fail(UpstreamError(f"The head of the engine's answer is larger than {HEAD_LIMIT_BYTES} bytes."))
            self.close()

    # ---- httptools ----

    def on_message_begin(self) -> None:
        if self.is_complete:  # a second answer to one request: keep it from ever reaching a client
            self.fail(UpstreamError("The engine sent more than one answer."))

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) >= HEADERS_LIMIT:
            raise ValueError("too many headers")
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200 and not self.is_complete:
            self.status = status
            self._has_length = b"content-length" in self.headers or b"transfer-encoding" in self.headers
            self._keeps_alive = self._parser.should_keep_alive()  # later the parser has forgotten

    def on_message_complete(self) -> None:
        if self.status:
            self.is_complete = True
            self.nudge()
        else:
            self.headers = {}  # an informational response (100 Continue)


class Pool:
    """Connections to one replica: last in, first out; idle ones are closed when the engine closes them."""

    def __init__(self, url: str, *, connect_timeout_s: float) -> None:
        parts = urlsplit(url)
        self.host = parts.hostname or ""
        self.is_tls = parts.scheme == "https"
        self.port = parts.port or (443 if self.is_tls else 80)
        self.host_header = parts.netloc.rpartition("@")[2]
        self.prefix = parts.path.rstrip("/")
        self.heads: dict[str, str] = {}  # the constant start of request heads, kept here by who writes them
        self.connect_timeout_s = connect_timeout_s
        self.loop = asyncio.get_running_loop()
        self._ssl = ssl.create_default_context() if self.is_tls else None
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._sweep_handle: asyncio.TimerHandle | None = None

    def take_idle(self) -> Connection | None:
        """A connection that has served before, or None."""
        if not self._idle:
            return None
        connection = self._idle.pop()
        connection.is_reused = True
        self._use(connection)
        return connection

    async def take_fresh(self) -> Connection:
        """A new connection. Raises EngineUnreachable."""
        connection = await self._connect()
        self._use(connection)
        return connection

    def _use(self, connection: Connection) -> None:
        self._busy.add(connection)
        if self._sweep_handle is None:
            self._sweep_handle = self.loop.call_later(SWEEP_S, self._sweep)

    async def _connect(self) -> Connection:
        try:
            async with asyncio.timeout(self.connect_timeout_s):
                _, connection = await self.loop.create_connection(
                    lambda: Connection(self), self.host, self.port, ssl=self._ssl
                )
        except TimeoutError:
            raise EngineUnreachable(
                f"The engine did not accept a connection in {self.connect_timeout_s:g} s."
            ) from None
        except OSError as error:
            raise EngineUnreachable(f"The engine cannot be reached: {error.strerror or error}.") from None
        return connection

    def give_back(self, connection: Connection) -> None:
        if connection.may_be_reused:
            self._busy.discard(connection)
            self._idle.append(connection)
        else:
            connection.close()

    def forget(self, connection: Connection) -> None:
        self._busy.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self) -> None:
        for connection in [*self._idle, *self._busy]:
            connection.close()
        if self._sweep_handle is not None:
            self._sweep_handle.cancel()

    def _sweep(self) -> None:
        now_s = time.monotonic()
        for connection in self._busy:
            connection.check_time(now_s)
        self._sweep_handle = self.loop.call_later(SWEEP_S, self._sweep) if self._busy else None
