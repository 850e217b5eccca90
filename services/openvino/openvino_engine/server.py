"""One process: open the model, listen, serve until told to stop, leave nothing behind."""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from openvino_engine.app import App
from openvino_engine.checkpoint import Checkpoint, library_tokenizer, load_checkpoint
from openvino_engine.constraint import ToolFrame
from openvino_engine.convert import ConversionError
from openvino_engine.export_ir import export_ir
from openvino_engine.grammar_check import GrammarChecker, write_tiny_model
from openvino_engine.loop import EngineLoop
from openvino_engine.metrics import Metrics
from openvino_engine.pipeline import PipelineOptions, pipeline_opener
from openvino_engine.scorer import Scorer
from openvino_engine.serving import Serving
from openvino_engine.template import ChatTemplate
from openvino_engine.tools import detect_frame

_LOOP_STOP_S = 10.0


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Everything `serve` takes on its command line."""

    model: Path
    cache_dir: Path
    name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8101
    draft: Path | None = None
    draft_tokens: int = 4
    max_model_len: int | None = None
    max_waiting: int = 1024
    grace_s: float = 30.0
    grammar_timeout_s: float = 5.0
    body_limit_bytes: int = 16 << 20
    pipeline: PipelineOptions = field(default_factory=PipelineOptions)


# How a pipeline is opened, given the default opener; tests put faults in between.
WrapOpener = Callable[[Callable[[], Any]], Callable[[], Any]]


def serve(options: ServeOptions, version: str, wrap: WrapOpener = lambda opener: opener) -> int:
    """Serve until SIGTERM or Ctrl-C (exit code 0) or until the engine loop dies (1)."""
    began_s = time.monotonic()
    checkpoint = load_checkpoint(options.model, options.cache_dir)
    context = _context(options, checkpoint)
    name = options.name or checkpoint.root.resolve().stem
    metrics = Metrics(name)
    loop = _engine_loop(options, checkpoint, metrics, wrap)
    template = ChatTemplate(checkpoint.chat_template, checkpoint.special_texts) if checkpoint.chat_template else None
    with tempfile.TemporaryDirectory(prefix="penstock-openvino-") as scratch:
        tiny = Path(scratch) / "tiny.gguf"
        write_tiny_model(tiny, checkpoint.rows)
        grammar = GrammarChecker(checkpoint.model_path, tiny, timeout_s=options.grammar_timeout_s)
        frame = detect_frame(template) if template else ToolFrame()
        scorer = Scorer(lambda: _ir_folder(checkpoint, options.cache_dir), options.pipeline.precision)
        serving = Serving(name, checkpoint, template, frame, context, loop, grammar, scorer, int(time.time()))
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


def _engine_loop(options: ServeOptions, checkpoint: Checkpoint, metrics: Metrics, wrap: WrapOpener) -> EngineLoop:
    pipeline = options.pipeline
    if options.draft is not None:
        draft = load_checkpoint(options.draft, options.cache_dir)
        if draft.rows != checkpoint.rows:
            raise ConversionError(f"the draft has {draft.rows} tokens, the model {checkpoint.rows}: they must be equal")
        pipeline = PipelineOptions(**{**_as_dict(pipeline), "draft": _ir_folder(draft, options.cache_dir)})
    try:
        tokenizer = library_tokenizer(checkpoint.model_path)
        return EngineLoop(
            wrap(pipeline_opener(checkpoint.model_path, tokenizer, pipeline)),
            metrics,
            max_running=pipeline.max_num_seqs,
            max_waiting=options.max_waiting,
            draft_tokens=options.draft_tokens if options.draft is not None else 0,
        )
    except RuntimeError as error:
        raise ConversionError(f"OpenVINO GenAI cannot open {checkpoint.model_path}: {error}") from error


def _as_dict(options: PipelineOptions) -> dict[str, Any]:
    return {name: getattr(options, name) for name in options.__slots__}


def _ir_folder(checkpoint: Checkpoint, cache_dir: Path) -> Path:
    is_gguf = checkpoint.model_path.suffix == ".gguf"
    return export_ir(checkpoint.model_path, cache_dir) if is_gguf else checkpoint.model_path


def _context(options: ServeOptions, checkpoint: Checkpoint) -> int:
    known = checkpoint.context
    if known is None and options.max_model_len is None:
        raise ConversionError("the model does not say its context length: give --max-model-len")
    if known is not None and options.max_model_len is not None and options.max_model_len > known:
        raise ConversionError(f"--max-model-len {options.max_model_len} is beyond the model's {known}")
    wanted = options.max_model_len or known or 0
    holds = options.pipeline.kv_capacity(checkpoint.kv_values) if checkpoint.kv_values else wanted
    if options.max_model_len is not None and holds < wanted:
        raise ConversionError(
            f"--max-model-len {wanted} does not fit the KV cache of {holds} tokens: raise --kv-cache-gb"
        )
    return min(wanted, holds)


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
