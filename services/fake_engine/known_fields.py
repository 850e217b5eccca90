"""The fields a strict engine takes: trtllm-serve forbids every other, also inside `stream_options` and `tools`.

Apart from the engines' table because it is long. Source: TensorRT-LLM `serve/openai_protocol.py` (1.2 and after).
"""

from dataclasses import dataclass
from typing import Any

import msgspec

from fake_engine.errors import RequestError


@dataclass(frozen=True, slots=True)
class Known:
    """Names by endpoint; `inner`: those inside an object, or inside each object of a list, by its path."""

    fields: dict[str, frozenset[str]]
    inner: dict[str, frozenset[str]]

    def check(self, endpoint: str, body: bytes) -> None:
        """Raises RequestError (400, a bare string) that names the first unknown field; other faults are for others."""
        try:
            value = msgspec.json.decode(body)
        except (msgspec.DecodeError, RecursionError):
            return
        if isinstance(value, dict):
            self._check(value, self.fields[endpoint], "")
            self._check_values(value)

    def _check(self, value: dict[str, Any], known: frozenset[str], path: str) -> None:
        for name in value.keys() - known:
            raise _forbidden(f"{path}{name}")
        for name, inside in value.items():
            names = self.inner.get(f"{path}{name}")
            for each in inside if isinstance(inside, list) else [inside]:
                if names is not None and isinstance(each, dict):
                    self._check(each, names, f"{path}{name}.")

    def _check_values(self, value: dict[str, Any]) -> None:
        priority = value.get("priority")
        if priority is not None and not (isinstance(priority, int | float) and 0 <= priority <= 1):
            raise _refused("priority: Input should be from 0 to 1")
        if isinstance(value.get("top_k"), int) and value["top_k"] < 0:
            raise _refused("require top_k >= 0")
        if "max_tokens" in value and "max_completion_tokens" in value:
            raise _forbidden("max_completion_tokens")
        if value.get("n", 1) is None:
            raise _refused("n: Input should be a valid integer")


def _forbidden(path: str) -> RequestError:
    return _refused(
        f"[{{'type': 'extra_forbidden', 'loc': ('body', '{path}'), 'msg': 'Extra inputs are not permitted'}}]"
    )


def _refused(message: str) -> RequestError:
    return RequestError(400, message, shape="string")


_COMMON = frozenset({
    "model", "frequency_penalty", "logit_bias", "max_tokens", "n", "presence_penalty", "response_format", "seed",
    "stop", "stream", "stream_options", "temperature", "top_p", "user", "best_of", "use_beam_search", "top_k",
    "top_p_min",
    "min_p", "repetition_penalty", "length_penalty", "early_stopping", "stop_token_ids", "include_stop_str_in_output",
    "ignore_eos", "min_tokens", "skip_special_tokens", "spaces_between_special_tokens", "truncate_prompt_tokens",
    "lora_request", "add_special_tokens", "disaggregated_params", "conversation_params", "priority", "echo",
    "prompt_ignore_length", "agent_hierarchy",
})  # fmt: skip
TRTLLM_FIELDS = Known(
    fields={
        "chat": _COMMON
        | {
            "messages", "prompt_token_ids", "logprobs", "top_logprobs", "max_completion_tokens", "tools", "tool_choice",
            "reasoning_effort", "thinking", "thinking_token_budget", "add_generation_prompt", "documents",
            "chat_template", "chat_template_kwargs", "cache_salt", "media_io_kwargs", "mm_processor_kwargs",
        },
        "completions": _COMMON | {"prompt", "logprobs", "suffix", "return_context_logits", "detokenize"},
    },
    inner={
        "stream_options": frozenset({"include_usage", "continuous_usage_stats"}),
        "lora_request": frozenset({"lora_name", "lora_int_id", "lora_path"}),
        "response_format": frozenset({"type", "schema", "json_schema", "regex", "ebnf", "format"}),
        "tools": frozenset({"type", "function"}),
        "tools.function": frozenset({"name", "description", "parameters"}),
    },
)  # fmt: skip
