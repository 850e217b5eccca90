"""One generation request being answered: plays the plan's steps when they are due and keeps the books.

No task per stream: one timer handle at a time, on an absolute schedule so that errors do not add up.
"""

import asyncio
import math
import os
from time import monotonic
from typing import TYPE_CHECKING

from fake_engine.compose import Timetable
from fake_engine.metrics import Meter
from fake_engine.plan import Action, Step
from fake_engine.stats import Stats

if TYPE_CHECKING:
    from fake_engine.connection import Connection

TIMER_SLACK_S = 0.0006
"""Timers of uvloop are rounded to a millisecond: a step this little ahead of time is due."""

WRITE_BYTES = 65_536
STEP_BYTES = 64
"""What a step weighs beside its bytes: silent ones, too, make way for other streams after a thousand."""


class Exchange:
    """Waiting, running, ended. The connection calls `resume` and `lost`; `start` is called when there is a slot."""

    def __init__(self, connection: "Connection", table: Timetable, prompt_tokens: int, cached_tokens: int) -> None:
        self.connection = connection
        self.prompt_tokens = prompt_tokens
        self.cached_tokens = min(cached_tokens, prompt_tokens)
        self.received_s = monotonic()
        self.is_running = self.is_ended = False
        self._stats: Stats = connection.engine.stats
        self._meter: Meter = connection.engine.meter
        self._loop = asyncio.get_running_loop()
        self._table = table
        self._next: Step | None = None
        self._action = Action.NOTHING
        self._backlog = memoryview(b"")
        self._timer: asyncio.Handle | None = None
        self._tokens = 0
        self._first_s = self._last_s = self._start_s = 0.0

    def start(self) -> None:
        self.is_running = True
        self._start_s = monotonic()
        self._meter.running += 1
        self._meter.kv_tokens += self.prompt_tokens
        self._meter.prompt_tokens += self.prompt_tokens
        self._meter.cached_tokens += self.cached_tokens
        self._meter.observe("queue_s", self._start_s - self.received_s)
        self._advance()

    def resume(self) -> None:
        """The transport takes bytes again."""
        if self.is_running and not self.is_ended and self._timer is None:
            self._timer = self._loop.call_soon(self._advance)

    def lost(self) -> None:
        """The client left."""
        if self.is_ended:
            return
        if self.connection.engine.kind.aborts:
            self._end("aborted", "abort")
        else:  # it works on, for nobody
            self.connection.is_paused = False
            self.resume()

    def _advance(self) -> None:
        self._timer = None
        if self.is_ended or not self._flush():
            return
        wake_s = None
        if self._action is Action.NOTHING:
            wake_s = self._gather()
            if not self._flush():
                return
        if self._action is not Action.NOTHING:
            self._act(self._action)
        elif wake_s is None:
            self._timer = self._loop.call_soon(self._advance)  # more is due: other streams have their turn first
        elif wake_s != math.inf:
            self._timer = self._loop.call_later(self._start_s + wake_s - monotonic(), self._advance)

    def _gather(self) -> float | None:
        """Put what is due into the backlog; the time of the next step, or None when that may be due too."""
        now_s = monotonic()
        due_s = now_s - self._start_s + TIMER_SLACK_S
        ready: list[bytes] = []
        size, wake_s = 0, None
        while size < WRITE_BYTES:
            step = self._next or next(self._table.steps)
            if step.at_s > due_s:
                self._next, wake_s = step, step.at_s
                break
            self._next = None
            if step.tokens:
                self._count(step.tokens, now_s)
            ready.append(step.data)
            size += len(step.data) + STEP_BYTES
            if step.action is not Action.NOTHING or step.is_alone:
                self._action = step.action
                break
        self._backlog = memoryview(b"".join(ready))
        return wake_s

    def _flush(self) -> bool:
        """Hand over bytes as long as the transport takes them; True when none are left and it takes more."""
        connection = self.connection
        while self._backlog and not connection.is_paused:
            connection.write(self._backlog[:WRITE_BYTES])
            self._backlog = self._backlog[WRITE_BYTES:]
        return not self._backlog and not connection.is_paused

    def _act(self, action: Action) -> None:
        connection = self.connection
        if action is Action.FINISH:
            self._end(self._table.outcome, self._table.reason)
            connection.answered(self._table.closes)
            return
        if action is Action.EXIT:
            os._exit(1)
        self._end("died", "error")
        if action is Action.RESET:
            connection.reset()
        else:
            connection.close()

    # ---- books ----

    def _count(self, tokens: int, now_s: float) -> None:
        meter = self._meter
        if self._tokens:
            meter.observe("itl_s", now_s - self._last_s)
        else:
            self._first_s = now_s
            meter.observe("ttft_s", now_s - self.received_s)
        self._last_s = now_s
        self._tokens += tokens
        meter.generation_tokens += tokens
        meter.kv_tokens += tokens
        self._stats.generated_tokens += tokens

    def _end(self, outcome: str, reason: str) -> None:
        self.is_ended = True
        self._backlog = memoryview(b"")
        if self._timer is not None:
            self._timer.cancel()
        self._stats.end(outcome)
        meter = self._meter
        meter.finished[reason] += 1
        meter.aborted += outcome == "aborted"
        if self.is_running:
            meter.running -= 1
            meter.kv_tokens -= self.prompt_tokens + self._tokens
            self._observe_whole(outcome)
        self.connection.engine.release(self)

    def _observe_whole(self, outcome: str) -> None:
        if outcome != "completed":
            return
        meter = self._meter
        meter.observe("e2e_s", monotonic() - self.received_s)
        meter.observe("prompt_size", self.prompt_tokens)
        meter.observe("answer_size", self._tokens)
        if self._tokens > 1:
            meter.observe("tpot_s", (self._last_s - self._first_s) / (self._tokens - 1))
