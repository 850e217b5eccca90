"""The engine without a door: a checkpoint, the loop that serves it, and the checker of its grammars.

Apart from server.py, because whoever has a door of his own (Triton's Python backend) opens the same engine.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from openvino_engine.checkpoint import Checkpoint, library_tokenizer, load_checkpoint
from openvino_engine.convert import ConversionError
from openvino_engine.export_ir import export_ir
from openvino_engine.grammar_check import GrammarChecker, write_tiny_model
from openvino_engine.loop import EngineLoop
from openvino_engine.metrics import Metrics
from openvino_engine.pipeline import PipelineOptions, pipeline_opener

NGRAM_TOKENS = 3  # prompt lookup: the longest run that is looked up

# How a pipeline is opened, given the default opener; tests put faults in between.
WrapOpener = Callable[[Callable[[], Any]], Callable[[], Any]]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What is opened, and how much of it may run at once. ``max_model_len`` None: the model's own context."""

    model: Path
    cache_dir: Path
    draft: Path | None = None
    draft_tokens: int = 4
    max_model_len: int | None = None
    max_waiting: int = 1024
    grammar_timeout_s: float = 5.0
    pipeline: PipelineOptions = field(default_factory=PipelineOptions)


@dataclass(frozen=True, slots=True)
class Engine:
    """An open engine; its loop's thread is not started yet. ``context`` is in tokens."""

    checkpoint: Checkpoint
    context: int
    loop: EngineLoop
    grammar: GrammarChecker
    metrics: Metrics


def open_engine(
    options: EngineOptions, name: str | None, scratch: Path, wrap: WrapOpener = lambda opener: opener
) -> Engine:
    """Read, convert and open ``options.model``. ``name`` labels the metrics, ``scratch`` outlives the engine.

    Raises ConversionError, SafetensorsError or TokenizerError with what is wrong and what to do.
    """
    checkpoint = load_checkpoint(options.model, options.cache_dir)
    context = _context(options, checkpoint)
    metrics = Metrics(name or default_name(checkpoint))
    loop = _engine_loop(options, checkpoint, metrics, wrap)
    tiny = scratch / "tiny.gguf"
    write_tiny_model(tiny, checkpoint.rows)
    grammar = GrammarChecker(checkpoint.model_path, tiny, timeout_s=options.grammar_timeout_s)
    return Engine(checkpoint, context, loop, grammar, metrics)


def default_name(checkpoint: Checkpoint) -> str:
    """The folder's or the file's."""
    return checkpoint.root.resolve().stem


def ir_folder(checkpoint: Checkpoint, cache_dir: Path) -> Path:
    """The checkpoint as OpenVINO IR, exported into ``cache_dir`` when it is a GGUF file."""
    is_gguf = checkpoint.model_path.suffix == ".gguf"
    return export_ir(checkpoint.model_path, cache_dir) if is_gguf else checkpoint.model_path


def _engine_loop(options: EngineOptions, checkpoint: Checkpoint, metrics: Metrics, wrap: WrapOpener) -> EngineLoop:
    pipeline = options.pipeline
    if options.draft is not None:
        draft = load_checkpoint(options.draft, options.cache_dir)
        if draft.rows != checkpoint.rows:
            raise ConversionError(f"the draft has {draft.rows} tokens, the model {checkpoint.rows}: they must be equal")
        pipeline = replace(pipeline, draft=ir_folder(draft, options.cache_dir))
    try:
        tokenizer = library_tokenizer(checkpoint.model_path)
        return EngineLoop(
            wrap(pipeline_opener(checkpoint.model_path, tokenizer, pipeline)),
            metrics,
            max_running=pipeline.max_num_seqs,
            max_waiting=options.max_waiting,
            draft_tokens=options.draft_tokens if options.draft is not None or pipeline.prompt_lookup else 0,
            ngram_tokens=NGRAM_TOKENS if pipeline.prompt_lookup else 0,
        )
    except RuntimeError as error:
        raise ConversionError(f"OpenVINO GenAI cannot open {checkpoint.model_path}: {error}") from error


def _context(options: EngineOptions, checkpoint: Checkpoint) -> int:
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
