"""What all RPCs that ask a model have in common: who asks, by when, and how they end when the server stops."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from gateway.core.errors import Draining, PenstockError
from gateway.rpc.outbox import Outbox
from gateway.rpc.status import Context, abort
from gateway.serving.intake import Asker, Intake

RESERVE_S = 0.25
"""The client's deadline is kept so much earlier (a fifth of it, if that is less), for our words to reach it in time."""


class Entrance:
    """Holds the running RPCs. `is_draining` is set when the server begins to stop."""

    def __init__(self, intake: Intake) -> None:
        self.intake = intake
        self.is_draining = asyncio.Event()
        self._on_drain: set[Callable[[], object]] = set()
        self._running: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_cut = False

    @asynccontextmanager
    async def rpc(self, context: Context, door: str) -> AsyncGenerator[Asker, None]:
        """Around the whole of a handler, which is cancelled when its client leaves; a PenstockError ends the RPC."""
        task = asyncio.current_task()
        assert task is not None
        asker = self._asker(context, door)
        context.set_trailing_metadata((("x-request-id", asker.request_id),))
        self._running.add(task)
        self._idle.clear()
        try:
            yield asker
        except PenstockError as error:
            await abort(context, error, asker.request_id)
        except asyncio.CancelledError:
            if not self._is_cut:
                raise
            await abort(context, Draining("The gateway shut down before this answer was finished."), asker.request_id)
        finally:
            self._running.discard(task)
            if not self._running:
                self._idle.set()

    def _asker(self, context: Context, door: str) -> Asker:
        metadata = {
            str(key).encode(): value.encode() if isinstance(value, str) else value
            for key, value in context.invocation_metadata() or ()
        }
        asker = self.intake.asker(door, metadata)
        remaining_s = context.time_remaining()
        if remaining_s is not None:
            asker.deadline_s = asker.received_s + remaining_s - min(remaining_s / 5, RESERVE_S)
        return asker

    def outbox(self) -> Outbox[Any]:
        return Outbox(self.intake.service.send_timeout_s)

    @contextmanager
    def on_drain(self, callback: Callable[[], object]) -> Generator[None, None, None]:
        """Within it, `callback` is called when the server begins to stop, or at once if it has."""
        if self.is_draining.is_set():
            callback()
        self._on_drain.add(callback)
        try:
            yield
        finally:
            self._on_drain.discard(callback)

    async def drain(self, timeout_s: float) -> None:
        """Wait until no RPC runs; those that outlast `timeout_s` are cut."""
        self.is_draining.set()
        for callback in list(self._on_drain):
            callback()
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            self.cut()
            await self._idle.wait()

    def cut(self) -> None:
        """End every RPC now, with an error."""
        self._is_cut = True
        for task in self._running:
            task.cancel()
