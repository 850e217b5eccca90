"""The embedded engine (services/openvino): OpenAI plus the extension fields it acts on. No embeddings.

tests/services/test_openvino_fields.py holds this table against the engine's own.
"""

from collections.abc import Mapping
from typing import ClassVar

from gateway.backends.capabilities import Capabilities, EngineMetrics, Tested
from gateway.backends.constraint import ConstraintKind
from gateway.backends.openai_http import OpenAIHTTP
from gateway.core.call import Endpoint
from gateway.core.openai import OPENAI_FIELDS

_EXTENSIONS = {
    "top_k", "min_p", "repetition_penalty", "ignore_eos", "min_tokens", "stop_token_ids",
    "include_stop_str_in_output", "structured_outputs", "skip_special_tokens", "add_special_tokens",
}  # fmt: skip
# Measured, with what each loses: docs/compression-served.md.
_SCHEMES = dict.fromkeys(("DENSE", "GGUF_F16", "GGUF_Q8_0", "GGUF_Q4_0", "GGUF_Q4_1", "IR_INT8", "IR_INT4"), "CPU")
_NOT_YET = {"logit_bias", "suffix", "best_of", "reasoning_effort"}


class OpenVINO(OpenAIHTTP):
    kind: ClassVar[str] = "openvino"
    probe_path: ClassVar[str] = "/health"
    capabilities: ClassVar[Capabilities] = Capabilities(
        tested=Tested.CPU,
        constraints=frozenset(ConstraintKind),
        tools=True,
        logprobs=True,
        top_logprobs=20,
        quantization=frozenset({"gguf", "openvino"}),  # containers, not what is in config.json
        schemes=_SCHEMES,
        architectures=frozenset({"LlamaForCausalLM", "Qwen3ForCausalLM"}),
        metrics=EngineMetrics("/metrics", running="penstock_engine_num_requests_running"),
    )
    fields: ClassVar[Mapping[Endpoint, frozenset[str]]] = {
        Endpoint.CHAT: OPENAI_FIELDS[Endpoint.CHAT] - _NOT_YET | _EXTENSIONS | {"chat_template_kwargs"},
        Endpoint.COMPLETIONS: OPENAI_FIELDS[Endpoint.COMPLETIONS] - _NOT_YET | _EXTENSIONS,
    }
