"""The continuous-batching loop: one thread that owns the library's pipeline.

The server's event loop submits and cancels; this thread adds requests, steps, reads tokens and hands them back with one
`call_soon_threadsafe` a step. Nothing polls: the thread sleeps on a condition while there is no work, and step()
releases the interpreter lock while it computes. An exception inside step() leaves the library's scheduler unusable, so
the running answers fail, the pipeline is opened anew, and waiting ones go on; if that keeps happening the loop dies.
"""

import asyncio
import gc
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

import openvino
from openvino_engine.errors import ApiError, engine_failed, invalid, overloaded
from openvino_engine.job import Job
from openvino_engine.metrics import Metrics
from openvino_engine.sequence import Delta

_log = logging.getLogger(__name__)
_FAILURE_WINDOW_S = 60.0
_FAILURES_TO_DIE = 3


class EngineLoop:
    """Owns the pipeline and its thread. Methods without a leading underscore belong to the event loop's thread."""

    def __init__(
        self,
        open_pipeline: Callable[[], Any],
        metrics: Metrics,
        *,
        max_running: int,
        max_waiting: int,
        draft_tokens: int = 0,
        ngram_tokens: int = 0,
    ) -> None:
        self._open_pipeline = open_pipeline
        self._pipeline = open_pipeline()
        self._metrics = metrics
        self._max_running = max_running
        self._capacity = max_running + max_waiting
        self._draft_tokens = draft_tokens
        self._ngram_tokens = ngram_tokens
        self._condition = threading.Condition()
        self._inbox: deque[tuple[str, Job]] = deque()
        self._stopping = False
        self._waiting: deque[Job] = deque()
        self._running: dict[int, Job] = {}
        self._next_id = 0
        self._failures: deque[float] = deque()
        self._live = 0
        self._thread = threading.Thread(target=self._main, name="engine-loop", daemon=True)
        self.failure: str | None = None

    def start(self, on_failure: Callable[[], None]) -> None:
        """Start the thread; ``on_failure`` is called on the running event loop if it dies."""
        self._events = asyncio.get_running_loop()
        self._on_failure = on_failure
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether requests can be served."""
        return self.failure is None and self._thread.is_alive()

    @property
    def capacity(self) -> int:
        """Answers that fit, running and waiting."""
        return self._capacity

    def submit(self, jobs: list[Job]) -> None:
        """Queue answers. Raises ApiError 503 when they do not fit or the loop is dead."""
        if not self.alive:
            raise engine_failed(f"the engine loop is dead: {self.failure or 'stopped'}")
        if self._live + len(jobs) > self._capacity:
            self._metrics.rejections.inc()
            raise overloaded(f"the engine is full ({self._live} answers running or waiting): try again shortly")
        self._live += len(jobs)
        self._send("add", jobs)

    def cancel(self, jobs: Iterable[Job]) -> None:
        """Abort answers that are not over; their tokens stop within one step."""
        open_jobs = [job for job in jobs if not job.over]
        for job in open_jobs:
            self._end(job)
        self._send("cancel", open_jobs)

    def stop(self, timeout_s: float) -> bool:
        """Ask the thread to end and wait. False when it did not end in time."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _send(self, verb: str, jobs: list[Job]) -> None:
        with self._condition:
            self._inbox.extend((verb, job) for job in jobs)
            self._condition.notify()

    def _end(self, job: Job) -> None:
        job.over = True
        self._live -= 1

    def _dispatch(self, events: list[tuple[Job, Delta | ApiError]]) -> None:
        """On the event loop: hand over what a step brought."""
        for job, event in events:
            if job.over:
                continue
            if isinstance(event, ApiError) or event.finish is not None:
                self._end(job)
            job.deliver(event)

    # ---- the thread ----

    def _main(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:  # noqa: BLE001 - the thread's outermost door
            _log.exception("the engine loop died")
            self.failure = f"{type(error).__name__}: {str(error).strip()[-300:]}"
            self._fail([*self._running.values(), *self._waiting, *(job for verb, job in self._inbox if verb == "add")])
            self._post(self._on_failure)
        finally:
            self._running.clear()
            self._pipeline = None

    def _turn(self) -> bool:
        with self._condition:
            while not (self._inbox or self._waiting or self._pipeline.has_non_finished_requests() or self._stopping):
                self._condition.wait()
            if self._stopping:
                return False
            commands, self._inbox = self._inbox, deque()
        for verb, job in commands:
            if verb == "add":
                self._waiting.append(job)
            else:
                self._abort(job)
        self._admit()
        if self._pipeline.has_non_finished_requests():
            self._step()
        self._observe()
        return True

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._max_running:
            job = self._waiting.popleft()
            self._next_id += 1
            tokens = openvino.Tensor(np.array([job.prompt], dtype=np.int64))
            try:
                config = job.sampling.config(job.choice, self._draft_tokens, self._ngram_tokens)
                # The handle is kept in the job: the library cancels a request whose handle is dropped.
                job.handle = self._pipeline.add_request(self._next_id, tokens, config)
            except RuntimeError as error:
                self._give(job, invalid(None, f"the engine refused the request: {str(error).strip()[-300:]}"))
                continue
            self._running[self._next_id] = job
            self._metrics.queue_time.observe(time.monotonic() - job.arrived_s)
            self._metrics.prompt_tokens.inc(len(job.prompt))

    def _abort(self, job: Job) -> None:
        if job in self._waiting:
            self._waiting.remove(job)
        else:
            key = next((key for key, running in self._running.items() if running is job), None)
            if key is None:
                return  # it ended while the cancellation was on its way
            del self._running[key]
            job.handle.cancel()
        self._metrics.aborts.inc()
        self._metrics.finished("abort")

    def _step(self) -> None:
        try:
            self._pipeline.step()
        except RuntimeError as error:
            self._recover(error)
            return
        self._metrics.steps.inc()
        now_s = time.monotonic()
        events: list[tuple[Job, Delta | ApiError]] = []
        for key, job in list(self._running.items()):
            event = job.read(now_s, self._metrics)
            if event is None:
                continue
            events.append((job, event))
            if isinstance(event, ApiError) or event.finish is not None:
                del self._running[key]
                job.handle.stop()
        if events:
            self._post(self._dispatch, events)

    def _recover(self, error: RuntimeError) -> None:
        """The pipeline threw: its running answers are lost. Open it again, unless this keeps happening."""
        now_s = time.monotonic()
        self._failures.append(now_s)
        while self._failures[0] < now_s - _FAILURE_WINDOW_S:
            self._failures.popleft()
        if len(self._failures) >= _FAILURES_TO_DIE:
            raise error
        _log.error("step() failed, %d answers are lost, opening the pipeline again: %s", len(self._running), error)
        self._fail(list(self._running.values()))
        self._running.clear()
        self._pipeline = None
        gc.collect()
        self._pipeline = self._open_pipeline()
        self._metrics.restarts.inc()

    def _fail(self, jobs: list[Job]) -> None:
        for job in jobs:
            job.handle = None
            self._metrics.finished("error")
        failed = engine_failed("the engine failed while it worked on this request")
        self._post(self._dispatch, [(job, failed) for job in jobs])

    def _give(self, job: Job, error: ApiError) -> None:
        self._metrics.finished("error")
        self._post(self._dispatch, [(job, error)])

    def _post(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            self._events.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            _log.debug("the event loop is closed: an event of the engine loop is dropped")

    def _observe(self) -> None:
        self._metrics.running.set(len(self._running))
        self._metrics.waiting.set(len(self._waiting))
        state = self._pipeline.get_metrics()
        self._metrics.kv_usage.set(state.cache_usage / 100 if self._running else 0.0)
        self._metrics.kv_bytes.set(state.cache_size_in_bytes)
