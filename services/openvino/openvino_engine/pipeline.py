"""Opening the library's pipeline: precision, KV cache, batch limits, and an optional draft model."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino_genai


@dataclass(frozen=True, slots=True)
class PipelineOptions:
    """How the model runs. ``precision`` f32, bf16 or auto; ``kv_cache_gb`` whole GiB."""

    precision: str = "f32"
    kv_cache_gb: int = 1
    max_num_seqs: int = 256
    max_batched_tokens: int = 512
    prefix_caching: bool = True
    draft: Path | None = None


def pipeline_opener(model_path: Path, tokenizer: Any, options: PipelineOptions) -> Callable[[], Any]:
    """A function that opens the pipeline, now and again after a failure."""

    def open_pipeline() -> Any:
        properties = precision_properties(options.precision)
        if options.draft is not None:
            properties["draft_model"] = openvino_genai.draft_model(
                str(options.draft), "CPU", **precision_properties(options.precision)
            )
        return openvino_genai.ContinuousBatchingPipeline(
            str(model_path), tokenizer, _scheduler(options), "CPU", **properties
        )

    return open_pipeline


def _scheduler(options: PipelineOptions) -> Any:
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = options.kv_cache_gb
    scheduler.max_num_seqs = options.max_num_seqs
    scheduler.max_num_batched_tokens = max(options.max_batched_tokens, options.max_num_seqs)
    scheduler.enable_prefix_caching = options.prefix_caching
    return scheduler


def precision_properties(precision: str) -> dict[str, Any]:
    """f32 also for the KV cache: the library stores it in f16 for GGUF otherwise, and greedy ties break differently."""
    if precision == "auto":
        return {}
    properties = {"INFERENCE_PRECISION_HINT": precision}
    if precision == "f32":
        properties["KV_CACHE_PRECISION"] = "f32"
    return properties
