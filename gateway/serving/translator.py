"""Clients that stand before a client that takes bytes: `Translator` says answers in another protocol's words, `Relayed`
only errors.

Apart from events.py, which takes answers apart and writes nothing.
"""

from typing import Protocol

from gateway.core.call import Client, Reply
from gateway.core.errors import PenstockError
from gateway.serving.events import Listener


class Transport(Client, Protocol):
    """A client that also takes errors in another protocol's words."""

    def refuse(self, error: PenstockError, body: bytes) -> None:
        """An error answer with this `body`; nothing has been said yet."""

    def break_off(self, last: bytes) -> None:
        """The last words of an open stream that failed, then its end."""


class Translator(Listener):
    """A Listener that answers in bytes: hooks put events into `out`, `whole()` makes the body of a whole answer.

    What arrived together leaves together, in one write, and back-pressure is that of the client it wraps.
    """

    def __init__(self, client: Transport) -> None:
        self._client = client
        self.out: list[bytes] = []
        self.is_stream = False
        self._is_over = False

    def whole(self) -> bytes:
        """The body of a whole answer, once the hooks have heard it."""
        raise NotImplementedError

    def error_body(self, error: PenstockError) -> bytes:
        """An error before anything was said, in the door's shape."""
        raise NotImplementedError

    def on_failure(self, error: PenstockError) -> None:
        """An error in the middle of a stream: put the events that end it into `out`."""
        raise NotImplementedError

    # ---- Client ----

    @property
    def started(self) -> bool:
        return self._client.started

    @property
    def paused(self) -> bool:
        return self._client.paused

    async def drained(self) -> None:
        await self._client.drained()

    def reply(self, reply: Reply) -> None:
        self.hear(reply.body)
        self.on_end()
        self._client.reply(Reply(self.whole(), reply.usage, reply.finish_reasons))

    def open_stream(self, first: bytes) -> None:
        self.is_stream = True
        super().open_stream(first)

    def send(self, data: bytes) -> None:
        super().send(data)
        if data.startswith(b":") and not self._client.paused:
            self._client.send(b": keep-alive\n\n")  # the engine's, kept from the hooks: it is there for proxies' sake

    def flush(self, *, is_first: bool, is_last: bool) -> None:
        data = b"".join(self.out)
        self.out.clear()
        if is_first:
            self._client.open_stream(data)
        elif is_last:
            self._is_over = True
            self._client.close_stream(data)
        elif data:
            self._client.send(data)

    def fail(self, error: PenstockError) -> None:
        if self._is_over:
            return
        self._is_over = True
        if self._client.started:
            self.on_failure(error)
            self._client.break_off(b"".join(self.out))
        else:
            self._client.refuse(error, self.error_body(error))


class Relayed:
    """A client that gets the engine's own bytes as they are; what derives from it has its own words for failures."""

    def __init__(self, client: Transport) -> None:
        self._client = client

    @property
    def started(self) -> bool:
        return self._client.started

    @property
    def paused(self) -> bool:
        return self._client.paused

    async def drained(self) -> None:
        await self._client.drained()

    def reply(self, reply: Reply) -> None:
        self._client.reply(reply)

    def open_stream(self, first: bytes) -> None:
        self._client.open_stream(first)

    def send(self, data: bytes) -> None:
        self._client.send(data)

    def close_stream(self, last: bytes = b"") -> None:
        self._client.close_stream(last)

    def fail(self, error: PenstockError) -> None:
        raise NotImplementedError
