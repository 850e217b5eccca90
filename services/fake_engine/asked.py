"""What a client asked for: the three generation bodies, read and checked as an engine would.

Only the fields that change the fake's answer are read; sampling fields, stop, logprobs and the like pass unread.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from fake_engine.engines import EndpointName
from fake_engine.errors import RequestError

Positive = Annotated[int, Meta(ge=1)]
Choices = Annotated[int, Meta(ge=1, le=128)]
TokenIds = list[int]


class _StreamOptions(Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class _Message(Struct):
    role: str
    content: str | list[dict[str, Any]] | None = None


class _LoraRequest(Struct):
    lora_name: str
    lora_path: str


class _Generation(Struct, kw_only=True):
    model: str
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: Positive | None = None
    n: Choices | None = None
    ignore_eos: bool = False
    lora_request: _LoraRequest | None = None


class _Chat(_Generation, kw_only=True):
    messages: Annotated[list[_Message], Meta(min_length=1)]
    max_completion_tokens: Positive | None = None


class _Completion(_Generation, kw_only=True):
    prompt: Any


Body = TypeVar("Body", _Chat, _Completion)


class _Embedding(Struct, kw_only=True):
    model: str
    input: Any
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Positive | None = None


class _Conversation(Struct, kw_only=True):
    """Responses and Messages."""

    model: str
    input: str | list[_Message] | None = None
    messages: list[_Message] | None = None
    stream: bool | None = None
    max_tokens: Positive | None = None
    max_output_tokens: Positive | None = None


class _Pairs(Struct, kw_only=True):
    """Rerank and score, in the spellings vLLM takes."""

    model: str
    query: str | None = None
    documents: list[str] | None = None
    queries: str | list[str] | None = None
    items: str | list[str] | None = None
    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """One generation request. `choices` counts prompts x n; `inputs` are texts or token lists (embeddings).

    `lora`: name and path of the adapter that trtllm-serve is told with the request.
    """

    endpoint: EndpointName
    model: str
    last_text: str
    prompt_tokens: int
    stream: bool = False
    include_usage: bool = False
    usage_everywhere: bool = False
    max_tokens: int | None = None
    ignore_eos: bool = False
    choices: int = 1
    inputs: list[str | TokenIds] = field(default_factory=list)
    base64: bool = False
    dimensions: int | None = None
    lora: tuple[str, str] | None = None


def read_body(endpoint: EndpointName, body: bytes, *, usage_unasked: bool = False) -> Asked:
    """`usage_unasked`: what the stream options mean where they say nothing. Raises RequestError (400) for anything
    that is not such a request."""
    try:
        if endpoint == "chat":
            return _chat(_with_defaults(msgspec.json.decode(body, type=_Chat), usage_unasked))
        if endpoint == "completions":
            return _completion(_with_defaults(msgspec.json.decode(body, type=_Completion), usage_unasked))
        if endpoint in ("responses", "messages", "count_tokens"):
            return _conversation(endpoint, msgspec.json.decode(body, type=_Conversation))
        if endpoint in ("rerank", "score"):
            return _pairs(endpoint, msgspec.json.decode(body, type=_Pairs))
        return _embedding(msgspec.json.decode(body, type=_Embedding))
    except (msgspec.DecodeError, RecursionError) as error:
        raise RequestError(400, f"bad request body: {error}") from None


def _with_defaults(body: Body, usage_unasked: bool) -> Body:
    options = body.stream_options
    if options is not None and usage_unasked:
        options.include_usage = options.include_usage is not False
        options.continuous_usage_stats = options.continuous_usage_stats is not False
    return body


def _chat(body: _Chat) -> Asked:
    texts = [_text(message.content) for message in body.messages]
    users = [text for text, message in zip(texts, body.messages, strict=True) if message.role == "user"]
    return _generation("chat", body, list(texts), users[-1] if users else "", body.n or 1, body.max_completion_tokens)


def _conversation(endpoint: EndpointName, body: _Conversation) -> Asked:
    given = body.messages if endpoint != "responses" else body.input
    if not given:
        raise RequestError(400, "nothing was said")
    texts = [given] if isinstance(given, str) else [_text(message.content) for message in given]
    return Asked(
        endpoint=endpoint, model=body.model, last_text=texts[-1], prompt_tokens=sum(map(count_tokens, texts)),
        stream=bool(body.stream), include_usage=True, max_tokens=body.max_output_tokens or body.max_tokens,
    )  # fmt: skip


def _pairs(endpoint: EndpointName, body: _Pairs) -> Asked:
    """`inputs`: what is compared with the first of them."""
    first = body.query or body.queries or body.text_1
    others = body.documents or body.items or body.text_2
    if first is None or others is None:
        raise RequestError(400, "two sides are needed")
    firsts, seconds = ([one] if isinstance(one, str) else one for one in (first, others))
    inputs: list[str | TokenIds] = [*firsts[:1], *seconds]
    return Asked(
        endpoint=endpoint, model=body.model, last_text=firsts[0], prompt_tokens=sum(map(count_tokens, inputs)),
        inputs=inputs,
    )  # fmt: skip


def _completion(body: _Completion) -> Asked:
    prompts = _inputs(body.prompt, "prompt")
    last = prompts[-1]
    return _generation(
        "completions", body, prompts, last if isinstance(last, str) else "", len(prompts) * (body.n or 1)
    )


def _generation(
    endpoint: EndpointName,
    body: _Generation,
    inputs: list[str | TokenIds],
    last: str,
    choices: int,
    new_max: int | None = None,
) -> Asked:
    stream = bool(body.stream)
    if body.stream_options is not None and not stream:
        raise RequestError(400, "Stream options can only be defined when `stream=True`.", param="stream_options")
    return Asked(
        endpoint=endpoint,
        model=body.model,
        last_text=last,
        prompt_tokens=sum(map(count_tokens, inputs)),
        stream=stream,
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        usage_everywhere=bool(body.stream_options and body.stream_options.continuous_usage_stats),
        max_tokens=new_max if new_max is not None else body.max_tokens,
        ignore_eos=body.ignore_eos,
        choices=choices,
        lora=None if body.lora_request is None else (body.lora_request.lora_name, body.lora_request.lora_path),
    )


def _embedding(body: _Embedding) -> Asked:
    inputs = _inputs(body.input, "input")
    last = inputs[-1]
    return Asked(
        endpoint="embeddings",
        model=body.model,
        last_text=last if isinstance(last, str) else "",
        prompt_tokens=sum(map(count_tokens, inputs)),
        inputs=inputs,
        base64=body.encoding_format == "base64",
        dimensions=body.dimensions,
    )


def _inputs(value: Any, param: str) -> list[str | TokenIds]:
    """A string, strings, token ids or lists of token ids, always as a list."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(item, int) for item in value):
            return [value]
        if all(isinstance(item, str) or _is_token_list(item) for item in value):
            return value
    raise RequestError(400, f"`{param}` must be a string, a list of strings or token ids, not empty", param=param)


def _is_token_list(item: Any) -> bool:
    return isinstance(item, list) and bool(item) and all(isinstance(token, int) for token in item)


def _text(content: str | list[dict[str, Any]] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return " ".join(str(part["text"]) for part in content if isinstance(part.get("text"), str))


def count_tokens(text: str | TokenIds) -> int:
    """The fake's tokenizer: a token is a word."""
    return len(text.split()) if isinstance(text, str) else len(text)
