"""SGLang 0.5: OpenAI plus its own sampling fields; grammars, adapters and stop texts spelled its own way.

An unknown model's name is answered by the base model, so an adapter is always asked for as `base:adapter`. Header
overrides (`x-override-*`) never reach it: the gateway writes its own heads.
Source: SGLang 0.5.23 `srt/entrypoints/openai/protocol.py`, `srt/entrypoints/http_server.py`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import msgspec

from gateway.backends.base import Patience
from gateway.backends.capabilities import Adapters, Capabilities, EngineMetrics, Tested
from gateway.backends.constraint import Constraint, ConstraintKind, alternatives
from gateway.backends.dialect import CONSTRAINTS, Fields, is_plain, present, raw, schema_format, take_constraint
from gateway.backends.errors import NOT_JSON
from gateway.backends.openai_http import OpenAIHTTP
from gateway.core.call import Call, Endpoint, Usage
from gateway.core.errors import EngineRefused, InvalidRequest, PenstockError, UpstreamError
from gateway.core.openai import OPENAI_FIELDS
from gateway.core.replica import Probe, Replica

_EXTENSIONS = {
    "top_k", "min_p", "repetition_penalty", "ignore_eos", "min_tokens", "stop_token_ids", "skip_special_tokens",
    "include_stop_str_in_output", "structured_outputs", "priority", "cache_salt", "return_token_ids",
}  # fmt: skip
_QUANTIZATION = frozenset({
    "awq", "awq_marlin", "gptq", "gptq_marlin", "fp8", "mxfp4", "modelopt", "modelopt_fp8", "modelopt_fp4",
    "compressed-tensors", "bitsandbytes", "gguf", "w8a8_int8", "w8a8_fp8", "auto-round",
})  # fmt: skip
# `get_min_capability` in `srt/layers/quantization/compressed_tensors/schemes/`. On CPU its quantized kernels want AMX
# and a wheel of its own; the GPU wheel's Python on CPU serves dense weights.
_SCHEMES = {
    "DENSE": "CPU and GPU",
    "W4A16": "GPU",
    "W4A16_ASYM": "GPU",
    "W8A16": "GPU",
    "W8A8": "GPU",
    "FP8": "GPU",
    "FP8_DYNAMIC": "GPU",
    "FP8_BLOCK": "GPU",
    "NVFP4": "Blackwell GPU",
    "NVFP4A16": "GPU",
    "KV_FP8": "GPU",
}
_SPECIAL = CONSTRAINTS | {"seed", "include_stop_str_in_output", "instruction"}


class SGLang(OpenAIHTTP):
    kind: ClassVar[str] = "sglang"
    probe_path: ClassVar[str] = "/ready"  # /health generates a token and takes a second
    has_extra_events: ClassVar[bool] = True  # `sglext`
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
        metrics=EngineMetrics("/metrics", "sglang:num_queue_reqs", "sglang:num_running_reqs", "sglang:token_usage"),
    )
    fields: ClassVar[Mapping[Endpoint, frozenset[str]]] = {
        Endpoint.CHAT: OPENAI_FIELDS[Endpoint.CHAT] - {"safety_identifier"}
        | _EXTENSIONS
        | {"chat_template_kwargs", "continue_final_message"},
        Endpoint.COMPLETIONS: OPENAI_FIELDS[Endpoint.COMPLETIONS] - {"best_of", "suffix"} | _EXTENSIONS,
        Endpoint.EMBEDDINGS: OPENAI_FIELDS[Endpoint.EMBEDDINGS] | {"priority"},
        Endpoint.RERANK: frozenset({"model", "query", "documents", "top_n", "return_documents", "instruction"}),
        Endpoint.SCORE: frozenset({"model", "query", "items", "label_token_ids", "apply_softmax", "item_first"}),
    }

    def upstream_model(self, replica: Replica, call: Call) -> str:
        return f"{replica.served_model}:{call.adapter}" if call.adapter else replica.served_model

    def __init__(self, patience: Patience, checkpoint: Path | None = None) -> None:
        super().__init__(patience, checkpoint)
        self._heeds_seeds: dict[str, bool] = {}  # by replica

    def dialect(self, call: Call, fields: Fields) -> Fields:
        if is_plain(fields, _SPECIAL):
            return fields
        changed = present(fields)
        if "seed" in changed and not (self._heeds_seeds and all(self._heeds_seeds.values())):
            raise InvalidRequest(
                "The engine (sglang) heeds 'seed' only when started with --enable-deterministic-inference.",
                param="seed",
                code="unsupported_parameter",
            )
        wanted = take_constraint(call, changed, self.kind, self.capabilities)
        if wanted is not None:
            name, value = _spelled(wanted)
            changed[name] = raw(value)
        if "include_stop_str_in_output" in changed:
            changed["no_stop_trim"] = changed.pop("include_stop_str_in_output")
        if "instruction" in changed:
            changed["instruct"] = changed.pop("instruction")
        return changed

    def answer(self, call: Call, body: bytes) -> bytes:
        """Its rerank is a bare list."""
        if call.endpoint is not Endpoint.RERANK:
            return body
        ranked = msgspec.json.decode(body, type=list[_Ranked])
        results: list[dict[str, object]] = []
        for one in ranked:
            document = {} if one.document is None else {"document": {"text": one.document}}
            results.append({"index": one.index, "relevance_score": one.score, **document})
        tokens = sum(one.meta_info.prompt_tokens for one in ranked if one.meta_info)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        rerank_id = f"rerank-{call.request_id}"
        return msgspec.json.encode({"id": rerank_id, "model": call.model, "usage": usage, "results": results})

    async def probe(self, replica: Replica) -> Probe:
        """Of one that comes up it is asked once whether it heeds seeds: without a flag it takes and ignores them."""
        probe = await super().probe(replica)
        if not probe.up:
            if not replica.is_ready:  # one slow probe of a busy engine changes nothing
                self._heeds_seeds.pop(replica.name, None)
        elif replica.name not in self._heeds_seeds:
            self._heeds_seeds[replica.name] = await self._is_deterministic(replica)
        return probe

    async def _is_deterministic(self, replica: Replica) -> bool:
        """False also when it does not say."""
        try:
            status, body = await self._get(replica, "/server_info")
            return status == 200 and msgspec.json.decode(body, type=_ServerInfo).enable_deterministic_inference
        except (PenstockError, *NOT_JSON):
            return False

    async def load_adapter(self, replica: Replica, name: str, path: str) -> None:
        await self._change(replica, "/load_lora_adapter", {"lora_name": name, "lora_path": path})

    async def unload_adapter(self, replica: Replica, name: str) -> None:
        """One that is not there is no error."""
        probe = await self.probe(replica)
        if probe.models is None:
            raise UpstreamError(f"The engine does not say which adapters it has: {probe.reason}.")
        if name in probe.models:
            await self._change(replica, "/unload_lora_adapter", {"lora_name": name})

    async def _change(self, replica: Replica, path: str, order: dict[str, object]) -> None:
        """Raises EngineRefused also for a failure inside HTTP 200."""
        body = await self._operate(replica, path, order, self.patience.adapter_timeout_s)
        try:
            answer = msgspec.json.decode(body, type=_Changed)
        except NOT_JSON as error:
            raise UpstreamError(f"The engine's answer is not the JSON it should be: {error}.") from None
        if not answer.success:
            raise EngineRefused(400, answer.error_message or "the engine gave no reason", type="invalid_request_error")


class _Ranked(msgspec.Struct):
    score: float
    index: int
    document: str | None = None
    meta_info: Usage | None = None


class _ServerInfo(msgspec.Struct):
    enable_deterministic_inference: bool = False


class _Changed(msgspec.Struct):
    success: bool = True
    error_message: str | None = None


def _spelled(wanted: Constraint) -> tuple[str, object]:
    match wanted.kind:
        case ConstraintKind.JSON_OBJECT:
            return "response_format", {"type": "json_object"}
        case ConstraintKind.JSON:
            return "response_format", schema_format(wanted)
        case ConstraintKind.CHOICE:
            return "regex", alternatives(wanted.value)
        case ConstraintKind.REGEX:
            return "regex", wanted.value
        case ConstraintKind.GRAMMAR:
            return "ebnf", wanted.value
