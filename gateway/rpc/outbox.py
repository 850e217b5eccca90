"""Messages on their way to one gRPC stream: put in by callbacks that must not wait, taken out by one writer that does.

What makes a slow reader slow down the engine: `paused` tells serving to read no more, and what is held is bounded.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable
from typing import Generic, TypeVar

from google.protobuf.message import Message

from gateway.core.errors import ClientTooSlow
from gateway.rpc.status import Context

HIGH_BYTES = 64 * 2**10
LOW_BYTES = 16 * 2**10
M = TypeVar("M", bound=Message)


class Outbox(Generic[M]):
    """Once closed it takes nothing more, and its writer ends when it is empty. `send_timeout_s`: for one message."""

    def __init__(self, send_timeout_s: float) -> None:
        self._send_timeout_s = send_timeout_s
        self._messages: deque[M] = deque()
        self._unsent_bytes = 0  # the one being written included
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._is_closed = False

    def put(self, message: M) -> None:
        if self._is_closed:
            return
        self._messages.append(message)
        self._unsent_bytes += message.ByteSize()
        if self._unsent_bytes > HIGH_BYTES:
            self._drained.clear()
        self._filled.set()

    def close(self) -> None:
        self._is_closed = True
        self._filled.set()

    @property
    def paused(self) -> bool:
        return not self._drained.is_set()

    async def drained(self) -> None:
        await self._drained.wait()

    async def write_to(self, context: Context) -> None:
        """Until it is closed and empty. Raises ClientTooSlow."""
        while True:
            while self._messages:
                message = self._messages.popleft()
                await self._write(context, message)
                self._unsent_bytes -= message.ByteSize()
                if self._unsent_bytes <= LOW_BYTES:
                    self._drained.set()
            if self._is_closed:
                return
            self._filled.clear()
            await self._filled.wait()

    async def _write(self, context: Context, message: M) -> None:
        try:
            async with asyncio.timeout(self._send_timeout_s):
                await context.write(message)
        except TimeoutError:
            raise ClientTooSlow(f"The client read nothing for {self._send_timeout_s:g} s.") from None


async def deliver(context: Context, outbox: Outbox[M], work: Awaitable[None]) -> None:
    """Write what `work` puts into the outbox, until it is done and all is written; cancelled, it cancels the work.

    Raises ClientTooSlow, after it has cancelled the work.
    """
    working = asyncio.ensure_future(work)
    working.add_done_callback(lambda _: outbox.close())
    writing = asyncio.ensure_future(outbox.write_to(context))
    try:
        await writing
        await working
    finally:
        for task in (working, writing):
            task.cancel()
        await asyncio.wait({working, writing})
