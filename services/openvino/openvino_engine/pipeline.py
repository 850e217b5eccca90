"""Opening the library's pipeline: precision, KV cache, batch limits, and an optional draft model."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino_genai

_BLOCK_TOKENS = 32  # the library's on CPU


@dataclass(frozen=True, slots=True)
class PipelineOptions:
    """How the model runs. ``precision`` is f32, bf16 or auto; ``kv_blocks`` goes before ``kv_cache_gb`` (GiB)."""

    precision: str = "f32"
    kv_cache_gb: int = 1
    kv_blocks: int | None = None
    threads: int | None = None
    max_num_seqs: int = 256
    max_batched_tokens: int = 512
    prefix_caching: bool = True
    draft: Path | None = None
    prompt_lookup: bool = False

    def kv_capacity(self, values_per_token: int) -> int:
        """Tokens that the KV cache holds."""
        if self.kv_blocks is not None:
            return self.kv_blocks * _BLOCK_TOKENS
        block_bytes = _BLOCK_TOKENS * values_per_token * (4 if self.precision == "f32" else 2)
        return (self.kv_cache_gb << 30) // block_bytes * _BLOCK_TOKENS


def pipeline_opener(model_path: Path, tokenizer: Any, options: PipelineOptions) -> Callable[[], Any]:
    """A function that opens the pipeline, now and again after a failure."""

    def open_pipeline() -> Any:
        properties = precision_properties(options.precision)
        if options.threads is not None:
            properties["INFERENCE_NUM_THREADS"] = options.threads
        if options.draft is not None:
            properties["draft_model"] = openvino_genai.draft_model(
                str(options.draft), "CPU", **precision_properties(options.precision)
            )
        if options.prompt_lookup:
            properties["prompt_lookup"] = True
        return openvino_genai.ContinuousBatchingPipeline(
            str(model_path), tokenizer, _scheduler(options), "CPU", **properties
        )

    return open_pipeline


def _scheduler(options: PipelineOptions) -> Any:
    scheduler = openvino_genai.SchedulerConfig()
    if options.kv_blocks is None:
        scheduler.cache_size = options.kv_cache_gb
    else:
        scheduler.num_kv_blocks = options.kv_blocks
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
