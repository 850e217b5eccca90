"""What differs between the engines that the fake can pretend to be: error shape, probes, metric names, manners.

A new engine is one entry of ENGINES. Names were read from the engines' sources (vLLM 0.33, SGLang 0.5.23,
TensorRT-LLM 1.2, LightLLM 1.1, MNN 3).
"""

from dataclasses import dataclass, field
from typing import Literal

from fake_engine.known_fields import TRTLLM_FIELDS, Known
from fake_engine.script import ErrorShape

EndpointName = Literal["chat", "completions", "embeddings", "responses", "messages", "count_tokens", "rerank", "score"]
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


GENERATION_PATHS: dict[str, EndpointName] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
}
NATIVE_PATHS: dict[str, EndpointName] = {
    "/v1/responses": "responses",
    "/v1/messages": "messages",
    "/v1/messages/count_tokens": "count_tokens",
    "/v1/rerank": "rerank",
    "/v1/score": "score",
}


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
    `lora_prefix`: the folder of the routes that load and unload adapters, None: there are none.

    Of requests: `known`: the fields it takes, any other is refused (None: they are ignored); `bad_request`: its
    status for one it cannot read; `answers_anyone`: an unknown model's name is answered by the base model;
    `usage_unasked`: what `stream_options` means when it says nothing; `hears_messages_only`: sampling is not heard.
    Of its ways: `manner`: how frames look; `aborts`: it stops when the client leaves; `slots`: how many requests
    it works on at once, None is the command line's business; `models`: its list of models, a constant.
    """

    error_shape: ErrorShape
    reasoning_field: Literal["reasoning", "reasoning_content", "both"]
    version: str | None = None
    health_paths: frozenset[str] = frozenset()
    tokenize_path: str | None = None
    model_extras: bool = True
    null_usage: bool = False
    unauthorized: ErrorShape = "openai"
    lora_prefix: str | None = None
    known: Known | None = None
    bad_request: int = 400
    answers_anyone: bool = False
    usage_unasked: bool = False
    hears_messages_only: bool = False
    manner: Literal["plain", "sglang", "mnn"] = "plain"
    aborts: bool = True
    slots: int | None = None
    models: tuple[str, ...] | None = None
    paths: dict[str, EndpointName] = field(default_factory=lambda: dict(GENERATION_PATHS))
    metrics_path: str = "/metrics"
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
_TRTLLM_METRICS = (
    Metric("running", "trtllm_num_requests_running", "gauge"),
    Metric("waiting", "trtllm_num_requests_waiting", "gauge"),
    Metric("kv_usage", "trtllm_kv_cache_utilization", "gauge"),
    Metric("prompt_tokens", "trtllm_prompt_tokens", "counter"),
    Metric("cached_tokens", "trtllm_prompt_cached_tokens", "counter"),
    Metric("generation_tokens", "trtllm_generation_tokens", "counter"),
    Metric("finished", "trtllm_request_success", "counter"),
    Metric("ttft_s", "trtllm_time_to_first_token_seconds", "histogram", _TTFT),
    Metric("tpot_s", "trtllm_time_per_output_token_seconds", "histogram", _ITL),
    Metric("e2e_s", "trtllm_e2e_request_latency_seconds", "histogram", _E2E),
    Metric("queue_s", "trtllm_request_queue_time_seconds", "histogram", _E2E),
)
_LIGHTLLM_METRICS = (
    Metric("waiting", "lightllm_queue_size", "gauge"),
    Metric("running", "lightllm_num_running_reqs", "gauge"),
    Metric("running", "lightllm_batch_current_size", "gauge"),
    Metric("prompt_tokens", "lightllm_prompt_tokens", "counter"),
    Metric("generation_tokens", "lightllm_generation_tokens", "counter"),
    Metric("ttft_s", "lightllm_request_first_token_duration", "histogram", _TTFT),
    Metric("tpot_s", "lightllm_request_mean_time_per_token_duration", "histogram", _ITL),
    Metric("e2e_s", "lightllm_request_duration", "histogram", _E2E),
    Metric("queue_s", "lightllm_request_queue_duration_bucket", "histogram", _E2E),  # the name ends so
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
        paths=GENERATION_PATHS | NATIVE_PATHS,
        labels={"engine": "0"},
        metrics=_VLLM_METRICS,
    ),
    "sglang": EngineKind(
        error_shape="sglang",
        reasoning_field="reasoning_content",
        health_paths=frozenset({"/health", "/ready", "/health_generate"}),
        tokenize_path="/v1/tokenize",
        lora_prefix="",
        paths=GENERATION_PATHS | {"/v1/rerank": "rerank"},
        answers_anyone=True,
        manner="sglang",
        labels={"engine_type": "unified", "tp_rank": "0", "pp_rank": "0", "moe_ep_rank": "0"},
        metrics=_SGLANG_METRICS,
    ),
    "trtllm": EngineKind(
        error_shape="sglang",  # flat as well
        reasoning_field="both",
        version="1.2.1",
        health_paths=frozenset({"/health", "/health_generate"}),
        tokenize_path="/_internal/tokenize",
        model_extras=False,
        known=TRTLLM_FIELDS,
        usage_unasked=True,
        labels={"engine_type": "undefined"},
        metrics=_TRTLLM_METRICS,
        metrics_path="/prometheus/metrics",
        paths={"/v1/chat/completions": "chat", "/v1/completions": "completions"},
    ),
    "lightllm": EngineKind(
        error_shape="lightllm",
        reasoning_field="reasoning_content",
        health_paths=frozenset({"/health", "/healthz", "/liveness", "/readiness"}),
        model_extras=False,
        bad_request=417,
        answers_anyone=True,
        metrics=_LIGHTLLM_METRICS,
        paths={"/v1/chat/completions": "chat", "/v1/completions": "completions"},
    ),
    "mnn": EngineKind(
        error_shape="string",
        reasoning_field="reasoning",
        model_extras=False,
        answers_anyone=True,
        hears_messages_only=True,
        manner="mnn",
        aborts=False,
        slots=1,
        models=("ModelScope/MNN/Qwen2.5-0.5B-Instruct",),
        paths={"/chat/completions": "chat", "/v1/chat/completions": "chat"},
    ),
    "openai": EngineKind(
        error_shape="openai", reasoning_field="reasoning_content", model_extras=False, null_usage=True
    ),
}
