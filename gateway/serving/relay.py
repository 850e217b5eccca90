"""The relay step of a stream: what the engine says goes to the client the moment it arrives.

`push` runs inside the engine connection's read callback: no task wakes up for an event. That is what makes
a relayed event cost about what nginx pays for one (docs/decisions/0003, docs/performance.md).
"""

import asyncio
import time

from gateway.core.call import Call, Chunk, Client
from gateway.core.errors import ClientTooSlow, DeadlineExceeded
from gateway.telemetry.record import Record


class Relay:
    """The `Sink` of one attempt. `send_timeout_s`: how long the client may read nothing."""

    __slots__ = ("_call", "_client", "_itl", "_record", "_send_timeout_s")

    def __init__(self, call: Call, client: Client, record: Record, send_timeout_s: float) -> None:
        self._call = call
        self._client = client
        self._record = record
        self._itl = record.series.itl
        self._send_timeout_s = send_timeout_s

    def push_content(self, data: bytes, at_s: float) -> bool:
        record, client = self._record, self._client
        self._itl.observe(at_s - record.last_s)
        record.last_s = at_s
        record.contents += 1
        client.send(data)
        return client.paused

    def push(self, chunk: Chunk) -> bool:
        """Raises the error the engine reported inside its stream; before the first event nothing is lost by it."""
        client = self._client
        self._record.saw_chunk(chunk)
        if chunk.error is not None and not (client.started or chunk.contents):
            raise chunk.error
        if not client.started:
            if chunk.data:  # not when all that came is kept from the client
                client.open_stream(chunk.data)
            if chunk.is_last:
                client.close_stream()
        elif chunk.is_last:
            client.close_stream(chunk.data)
        elif chunk.data:
            client.send(chunk.data)
        if chunk.error is not None:
            raise chunk.error
        return client.paused

    @property
    def paused(self) -> bool:
        return self._client.paused

    async def drained(self) -> None:
        """Raises ClientTooSlow, or DeadlineExceeded when the request's time is over first."""
        patience_s = min(self._send_timeout_s, self._call.deadline_s - time.monotonic())
        try:
            async with asyncio.timeout(max(patience_s, 0)):
                await self._client.drained()
        except TimeoutError:
            if time.monotonic() >= self._call.deadline_s:
                raise DeadlineExceeded("The request's deadline is over.") from None
            raise ClientTooSlow(f"The client read nothing for {self._send_timeout_s:g} s.") from None
