"""vLLM 0.32-0.33: OpenAI plus its own sampling and structured-output fields.

Left out on purpose: `best_of` and `guided_*`, which vLLM accepts and ignores.
Source: vLLM `entrypoints/openai/*/protocol.py`.
"""

from collections.abc import Mapping
from typing import ClassVar

from gateway.backends.capabilities import Adapters, Capabilities, EngineMetrics, Tested
from gateway.backends.constraint import ConstraintKind
from gateway.backends.dialect import Fields, decoded, raw
from gateway.backends.openai_http import OpenAIHTTP
from gateway.core.call import Call, Endpoint
from gateway.core.errors import EngineRefused
from gateway.core.openai import CHAT_EXTENSIONS, EXTENSIONS, OPENAI_FIELDS
from gateway.core.replica import Replica

_CHAT = OPENAI_FIELDS[Endpoint.CHAT] - {"safety_identifier"}
_COMPLETIONS = OPENAI_FIELDS[Endpoint.COMPLETIONS] - {"best_of", "suffix"}
_RESPONSES = frozenset({
    "model", "input", "instructions", "max_output_tokens", "metadata", "tools", "tool_choice", "parallel_tool_calls",
    "text", "reasoning", "store", "include", "truncation", "top_logprobs", "stream", "temperature", "top_p", "user",
    "top_k", "min_p", "frequency_penalty", "presence_penalty", "logit_bias", "include_reasoning", "priority",
    "cache_salt", "skip_special_tokens", "include_stop_str_in_output",
})  # fmt: skip
_MESSAGES = frozenset({
    "model", "messages", "max_tokens", "system", "stop_sequences", "stream", "temperature", "top_p", "top_k", "tools",
    "tool_choice", "thinking", "output_config", "metadata",
})  # fmt: skip
_SCORING = frozenset({
    "model", "instruction", "truncate_prompt_tokens", "max_tokens_per_doc", "max_tokens_per_query", "priority",
})  # fmt: skip

_QUANTIZATION = frozenset({  # the first four run on CPU too
    "compressed-tensors", "gptq", "awq", "fp8", "modelopt", "modelopt_fp4", "mxfp4", "bitsandbytes", "torchao", "quark",
    "auto-round",
})  # fmt: skip


# Kernels by platform: `model_executor/kernels/linear/__init__.py`, and what each one's `is_supported` asks for; GPU
# generations: https://docs.vllm.ai/en/v0.32.0/features/quantization/. Weights of 2 and 3 bits have none of its own.
_SCHEMES = {
    "DENSE": "CPU and GPU",
    "W4A16": "CPU and GPU",
    "W4A16_ASYM": "CPU and GPU",
    "W8A16": "GPU",
    "W8A8": "CPU, and GPU before Blackwell",
    "FP8": "CPU, emulated and slow, and GPU",
    "FP8_DYNAMIC": "CPU, emulated and slow, and GPU",
    "FP8_BLOCK": "CPU with AMX, and GPU",
    "NVFP4": "GPU, in 4 bits on Blackwell",
    "NVFP4A16": "GPU",
    "MXFP4": "GPU, in 4 bits on Blackwell",
    "MXFP4A16": "GPU",
    "KV_FP8": "CPU and GPU",
}


class VLLM(OpenAIHTTP):
    kind: ClassVar[str] = "vllm"
    probe_path: ClassVar[str] = "/health"
    capabilities: ClassVar[Capabilities] = Capabilities(
        tested=Tested.CPU,
        constraints=frozenset(ConstraintKind),
        tools=True,
        vision=True,
        logprobs=True,
        top_logprobs=20,
        adapters=Adapters.DYNAMIC,
        quantization=_QUANTIZATION,
        schemes=_SCHEMES,
        metrics=EngineMetrics(
            "/metrics", "vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc"
        ),
    )
    fields: ClassVar[Mapping[Endpoint, frozenset[str]]] = {
        Endpoint.CHAT: _CHAT | EXTENSIONS.keys() | CHAT_EXTENSIONS.keys(),
        Endpoint.COMPLETIONS: _COMPLETIONS | EXTENSIONS.keys(),
        Endpoint.EMBEDDINGS: OPENAI_FIELDS[Endpoint.EMBEDDINGS] | {"truncate_prompt_tokens", "priority"},
        Endpoint.RESPONSES: _RESPONSES,
        Endpoint.MESSAGES: _MESSAGES,
        Endpoint.COUNT_TOKENS: _MESSAGES,
        Endpoint.RERANK: _SCORING | {"query", "documents", "top_n"},
        Endpoint.SCORE: _SCORING | {"text_1", "text_2", "queries", "documents", "items"},
    }

    def dialect(self, call: Call, fields: Fields) -> Fields:  # noqa: ARG002
        """The gateway's `priority` is larger for sooner, vLLM's smaller."""
        urgency = decoded(fields, "priority")
        return fields if not urgency else {**fields, "priority": raw(-urgency)}

    async def load_adapter(self, replica: Replica, name: str, path: str) -> None:
        """Source: vLLM `entrypoints/serve/lora/api_router.py`; the answer is plain text."""
        order = {"lora_name": name, "lora_path": path}
        try:
            await self._operate(replica, "/v1/load_lora_adapter", order, self.patience.adapter_timeout_s)
        except EngineRefused as error:
            if error.message.strip('"') == "Not Found":  # the framework's own words: there is no such route
                error.message = (
                    "this vLLM does not load adapters at run time; start it with --enable-lora and the environment "
                    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
                )
            raise

    async def unload_adapter(self, replica: Replica, name: str) -> None:
        """Only takes the name off the list: requests that run keep their weights."""
        order = {"lora_name": name}
        try:
            await self._operate(replica, "/v1/unload_lora_adapter", order, self.patience.adapter_timeout_s)
        except EngineRefused as error:
            if error.status != 404:
                raise
