"""One request on a hot route and the answer to it, straight onto the transport.

Stands where uvicorn has its request-response cycle: no ASGI messages, no queue, no task per chunk.
"""

import asyncio
import http
from typing import Protocol

from uvicorn.protocols.http.flow_control import FlowControl

STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in http.HTTPStatus}


class _NoEvent:
    """Stands where uvicorn's cycle has an asyncio.Event: an Exchange never waits for messages."""

    __slots__ = ()

    def set(self) -> None:
        pass


_NO_EVENT = _NoEvent()


class Connection(Protocol):
    """What an exchange needs of the connection it came on."""

    transport: asyncio.Transport
    flow: FlowControl

    def default_headers(self) -> bytes: ...

    def on_response_complete(self) -> None: ...


class Exchange:
    """`headers` by lower-case name. The handler runs once the body is complete, and is cancelled when
    the client leaves. Header arguments are lines, each ending in CRLF."""

    __slots__ = (
        "_connection",
        "_is_chunked",
        "body",
        "disconnected",
        "headers",
        "is_http10",
        "is_turn",
        "keep_alive",
        "message_event",
        "more_body",
        "path",
        "paused",
        "response_complete",
        "started",
        "task",
    )

    def __init__(
        self, connection: Connection, path: bytes, headers: dict[bytes, bytes], keep_alive: bool, is_http10: bool
    ) -> None:
        self._connection = connection
        self._is_chunked = not is_http10
        self.path = path
        self.headers = headers
        self.keep_alive = keep_alive
        self.is_http10 = is_http10
        self.body: bytes | bytearray = b""
        self.more_body = True
        self.is_turn = False  # the answers to earlier requests on this connection are out
        self.paused = False  # set by the connection: the client reads slower than we write: `drain()` first
        self.disconnected = False
        self.started = False
        self.response_complete = False
        self.message_event = _NO_EVENT
        self.task: asyncio.Task[None] | None = None

    def add_body(self, data: bytes) -> None:
        if not self.body:
            self.body = data
        elif isinstance(self.body, bytearray):
            self.body += data
        else:
            self.body = bytearray(self.body)
            self.body += data

    async def drain(self) -> None:
        await self._connection.flow.drain()

    def respond(self, status: int, headers: bytes, body: bytes) -> None:
        """A whole answer."""
        if self.disconnected:
            return
        self.started = True
        head = self._head(status, headers)
        self._connection.transport.write(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body))
        self._finish()

    def start(self, status: int, headers: bytes, first: bytes) -> None:
        """The head of a streamed answer, in one write with its first bytes."""
        if self.disconnected:
            return
        self.started = True
        if self._is_chunked:
            head = b"%btransfer-encoding: chunked\r\n\r\n" % self._head(status, headers)
            self._connection.transport.write(b"%b%x\r\n%b\r\n" % (head, len(first), first))
        else:
            self.keep_alive = False  # HTTP/1.0: the end of the connection is the end of the answer
            self._connection.transport.write(b"%b\r\n%b" % (self._head(status, headers), first))

    def write(self, data: bytes) -> None:
        if not self.disconnected:
            self._connection.transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data)

    def end(self, last: bytes = b"") -> None:
        """The end of a streamed answer, in one write with its last bytes."""
        if self.disconnected:
            return
        if self._is_chunked:
            data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last) if last else b"0\r\n\r\n"
            self._connection.transport.write(data)
        elif last:
            self._connection.transport.write(last)
        self._finish()

    def abort(self) -> None:
        """Break the connection: the client must not take what it has for a complete answer."""
        self.response_complete = True
        self._connection.transport.abort()

    def _head(self, status: int, headers: bytes) -> bytes:
        connection = b"" if self.keep_alive else b"connection: close\r\n"
        return b"%b%b%b%b" % (STATUS_LINES[status], self._connection.default_headers(), headers, connection)

    def _finish(self) -> None:
        self.response_complete = True
        if not self.keep_alive:
            self._connection.transport.close()
        self._connection.on_response_complete()
