"""One process: open the model, listen, serve until told to stop, leave nothing behind."""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from openvino_engine.app import App
from openvino_engine.constraint import ToolFrame
from openvino_engine.engine import EngineOptions, WrapOpener, default_name, ir_folder, open_engine
from openvino_engine.metrics import Metrics
from openvino_engine.scorer import Scorer
from openvino_engine.serving import Serving
from openvino_engine.template import ChatTemplate
from openvino_engine.tools import detect_frame

_LOOP_STOP_S = 10.0


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Everything `serve` takes on its command line."""

    engine: EngineOptions
    name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8101
    grace_s: float = 30.0
    body_limit_bytes: int = 16 << 20


def serve(options: ServeOptions, version: str, wrap: WrapOpener = lambda opener: opener) -> int:
    """Serve until SIGTERM or Ctrl-C (exit code 0) or until the engine loop dies (1)."""
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="penstock-openvino-") as scratch:
        serving, metrics = _serving(options, Path(scratch), wrap)
        app = App(serving, metrics, version=version, body_limit_bytes=options.body_limit_bytes)
        config = uvicorn.Config(
            app,
            host=options.host,
            port=options.port,
            lifespan="off",
            access_log=False,
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=max(1, int(options.grace_s)),
        )
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            return runner.run(_Server(config, app, serving, began_s).run())


def _serving(options: ServeOptions, scratch: Path, wrap: WrapOpener) -> tuple[Serving, Metrics]:
    engine = open_engine(options.engine, options.name, scratch, wrap)
    checkpoint = engine.checkpoint
    template = ChatTemplate(checkpoint.chat_template, checkpoint.special_texts) if checkpoint.chat_template else None
    cache_dir, precision = options.engine.cache_dir, options.engine.pipeline.precision
    serving = Serving(
        name=options.name or default_name(checkpoint),
        checkpoint=checkpoint,
        template=template,
        frame=detect_frame(template) if template else ToolFrame(),
        context=engine.context,
        loop=engine.loop,
        grammar=engine.grammar,
        scorer=Scorer(lambda: ir_folder(checkpoint, cache_dir), precision),
        created_s=int(time.time()),
    )
    return serving, engine.metrics


class _Server(uvicorn.Server):
    """uvicorn with our signals: it would raise them again at the end, and a clean stop must exit 0."""

    def __init__(self, config: uvicorn.Config, app: App, serving: Serving, began_s: float) -> None:
        super().__init__(config)
        self._app = app
        self._serving = serving
        self._began_s = began_s

    async def run(self) -> int:  # type: ignore[override]
        """Serve; the exit code."""
        events = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            events.add_signal_handler(number, self._stop)
        self._serving.loop.start(self._fail)
        try:
            await self.serve()
        finally:
            await self._serving.grammar.aclose()
            ended = await asyncio.to_thread(self._serving.loop.stop, _LOOP_STOP_S)
            await asyncio.to_thread(self._serving.scorer.close)
        if not ended:
            # The library hangs inside a step: interpreter shutdown would wait for it or crash in it.
            sys.stderr.write("the engine loop did not end in time\n")
            sys.stderr.flush()
            os._exit(1)
        return 0 if self._serving.loop.failure is None else 1

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            address = f"http://{self.config.host}:{self.config.port}"
            seconds = time.monotonic() - self._began_s
            about = f"{self._serving.name} on {address}, context {self._serving.context}"
            sys.stdout.write(f"ready: {about}, after {seconds:.1f} s\n")
            sys.stdout.flush()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def _stop(self) -> None:
        # A second signal does not wait for the streams any more.
        self.force_exit = self.should_exit
        self.should_exit = True
        self._app.draining = True

    def _fail(self) -> None:
        self.should_exit = True
