"""Keeps one process running: start, ready, crash, back off, start again, or give up with the reason.

Apart from run.py, which knows the order of all of them.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from stack.logs import ProcessLog
from stack.probe import http_status
from stack.process import Child, Spec, describe_exit
from stack.settings import Restart

State = Literal["waiting", "starting", "ready", "restarting", "stopping", "stopped", "gave up", "running", "done"]
POLL_S = 0.2


@dataclass(frozen=True)
class Status:
    name: str
    state: State
    detail: str = ""


def backoff_s(failures: int, restart: Restart) -> float:
    """Pause after the nth failure in a row: doubled each time, capped."""
    return min(restart.backoff_max_s, restart.backoff_s * 2.0 ** min(failures - 1, 32))


class Supervisor:
    """`run()` until `stop()`; `ready` and `gave_up` may be awaited."""

    def __init__(self, spec: Spec, restart: Restart, log: ProcessLog, tell: Callable[[Status], None]) -> None:
        self.spec = spec
        self.log = log
        self.ready = asyncio.Event()
        self.gave_up = asyncio.Event()
        self.reason = ""
        self._restart = restart
        self._tell = tell
        self._stopping = asyncio.Event()
        self._child: Child | None = None
        self._was_ready = False
        self._failures = 0

    async def run(self) -> None:
        """Returns when stopped on request or given up."""
        while not self._stopping.is_set():
            reason = await self._one_life()
            if self._stopping.is_set():
                break
            if self._is_hopeless():
                self.reason = f"{reason}; {self._failures} failures in a row"
                self._say("gave up", self.reason)
                self.gave_up.set()
                return
            pause_s = backoff_s(self._failures, self._restart)
            self._say("restarting", f"{reason}; again in {pause_s:g} s (failure {self._failures})")
            await self._pause(pause_s)
        self._say("stopped")

    async def stop(self) -> None:
        """Ask the process to leave; returns when nothing of it is left."""
        self._stopping.set()
        if self._child is not None and not self.gave_up.is_set():
            self._say("stopping")
            await self._child.stop()

    def kill(self) -> None:
        self._stopping.set()
        if self._child is not None:
            self._child.kill()

    async def _one_life(self) -> str:
        """Start the process, see it become ready and end; says why it ended and counts the failure."""
        self._child = child = Child(self.spec, self.log)
        loop = asyncio.get_running_loop()
        pid = await child.start()
        self._say("starting", f"pid {pid}")
        if self._stopping.is_set():  # asked while the process was being made
            await child.stop()
        ended = asyncio.create_task(child.wait())
        try:
            ready_at = await self._until_ready(ended)
            if ready_at is None and not ended.done():
                await child.stop()
                self._failures += 1
                return f"not ready after {self.spec.ready_timeout_s:g} s"
            code = await ended
            was_stable = ready_at is not None and loop.time() - ready_at >= self._restart.stable_s
            self._failures = 1 if was_stable else self._failures + 1
            return describe_exit(code)
        finally:
            self.ready.clear()

    async def _until_ready(self, ended: asyncio.Task[int]) -> float | None:
        """When it answered 200 (loop time), or None when it ended, timed out or is being stopped."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.spec.ready_timeout_s
        while not ended.done() and loop.time() < deadline:
            if await self._answers() and not ended.done():
                self._was_ready = True
                self.ready.set()
                self._say("ready")
                return loop.time()
            await asyncio.wait({ended}, timeout=POLL_S)
        return None

    async def _answers(self) -> bool:
        spec = self.spec
        return await http_status(spec.host, spec.ready_port or spec.port, spec.ready_path) == 200

    def _is_hopeless(self) -> bool:
        limit = self._restart.max_failures if self._was_ready else self._restart.max_failed_starts
        return self._failures >= limit

    async def _pause(self, pause_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), pause_s)

    def _say(self, state: State, detail: str = "") -> None:
        self._tell(Status(self.spec.name, state, detail))
