"""trtllm-serve, TensorRT-LLM's own OpenAI server: one unknown field anywhere in a request is HTTP 400.

So the allow-list goes down into `stream_options` and `tools`, and grammars are types of `response_format`.
For TensorRT-LLM behind Triton see triton.py. Source: TensorRT-LLM `serve/openai_protocol.py` (1.2 and after).
"""

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from gateway.backends.base import Patience
from gateway.backends.capabilities import Adapters, Capabilities, EngineMetrics, Shape, Tested
from gateway.backends.constraint import Constraint, ConstraintKind, alternatives
from gateway.backends.dialect import CONSTRAINTS, Fields, decoded, is_plain, present, raw, take_constraint
from gateway.backends.openai_http import OpenAIHTTP
from gateway.core.call import Call, Endpoint
from gateway.core.errors import InvalidRequest, ModelNotFound
from gateway.core.openai import OPENAI_FIELDS
from gateway.core.replica import Probe, Replica

_EXTENSIONS = {
    "top_k", "min_p", "repetition_penalty", "length_penalty", "ignore_eos", "min_tokens", "stop_token_ids",
    "include_stop_str_in_output", "skip_special_tokens", "spaces_between_special_tokens", "use_beam_search",
    "truncate_prompt_tokens", "add_special_tokens", "structured_outputs", "priority",
}  # fmt: skip
_CHAT = {
    "chat_template_kwargs", "add_generation_prompt", "documents", "cache_salt", "thinking_token_budget", "echo",
}  # fmt: skip
_UNKNOWN = {"safety_identifier", "parallel_tool_calls", "prompt_cache_key"}
_SPECIAL = CONSTRAINTS | {"stream_options", "tools", "top_k", "priority", "max_tokens"}
# https://nvidia.github.io/TensorRT-LLM/features/quantization.html; generations: ModelOpt's support matrix.
_SCHEMES = {
    "DENSE": "GPU",
    "W4A16": "GPU",
    "W4A16_ASYM": "GPU",
    "FP8": "GPU from Ada on",
    "FP8_DYNAMIC": "GPU from Ada on",
    "FP8_BLOCK": "Hopper and Blackwell GPU",
    "NVFP4": "Blackwell GPU",
    "MXFP4": "Hopper and Blackwell GPU",
    "KV_FP8": "GPU from Ada on",
}
PRIORITY_STEPS = 20
"""From the least to the most urgent: -10 .. 10 becomes 0 .. 1."""


class TRTLLM(OpenAIHTTP):
    kind: ClassVar[str] = "trtllm"
    probe_path: ClassVar[str] = "/health"
    usage_wish: ClassVar[msgspec.Raw] = msgspec.Raw(b'{"include_usage":true,"continuous_usage_stats":false}')
    capabilities: ClassVar[Capabilities] = Capabilities(
        tested=Tested.CONTRACT,
        constraints=frozenset(ConstraintKind),
        tools=True,
        vision=True,
        logprobs=True,
        top_logprobs=20,
        adapters=Adapters.DYNAMIC,
        quantization=frozenset({"modelopt", "fp8", "nvfp4", "awq", "gptq", "mxfp4"}),
        schemes=_SCHEMES,
        shapes=frozenset({Shape.SPARSE_24}),  # ModelOpt's, on Ampere and later
        metrics=EngineMetrics(
            "/prometheus/metrics",  # /metrics empties a buffer each time it is read
            "trtllm_num_requests_waiting",
            "trtllm_num_requests_running",
            "trtllm_kv_cache_utilization",
        ),
    )
    fields: ClassVar[Mapping[Endpoint, frozenset[str]]] = {
        Endpoint.CHAT: OPENAI_FIELDS[Endpoint.CHAT] - {"safety_identifier", "parallel_tool_calls"}
        | _EXTENSIONS
        | _CHAT,
        Endpoint.COMPLETIONS: OPENAI_FIELDS[Endpoint.COMPLETIONS] - {"suffix", "logprobs"} | _EXTENSIONS,
    }

    def __init__(self, patience: Patience, checkpoint: Path | None = None) -> None:
        super().__init__(patience, checkpoint)
        self._adapters: dict[str, dict[str, object]] = {}  # name -> `lora_request`
        self._tried: dict[str, dict[str, str]] = {}  # replica -> names it has answered with, and their paths

    def upstream_model(self, replica: Replica, call: Call) -> str:  # noqa: ARG002
        return replica.served_model

    def dialect(self, call: Call, fields: Fields) -> Fields:
        if is_plain(fields, _SPECIAL) and call.adapter is None:
            return fields
        changed = present(fields)
        if call.adapter is not None:
            changed["lora_request"] = raw(self._adapter(call.adapter))
        wanted = take_constraint(call, changed, self.kind, self.capabilities)
        if wanted is not None:
            changed["response_format"] = raw(_spelled(wanted))
        if "max_completion_tokens" in changed:
            changed.pop("max_tokens", None)  # two names of one field: the second would be an unknown one
        if decoded(changed, "top_k") == -1:
            changed["top_k"] = raw(0)  # its word for "off"
        if "priority" in changed:
            changed["priority"] = raw(_priority(decoded(changed, "priority")))
        if "tools" in changed:
            changed["tools"] = raw([_tool(tool) for tool in decoded(changed, "tools")])
        options = decoded(changed, "stream_options")
        if options is not None:  # ours replaces it when the client did not ask for usage
            changed["stream_options"] = raw(_stream_options(options))
        return changed

    # ---- adapters: named, with their path, in every request ----

    def _adapter(self, name: str) -> dict[str, object]:
        if name not in self._adapters:
            raise ModelNotFound(f"The adapter {name!r} was taken away.", param="model")
        return self._adapters[name]

    async def load_adapter(self, replica: Replica, name: str, path: str) -> None:
        """The engine reads it with the first request that names it: this is one, of one token."""
        number = zlib.crc32(f"{name}\0{path}".encode()) % 2**31 or 1  # alike in every gateway, and new for a new path
        wanted: dict[str, object] = {"lora_name": name, "lora_int_id": number, "lora_path": path}
        order = {"model": replica.served_model, "prompt": "Hello", "max_tokens": 1, "lora_request": wanted}
        await self._operate(replica, "/v1/completions", order, self.patience.adapter_timeout_s)
        self._adapters[name] = wanted
        self._tried.setdefault(replica.name, {})[name] = path

    async def unload_adapter(self, replica: Replica, name: str) -> None:
        """Nobody asks for it any more; the engine drops it when it needs the room."""
        self._tried.get(replica.name, {}).pop(name, None)
        if not any(name in tried for tried in self._tried.values()):
            self._adapters.pop(name, None)

    async def probe(self, replica: Replica) -> Probe:
        """With the adapters that it has answered with since it came up: its own list of models does not have them."""
        probe = await super().probe(replica)
        if not (probe.up or replica.is_ready):  # one slow probe of a busy engine is no reason to try it again
            self._tried.pop(replica.name, None)
        if probe.models is not None:
            for name, path in self._tried.get(replica.name, {}).items():
                probe.models[name] = {"id": name, "root": path, "parent": replica.served_model}
        return probe


def _priority(urgency: int) -> float:
    """The gateway's integer, 0 is normal and more is sooner, as a share of 1."""
    most = PRIORITY_STEPS // 2
    return 0.5 + min(max(urgency, -most), most) / PRIORITY_STEPS


def _stream_options(options: dict[str, Any]) -> dict[str, bool]:
    """Both are on by default there, usage in every event included."""
    return {name: bool(options.get(name)) for name in ("include_usage", "continuous_usage_stats")}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """Without `strict`, which it does not know. Raises InvalidRequest when the tool is none of the known kind."""
    function = tool.get("function")
    if not isinstance(function, dict):
        raise InvalidRequest("A tool must be {type: function, function: {...}}.", param="tools")
    known = {key: function[key] for key in ("name", "description", "parameters") if function.get(key) is not None}
    return {"type": "function", "function": known}


def _spelled(wanted: Constraint) -> dict[str, object]:
    match wanted.kind:
        case ConstraintKind.JSON_OBJECT:
            return {"type": "json_object"}
        case ConstraintKind.JSON:
            return {"type": "json", "schema": wanted.value}
        case ConstraintKind.CHOICE:
            return {"type": "regex", "regex": alternatives(wanted.value)}
        case ConstraintKind.REGEX:
            return {"type": "regex", "regex": wanted.value}
        case ConstraintKind.GRAMMAR:
            return {"type": "ebnf", "ebnf": wanted.value}
