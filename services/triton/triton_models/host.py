"""The engine's home in a Python backend: an event loop on a thread of its own, and a watcher for clients that leave.

execute() hands a request over and returns at once; every request is a task on the loop, so that all of them share one
continuous batch. Cancelling the task, whoever does it, aborts its answers within one step of the engine.
"""

import asyncio
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from openvino_engine.engine import Engine, EngineOptions, open_engine
from openvino_engine.errors import ApiError, engine_failed
from openvino_engine.metrics import Metrics
from triton_models.exchange import Exchange

_log = logging.getLogger(__name__)
_POLL_S = 0.1  # TensorRT-LLM's cancellation_check_period_ms
_STOP_S = 10.0
_LAST_WORDS_S = 1.0
_EXIT_ENGINE_DIED = 70

Serve = Callable[[Exchange], Coroutine[Any, Any, None]]


class EngineHost:
    """Opens the engine; raises its ConversionError and the like. ``show`` is handed its metrics ten times a second."""

    def __init__(self, options: EngineOptions, name: str, show: Callable[[Metrics], None]) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="penstock-triton-")
        self.engine: Engine = open_engine(options, name, Path(self._scratch.name))
        self._show = show
        self._live: dict[Exchange, asyncio.Task[None]] = {}
        self._closing = threading.Event()
        self._events = asyncio.new_event_loop()
        self._threads = [
            threading.Thread(target=self._run, name="events", daemon=True),
            threading.Thread(target=self._watch, name="watcher", daemon=True),
        ]
        started = threading.Event()
        self._events.call_soon(self._start_loop, started)
        for thread in self._threads:
            thread.start()
        started.wait()

    def submit(self, exchange: Exchange, serve: Serve) -> None:
        """Serve a request on the loop; returns at once."""
        self._events.call_soon_threadsafe(self._begin, exchange, serve)

    def stop(self, exchange: Exchange) -> None:
        """Cancel the requests with the same id, and answer ``exchange``, which asked for it, with an empty end."""
        self._events.call_soon_threadsafe(self._stop, exchange)

    def close(self) -> None:
        """End everything that runs and the engine's thread."""
        self._closing.set()
        asyncio.run_coroutine_threadsafe(self._end(), self._events).result(_STOP_S)
        self._events.call_soon_threadsafe(self._events.stop)
        for thread in self._threads:
            thread.join(_STOP_S)
        self.engine.loop.stop(_STOP_S)
        self._scratch.cleanup()

    # ---- the loop's thread ----

    def _run(self) -> None:
        asyncio.set_event_loop(self._events)
        self._events.run_forever()

    def _start_loop(self, started: threading.Event) -> None:
        self.engine.loop.start(self._engine_died)
        started.set()

    def _begin(self, exchange: Exchange, serve: Serve) -> None:
        task = self._events.create_task(_guarded(exchange, serve))
        self._live[exchange] = task
        task.add_done_callback(lambda _: self._live.pop(exchange, None))

    def _stop(self, asking: Exchange) -> None:
        for exchange, task in list(self._live.items()):
            if exchange.id == asking.id:
                exchange.stopped = True
                task.cancel()
        asking.finish()

    def _cancel(self, exchange: Exchange) -> None:
        if (task := self._live.get(exchange)) is not None:
            task.cancel()

    async def _end(self) -> None:
        tasks = list(self._live.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.engine.grammar.aclose()

    def _engine_died(self) -> None:
        """This process can serve nothing any more. Its requests get their errors, then the launcher's watch.py sees it
        gone and ends the server."""
        _log.critical("the engine loop is dead, the model ends: %s", self.engine.loop.failure)
        self._events.call_later(_LAST_WORDS_S, os._exit, _EXIT_ENGINE_DIED)

    # ---- the watcher's thread ----

    def _watch(self) -> None:
        while not self._closing.wait(_POLL_S):
            for exchange in list(self._live):
                if exchange.is_cancelled:
                    self._events.call_soon_threadsafe(self._cancel, exchange)
            self._show(self.engine.metrics)


async def _guarded(exchange: Exchange, serve: Serve) -> None:
    """Outermost door of one request: whatever happens inside, it gets its last response."""
    try:
        await serve(exchange)
    except ApiError as error:
        exchange.fail(error)
    except asyncio.CancelledError:
        exchange.cancelled()
    except Exception:  # noqa: BLE001
        _log.exception("a request failed inside the model")
        exchange.fail(engine_failed("the model failed while it worked on this request; see the server's log"))
    finally:
        exchange.finish()
