"""The OpenAI request fields the gateway knows, with the type and range each must have.

Values are checked, then travel as the client's own bytes: nothing is re-encoded. A field that is in
none of these tables is refused by name, because every engine would silently ignore it. Which engine
takes which of them is the backend's business (backends/*.py).

Sources: OpenAI API reference (openapi 2.3.0); Anthropic's Messages (anthropic-python 2.12); extension fields, rerank
and score: vLLM 0.33 `protocol.py`.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw

from gateway.core.call import Endpoint

Positive = Annotated[int, Meta(ge=1)]
Natural = Annotated[int, Meta(ge=0)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Stop = str | Annotated[list[str], Meta(max_length=16)]
Items = Annotated[list[Raw], Meta(min_length=1)]
Model = Annotated[str, Meta(min_length=1, max_length=512)]


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """`stream_options`; legal only together with `stream: true`."""

    include_usage: bool = False
    include_obfuscation: bool = False
    continuous_usage_stats: bool = False


class Named(msgspec.Struct):
    name: Annotated[str, Meta(min_length=1)]


class JsonSchema(msgspec.Struct):
    name: str
    schema: dict[str, Raw] | None = None


class ResponseFormat(msgspec.Struct):
    type: str
    json_schema: JsonSchema | None = None


class Tool(msgspec.Struct):
    type: str
    function: Named | None = None


class Kind(msgspec.Struct):
    """What is told apart by its `type`."""

    type: str | None = None


class TextConfig(msgspec.Struct):
    """`text` of Responses, `output_config` of Messages, `reasoning` of Responses: what each has of these."""

    format: Kind | None = None
    verbosity: str | None = None
    effort: str | None = None


_SAMPLING: dict[str, Any] = {
    "model": Model,
    "stream": bool | None,
    "stream_options": StreamOptions | None,
    "max_tokens": Positive | None,
    "temperature": Annotated[float, Meta(ge=0, le=2)] | None,
    "top_p": Annotated[float, Meta(gt=0, le=1)] | None,
    "frequency_penalty": Penalty | None,
    "presence_penalty": Penalty | None,
    "n": Annotated[int, Meta(ge=1, le=128)] | None,
    "stop": Stop | None,
    "seed": int | None,
    "logit_bias": dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None,
    "user": str | None,
}
_CHAT: dict[str, Any] = _SAMPLING | {
    "messages": Annotated[list[dict[str, Raw]], Meta(min_length=1)],
    "max_completion_tokens": Positive | None,
    "logprobs": bool | None,
    "top_logprobs": Annotated[int, Meta(ge=0, le=20)] | None,
    "response_format": ResponseFormat | None,
    "tools": list[Tool] | None,
    "tool_choice": str | dict[str, Raw] | None,
    "parallel_tool_calls": bool | None,
    "reasoning_effort": str | None,
    "safety_identifier": str | None,
}
_COMPLETIONS: dict[str, Any] = _SAMPLING | {
    "prompt": str | Items,
    "suffix": str | None,
    "best_of": Annotated[int, Meta(ge=1, le=20)] | None,
    "echo": bool | None,
    "logprobs": Annotated[int, Meta(ge=0, le=5)] | None,
    "response_format": ResponseFormat | None,
    "max_tokens": Natural | None,  # 0 with echo scores the prompt
}
_EMBEDDINGS: dict[str, Any] = {
    "model": Model,
    "input": str | Annotated[list[str | int | list[int]], Meta(min_length=1)],  # no objects: SGLang fetches their URLs
    "encoding_format": Annotated[str, Meta(pattern="^(float|base64)$")] | None,
    "dimensions": Positive | None,
    "user": str | None,
}

# Not OpenAI's: what the engines add on top, typed where a wrong value would be a silent surprise.
# `priority`: 0 is normal, more is sooner, on every engine; backends turn it round where the engine does.
EXTENSIONS: dict[str, Any] = {
    "top_k": Annotated[int, Meta(ge=-1)] | None,
    "min_p": Annotated[float, Meta(ge=0, le=1)] | None,
    "repetition_penalty": Annotated[float, Meta(gt=0)] | None,
    "length_penalty": float | None,
    "ignore_eos": bool | None,
    "min_tokens": Natural | None,
    "stop_token_ids": list[int] | None,
    "include_stop_str_in_output": bool | None,
    "skip_special_tokens": bool | None,
    "spaces_between_special_tokens": bool | None,
    "use_beam_search": bool | None,
    "structured_outputs": dict[str, Raw] | None,
    "truncate_prompt_tokens": int | None,
    "prompt_logprobs": int | None,
    "allowed_token_ids": list[int] | None,
    "bad_words": list[str] | None,
    "priority": int | None,
    "cache_salt": str | None,
    "return_token_ids": bool | None,
    "return_tokens_as_token_ids": bool | None,
    "add_special_tokens": bool | None,
}
CHAT_EXTENSIONS: dict[str, Any] = {
    "chat_template_kwargs": dict[str, Raw] | None,
    "add_generation_prompt": bool | None,
    "continue_final_message": bool | None,
    "documents": list[Raw] | None,
    "include_reasoning": bool | None,
    "thinking_token_budget": Natural | None,
    "echo": bool | None,
}

Metadata = Annotated[dict[str, Annotated[str, Meta(max_length=512)]], Meta(max_length=16)]
Texts = str | Annotated[list[str], Meta(min_length=1)]

_RESPONSES: dict[str, Any] = {
    "model": Model,
    "input": str | Items,
    "instructions": str | None,
    "max_output_tokens": Positive | None,
    "metadata": Metadata | None,
    "tools": list[Kind] | None,
    "tool_choice": str | dict[str, Raw] | None,
    "parallel_tool_calls": bool | None,
    "text": TextConfig | None,
    "reasoning": TextConfig | None,
    "previous_response_id": str | None,
    "store": bool | None,
    "include": list[str] | None,
    "truncation": str | None,
    "top_logprobs": Annotated[int, Meta(ge=0, le=20)] | None,
    "stream": bool | None,
    "stream_options": StreamOptions | None,
    "temperature": Annotated[float, Meta(ge=0, le=2)] | None,
    "top_p": Annotated[float, Meta(gt=0, le=1)] | None,
    "service_tier": str | None,
    "prompt_cache_key": str | None,
    "user": str | None,
    "safety_identifier": str | None,
    "background": bool | None,
    "conversation": Raw,
    "prompt": Raw,
    "max_tool_calls": Raw,
    "context_management": Raw,
    "moderation": Raw,
}
RESPONSES_EXTENSIONS: dict[str, Any] = (
    {name: _CHAT[name] for name in ("frequency_penalty", "presence_penalty", "logit_bias", "seed", "stop")}
    | EXTENSIONS
    | CHAT_EXTENSIONS
)
"""Beyond OpenAI's Responses: chat fields that say the same there."""

_MESSAGES: dict[str, Any] = {
    "model": Model,
    "messages": Annotated[list[dict[str, Raw]], Meta(min_length=1)],
    "max_tokens": Positive,
    "system": str | list[dict[str, Raw]] | None,
    "metadata": dict[str, Raw] | None,
    "stop_sequences": list[str] | None,
    "stream": bool | None,
    "temperature": Annotated[float, Meta(ge=0, le=1)] | None,
    "top_p": Annotated[float, Meta(ge=0, le=1)] | None,
    "top_k": Natural | None,
    "tools": list[Kind] | None,
    "tool_choice": Kind | None,
    "thinking": Kind | None,
    "output_config": TextConfig | None,
    "service_tier": str | None,
    "container": Raw,
    "context_management": Raw,
    "mcp_servers": Raw,
}
_RERANK: dict[str, Any] = {
    "model": Model,
    "query": str,
    "documents": Annotated[list[str], Meta(min_length=1)],
    "top_n": Natural | None,
    "return_documents": bool | None,
    "instruction": str | None,
    "truncate_prompt_tokens": int | None,
    "max_tokens_per_doc": Natural | None,
    "max_tokens_per_query": Natural | None,
    "priority": int | None,
    "user": str | None,
}
_SCORE: dict[str, Any] = {
    "model": Model,
    **dict.fromkeys(("text_1", "text_2", "queries", "documents", "items", "query"), Texts),
    "label_token_ids": list[int] | None,
    "apply_softmax": bool | None,
    "item_first": bool | None,
    **{name: _RERANK[name] for name in ("instruction", "truncate_prompt_tokens", "max_tokens_per_doc", "priority")},
    "max_tokens_per_query": Natural | None,
    "user": str | None,
}

FIELD_TYPES: dict[Endpoint, dict[str, Any]] = {
    Endpoint.CHAT: _CHAT | EXTENSIONS | CHAT_EXTENSIONS,
    Endpoint.COMPLETIONS: _COMPLETIONS | EXTENSIONS,
    Endpoint.EMBEDDINGS: _EMBEDDINGS | {"truncate_prompt_tokens": int | None, "priority": int | None},
    Endpoint.RESPONSES: _RESPONSES | RESPONSES_EXTENSIONS,
    Endpoint.MESSAGES: _MESSAGES,
    Endpoint.COUNT_TOKENS: _MESSAGES,
    Endpoint.RERANK: _RERANK,
    Endpoint.SCORE: _SCORE,
}
OPENAI_FIELDS: dict[Endpoint, frozenset[str]] = {
    Endpoint.CHAT: frozenset(_CHAT),
    Endpoint.COMPLETIONS: frozenset(_COMPLETIONS),
    Endpoint.EMBEDDINGS: frozenset(_EMBEDDINGS),
}
IDENTIFIERS = frozenset({"user", "safety_identifier", "prompt_cache_key"})
"""Fields that name the caller or hint at a cache, and never change an answer: accepted everywhere, sent where taken."""
REQUIRED: dict[Endpoint, tuple[str, ...]] = {
    Endpoint.CHAT: ("model", "messages"),
    Endpoint.COMPLETIONS: ("model", "prompt"),
    Endpoint.EMBEDDINGS: ("model", "input"),
    Endpoint.RESPONSES: ("model", "input"),
    Endpoint.MESSAGES: ("model", "messages", "max_tokens"),
    Endpoint.COUNT_TOKENS: ("model", "messages"),
    Endpoint.RERANK: ("model", "query", "documents"),
    Endpoint.SCORE: ("model",),
}
