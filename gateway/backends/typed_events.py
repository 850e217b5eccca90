"""Reading the answers of engines that speak Responses and Messages themselves: events that carry their type.

As sse.py does for chat, only what is counted is read: does an event carry content, usage, the reason of the end, an
error. Sources: OpenAI Responses (openapi 2.3.0), Anthropic Messages streaming; as vLLM 0.33 sends them.
"""

from typing import Any

import msgspec

from gateway.backends.errors import NOT_JSON, engine_error, stream_error
from gateway.core.call import Chunk, Count, Endpoint, Reply, Usage

TYPED = frozenset({Endpoint.RESPONSES, Endpoint.MESSAGES, Endpoint.COUNT_TOKENS})

_CONTENT = frozenset({
    "response.output_text.delta", "response.refusal.delta", "response.function_call_arguments.delta",
    "response.reasoning_text.delta", "response.reasoning_summary_text.delta", "response.custom_tool_call_input.delta",
})  # fmt: skip
_LAST = frozenset({"response.completed", "response.incomplete", "message_stop"})


class _Usage(msgspec.Struct, gc=False):
    input_tokens: Count = 0
    output_tokens: Count | None = 0


class _Answer(msgspec.Struct, gc=False):
    """A response or a message, whole or inside an event."""

    status: str | None = None
    stop_reason: str | None = None
    usage: _Usage | None = None
    error: Any = None

    @property
    def reason(self) -> str | None:
        return self.stop_reason or self.status


class _Delta(msgspec.Struct, gc=False):
    text: str = ""
    thinking: str = ""
    partial_json: str = ""
    stop_reason: str | None = None


class _Event(msgspec.Struct, gc=False):
    type: str = ""
    delta: _Delta | str | None = None
    response: _Answer | None = None
    usage: _Usage | None = None
    error: Any = None


_DECODE = msgspec.json.Decoder(_Event).decode
_DECODE_ANSWER = msgspec.json.Decoder(_Answer).decode


def read_answer(body: bytes) -> Reply:
    """Raises what msgspec raises for what is not JSON, EngineRefused for an answer that is a failure."""
    answer = _DECODE_ANSWER(body)
    if answer.error:
        raise engine_error(502, body)
    return Reply(body, _plain(answer.usage), [answer.reason] if answer.reason else [])


def read_event(payload: bytes, chunk: Chunk) -> bool:
    """Fill `chunk` from one event; True for the last of a stream. An event of failure sets `chunk.error`."""
    try:
        event = _DECODE(payload)
    except NOT_JSON:
        return payload.startswith(b"[DONE]")  # anything else: not ours to judge, relayed as it came
    kind = event.type
    delta = event.delta
    if kind in _CONTENT:
        chunk.contents += bool(delta)
    elif kind == "content_block_delta" and isinstance(delta, _Delta):
        chunk.contents += bool(delta.text or delta.thinking or delta.partial_json)
    elif kind == "message_delta" and isinstance(delta, _Delta):
        chunk.finish_reason = delta.stop_reason
        chunk.usage = _plain(event.usage)
    elif kind in ("error", "response.failed") or event.error:
        chunk.error = stream_error(_innermost(payload))
    elif kind in _LAST and event.response is not None:
        chunk.finish_reason = event.response.reason
        chunk.usage = _plain(event.response.usage)
    return kind in _LAST


def _plain(usage: _Usage | None) -> Usage | None:
    return None if usage is None else Usage(usage.input_tokens, usage.output_tokens)


def _innermost(payload: bytes) -> bytes:
    """The object that says what failed: `response.failed` has it inside the response."""
    event = msgspec.json.decode(payload)
    response = event.get("response")
    return msgspec.json.encode(response if isinstance(response, dict) else event)
