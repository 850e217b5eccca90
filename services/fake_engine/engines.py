"""What differs between the engines that the fake can pretend to be: error shape, probes, metric names.

A new engine is one entry of ENGINES. Names were read from the engines' sources (vLLM 0.33, SGLang 0.5.23).
"""

from dataclasses import dataclass, field
from typing import Literal

from fake_engine.script import ErrorShape

MetricKind = Literal["gauge", "counter", "histogram"]


def _seconds(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split()))


_TTFT = _seconds(".001 .005 .01 .02 .04 .06 .08 .1 .25 .5 .75 1 2.5 5 7.5 10 20 40 80 160 640 2560")
_ITL = _seconds(".01 .025 .05 .075 .1 .15 .2 .3 .4 .5 .75 1 2.5 5 7.5 10 20 40 80")
_E2E = _seconds(".3 .5 .8 1 1.5 2 2.5 5 10 15 20 30 40 50 60 120 240 480 960 1920 7680")
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)
_SGLANG_TTFT = _seconds(".1 .2 .4 .6 .8 1 2 4 6 8 10 20 40 60 80 100 200 400")
_SGLANG_ITL = _seconds(".002 .004 .006 .008 .01 .015 .02 .025 .03 .035 .04 .06 .08 .1 .2 .4 .6 .8 1 2 4 6 8")
_SGLANG_E2E = _seconds(".1 .2 .4 .6 .8 1 2 4 6 8 10 20 40 60 80 100 200 400 600 1200 1800 2400")


@dataclass(frozen=True, slots=True)
class Metric:
    """One exposed metric: `source` is the meter's own quantity (metrics.py), `name` the engine's word."""

    source: str
    name: str
    kind: MetricKind
    buckets: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineKind:
    """`health_paths` answer 200 or the status set at /_fake/health; no metrics means /metrics is 404;
    `lora_prefix`: the folder of the routes that load and unload adapters, None: there are none."""

    error_shape: ErrorShape
    reasoning_field: Literal["reasoning", "reasoning_content"]
    version: str | None = None
    health_paths: frozenset[str] = frozenset()
    tokenize_path: str | None = None
    model_extras: bool = True
    null_usage: bool = False
    unauthorized: ErrorShape = "openai"
    lora_prefix: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    metrics: tuple[Metric, ...] = ()


_VLLM_METRICS = (
    Metric("running", "vllm:num_requests_running", "gauge"),
    Metric("waiting", "vllm:num_requests_waiting", "gauge"),
    Metric("kv_usage", "vllm:kv_cache_usage_perc", "gauge"),
    Metric("prompt_tokens", "vllm:prefix_cache_queries", "counter"),
    Metric("cached_tokens", "vllm:prefix_cache_hits", "counter"),
    Metric("prompt_tokens", "vllm:prompt_tokens", "counter"),
    Metric("generation_tokens", "vllm:generation_tokens", "counter"),
    Metric("finished", "vllm:request_success", "counter"),
    Metric("rejected", "vllm:admission_rejections", "counter"),
    Metric("ttft_s", "vllm:time_to_first_token_seconds", "histogram", _TTFT),
    Metric("itl_s", "vllm:inter_token_latency_seconds", "histogram", _ITL),
    Metric("tpot_s", "vllm:request_time_per_output_token_seconds", "histogram", _ITL),
    Metric("e2e_s", "vllm:e2e_request_latency_seconds", "histogram", _E2E),
    Metric("queue_s", "vllm:request_queue_time_seconds", "histogram", _E2E),
    Metric("prompt_size", "vllm:request_prompt_tokens", "histogram", _TOKENS),
    Metric("answer_size", "vllm:request_generation_tokens", "histogram", _TOKENS),
)
_SGLANG_METRICS = (
    Metric("running", "sglang:num_running_reqs", "gauge"),
    Metric("waiting", "sglang:num_queue_reqs", "gauge"),
    Metric("kv_usage", "sglang:token_usage", "gauge"),
    Metric("prompt_tokens", "sglang:prompt_tokens", "counter"),
    Metric("cached_tokens", "sglang:cached_tokens", "counter"),
    Metric("generation_tokens", "sglang:generation_tokens", "counter"),
    Metric("started", "sglang:num_requests", "counter"),
    Metric("aborted", "sglang:num_aborted_requests", "counter"),
    Metric("ttft_s", "sglang:time_to_first_token_seconds", "histogram", _SGLANG_TTFT),
    Metric("itl_s", "sglang:inter_token_latency_seconds", "histogram", _SGLANG_ITL),
    Metric("e2e_s", "sglang:e2e_request_latency_seconds", "histogram", _SGLANG_E2E),
    Metric("queue_s", "sglang:queue_time_seconds", "histogram", _SGLANG_E2E),
)

ENGINES: dict[str, EngineKind] = {
    "vllm": EngineKind(
        error_shape="vllm",
        reasoning_field="reasoning",
        version="0.33.0",
        health_paths=frozenset({"/health", "/ping"}),
        tokenize_path="/tokenize",
        unauthorized="string",
        lora_prefix="/v1",
        labels={"engine": "0"},
        metrics=_VLLM_METRICS,
    ),
    "sglang": EngineKind(
        error_shape="sglang",
        reasoning_field="reasoning_content",
        health_paths=frozenset({"/health", "/ready", "/health_generate"}),
        tokenize_path="/v1/tokenize",
        lora_prefix="",
        labels={"engine_type": "unified", "tp_rank": "0", "pp_rank": "0", "moe_ep_rank": "0"},
        metrics=_SGLANG_METRICS,
    ),
    "openai": EngineKind(
        error_shape="openai", reasoning_field="reasoning_content", model_extras=False, null_usage=True
    ),
}
