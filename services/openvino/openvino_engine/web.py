"""Plain ASGI: read a body with a limit, answer JSON, stream server-sent events.

No web framework: the surface is ten routes, every error must have OpenAI's shape (a framework's own 404, 405 and 422
have not), and a streamed token should cost one encode and one send.
"""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from openvino_engine.errors import ApiError, invalid

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_encode = msgspec.json.Encoder().encode


class ClientLeft(Exception):
    """The connection closed before the request was read."""


class Exchange:
    """One HTTP request and its answer."""

    def __init__(self, scope: Message, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        given = self.headers.get("x-request-id", "")
        self.request_id = (
            given if given.isascii() and given.isprintable() and 0 < len(given) <= 128 else uuid.uuid4().hex
        )
        self._receive = receive
        self._send = send
        self.started = False

    async def read_json(self, limit_bytes: int) -> object:
        """The decoded body. Raises ApiError 400, 413 or 415."""
        if self.headers.get("content-encoding", "identity") != "identity":
            raise ApiError(415, "compressed request bodies are not read", code="unsupported_content_encoding")
        body = await self._read(limit_bytes)
        try:
            return msgspec.json.decode(body)
        except RecursionError as error:
            raise invalid(None, "the request body is nested too deeply", code="invalid_json") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise invalid(None, f"the request body is not valid JSON: {error}", code="invalid_json") from error

    async def _read(self, limit_bytes: int) -> bytes:
        declared = self.headers.get("content-length", "0")
        too_large = ApiError(413, f"the request body is larger than {limit_bytes} bytes", code="request_too_large")
        if declared.isdecimal() and int(declared) > limit_bytes:
            raise too_large
        parts: list[bytes] = []
        size_bytes, more = 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            parts.append(message.get("body", b""))
            size_bytes += len(parts[-1])
            if size_bytes > limit_bytes:
                raise too_large
            more = message.get("more_body", False)
        return b"".join(parts)

    async def json(self, value: object, status: int = 200, extra: tuple[tuple[str, str], ...] = ()) -> None:
        """Answer with a JSON body."""
        await self.whole(_encode(value), "application/json", status, extra)

    async def error(self, error: ApiError) -> None:
        """Answer with an error, or end a stream with one error event."""
        if self.started:
            await self._body(event(error.body()) + DONE, more=False)
            return
        extra = () if error.retry_after_s is None else (("retry-after", str(error.retry_after_s)),)
        await self.json(error.body(), error.status, extra)

    async def whole(
        self, body: bytes, content_type: str, status: int = 200, extra: tuple[tuple[str, str], ...] = ()
    ) -> None:
        """Answer with a whole body."""
        await self._start(status, content_type, (("content-length", str(len(body))), *extra))
        await self._body(b"" if self.method == "HEAD" else body, more=False)

    async def events(self, chunks: AsyncIterator[bytes]) -> None:
        """Stream server-sent events. The status line waits for the first chunk, so early errors keep their status."""
        async for chunk in chunks:
            if not self.started:
                await self._start(200, "text/event-stream; charset=utf-8", (("cache-control", "no-cache"),))
            await self._body(chunk, more=True)
        await self._body(DONE, more=False)

    @contextlib.asynccontextmanager
    async def cancelled_when_client_leaves(self) -> AsyncIterator[None]:
        """Cancel the body of the `async with` when the connection closes; it ends silently then."""
        task = asyncio.current_task()
        assert task is not None
        gone = False

        async def watch() -> None:
            nonlocal gone
            while (await self._receive())["type"] != "http.disconnect":
                pass
            gone = True
            task.cancel()

        watcher = asyncio.create_task(watch())
        try:
            yield
        except asyncio.CancelledError:
            if not gone or task.uncancel():
                raise
        finally:
            watcher.cancel()

    async def _start(self, status: int, content_type: str, extra: tuple[tuple[str, str], ...]) -> None:
        self.started = True
        pairs = (("content-type", content_type), ("x-request-id", self.request_id), *extra)
        headers = [(name.encode(), value.encode()) for name, value in pairs]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _body(self, body: bytes, *, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


DONE = b"data: [DONE]\n\n"


def event(value: object) -> bytes:
    """One server-sent event."""
    return b"data: " + _encode(value) + b"\n\n"
