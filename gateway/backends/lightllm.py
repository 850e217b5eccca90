"""LightLLM's OpenAI routes: they ignore what they do not know, and draw samples only when told to.

`do_sample` is sent with every request: older releases are greedy without it, whatever the temperature. Regular
expressions and grammars exist on its native route only, which has no chat template, so here they are refused.
Source: LightLLM `server/api_models.py`, `server/api_openai.py`.
"""

from collections.abc import Mapping
from typing import ClassVar

from gateway.backends.capabilities import Capabilities, EngineMetrics, Tested
from gateway.backends.constraint import ConstraintKind
from gateway.backends.dialect import CONSTRAINTS, Fields, decoded, present, raw, schema_format, take_constraint
from gateway.backends.openai_http import OpenAIHTTP
from gateway.core.call import Call, Endpoint

_SAMPLING = frozenset({
    "model", "stream", "stream_options", "max_tokens", "temperature", "top_p", "frequency_penalty", "presence_penalty",
    "n", "stop", "seed", "user", "response_format", "structured_outputs", "top_k", "repetition_penalty", "ignore_eos",
})  # fmt: skip
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's; LightLLM's own is 16 or 16,384, by release


class LightLLM(OpenAIHTTP):
    kind: ClassVar[str] = "lightllm"
    probe_path: ClassVar[str] = "/health"
    capabilities: ClassVar[Capabilities] = Capabilities(
        tested=Tested.CONTRACT,
        constraints=frozenset({ConstraintKind.JSON_OBJECT, ConstraintKind.JSON}),
        tools=True,
        vision=True,
        logprobs=False,
        quantization=frozenset({"awq", "gptq", "fp8", "compressed-tensors"}),
        metrics=EngineMetrics("/metrics", "lightllm_queue_size", "lightllm_num_running_reqs"),
    )
    fields: ClassVar[Mapping[Endpoint, frozenset[str]]] = {
        Endpoint.CHAT: _SAMPLING
        | {"messages", "max_completion_tokens", "tools", "tool_choice", "parallel_tool_calls", "chat_template_kwargs"},
        Endpoint.COMPLETIONS: _SAMPLING | {"prompt", "echo"},
    }

    def dialect(self, call: Call, fields: Fields) -> Fields:
        changed = present(fields)
        if not CONSTRAINTS.isdisjoint(changed):
            wanted = take_constraint(call, changed, self.kind, self.capabilities)
            if wanted is not None:
                is_schema = wanted.kind is ConstraintKind.JSON
                changed["response_format"] = raw(schema_format(wanted) if is_schema else {"type": "json_object"})
        changed["do_sample"] = raw(decoded(changed, "temperature") != 0)
        if "max_completion_tokens" in changed:
            changed["max_tokens"] = changed["max_completion_tokens"]  # older releases know only this name
        elif call.endpoint is Endpoint.COMPLETIONS:
            changed.setdefault("max_tokens", raw(DEFAULT_COMPLETION_TOKENS))
        return changed
