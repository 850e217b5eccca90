"""From what an engine says to an Anthropic message: one state machine for the stream and for the whole object.

Chat tells the prompt's tokens last, so a stream says `input_tokens` in `message_delta`, where clients add it up; in
`message_start` it is 0. Order of events: Anthropic Messages streaming.
"""

import secrets
from typing import Any

import msgspec

from gateway.api.messages_request import PARAMS
from gateway.core.errors import PenstockError, UpstreamError
from gateway.serving.events import FullUsage, Logprobs, ToolCall
from gateway.serving.translator import Translator, Transport

_ENCODE = msgspec.json.Encoder().encode
_STOPS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_ERRORS = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    408: "timeout_error", 413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error",
    504: "timeout_error",
}  # fmt: skip
PING = b'event: ping\ndata: {"type":"ping"}\n\n'


class _Delta(msgspec.Struct, gc=False, omit_defaults=True):
    type: str
    text: str = ""
    thinking: str = ""
    partial_json: str = ""


class _BlockDelta(msgspec.Struct, gc=False):
    """The event there is most of, without a dict."""

    index: int
    delta: _Delta
    type: str = "content_block_delta"


class MessageTranslator(Translator):
    """`model`: the name the client asked for."""

    def __init__(self, client: Transport, model: str, request_id: str) -> None:
        super().__init__(client)
        self._request_id = request_id
        self._content: list[dict[str, Any]] = []
        self._message: dict[str, Any] = {
            "id": f"msg_{secrets.token_hex(16)}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": self._content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 0, "output_tokens": 0},
        }
        self._open = ""  # the kind of block that is being said: always the last
        self._pieces: list[str] = []
        self._calls: dict[int, dict[str, Any]] = {}  # by the engine's index

    # ---- hooks ----

    def on_open(self) -> None:
        self._say("message_start", message=self._message)
        self.out.append(PING)

    def on_reasoning(self, index: int, text: str) -> None:  # noqa: ARG002
        self._turn_to("thinking")
        self._delta(_Delta("thinking_delta", thinking=text), text)

    def on_text(self, index: int, text: str, logprobs: Logprobs | None) -> None:  # noqa: ARG002
        if text:
            self._turn_to("text")
            self._delta(_Delta("text_delta", text=text), text)

    def on_refusal(self, index: int, text: str) -> None:
        self.on_text(index, text, None)
        self._message["stop_reason"] = "refusal"

    def on_tool_call(self, index: int, part: ToolCall) -> None:  # noqa: ARG002
        assert part.index is not None
        block = self._calls.get(part.index)
        function = part.function
        if block is None:
            name = (function.name if function is not None else None) or ""
            block = {"type": "tool_use", "id": part.id or f"toolu_{secrets.token_hex(12)}", "name": name, "input": {}}
            self._calls[part.index] = block
            self._begin(block)
        text = (function.arguments if function is not None else None) or ""
        if not text:
            return
        if block is not self._content[-1]:
            error = UpstreamError("The engine mixed the arguments of two tool calls, which a message cannot say.")
            error.retryable = False
            raise error
        self._delta(_Delta("input_json_delta", partial_json=text), text)

    def on_stop(self, index: int, text: str) -> None:  # noqa: ARG002
        self._message["stop_reason"], self._message["stop_sequence"] = "stop_sequence", text

    def on_finish(self, index: int, reason: str) -> None:  # noqa: ARG002
        self._message["stop_reason"] = self._message["stop_reason"] or _STOPS.get(reason, "end_turn")

    def on_usage(self, usage: FullUsage) -> None:
        told = {"input_tokens": usage.prompt_tokens - usage.cached, "output_tokens": usage.output}
        if usage.cached:
            told["cache_read_input_tokens"] = usage.cached
        self._message["usage"] = told

    def on_end(self) -> None:
        self._close()
        message = self._message
        if self._calls and message["stop_reason"] == "end_turn":
            message["stop_reason"] = "tool_use"  # some engines say "stop" after calls too
        delta = {"stop_reason": message["stop_reason"] or "end_turn", "stop_sequence": message["stop_sequence"]}
        self._say("message_delta", delta=delta, usage=message["usage"])
        self._say("message_stop")

    # ---- Translator ----

    def whole(self) -> bytes:
        self._message["stop_reason"] = self._message["stop_reason"] or "end_turn"
        return _ENCODE(self._message)

    def error_body(self, error: PenstockError) -> bytes:
        return message_error(error, self._request_id)

    def on_failure(self, error: PenstockError) -> None:
        self.out.append(message_error_event(error, self._request_id))

    # ---- blocks: one after the other, only the last is open ----

    def _turn_to(self, kind: str) -> None:
        if self._open != kind:
            block = {"type": kind, kind: ""} | ({"signature": ""} if kind == "thinking" else {})
            self._begin(block)

    def _begin(self, block: dict[str, Any]) -> None:
        self._close()
        self._open = block["type"]
        self._content.append(block)
        self._say("content_block_start", index=len(self._content) - 1, content_block=block)

    def _delta(self, delta: _Delta, text: str) -> None:
        self._pieces.append(text)
        if self.is_stream:
            data = _ENCODE(_BlockDelta(len(self._content) - 1, delta))
            self.out.append(b"event: content_block_delta\ndata: %b\n\n" % data)

    def _close(self) -> None:
        if not self._open:
            return
        text = "".join(self._pieces)
        self._pieces.clear()
        block = self._content[-1]
        if self._open == "tool_use":
            block["input"] = _arguments(text)
        else:
            block[self._open] = text
        self._open = ""
        self._say("content_block_stop", index=len(self._content) - 1)

    def _say(self, kind: str, **fields: Any) -> None:
        if self.is_stream:
            self.out.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), _ENCODE({"type": kind, **fields})))


def _arguments(text: str) -> dict[str, Any]:
    """Of a call that was cut off in the middle: none, rather than half of one."""
    try:
        value = msgspec.json.decode(text or "{}")
    except (msgspec.DecodeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def message_error(error: PenstockError, request_id: str) -> bytes:
    """`{"type": "error", "error": {type, message}, "request_id"}`."""
    message = error.message
    name = PARAMS.get(error.param or "")
    if name is not None:
        message = message.replace(f"'{error.param}'", f"'{name}'")
    kind = _ERRORS.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
    return _ENCODE({"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id})


def message_error_event(error: PenstockError, request_id: str) -> bytes:
    return b"event: error\ndata: %b\n\n" % message_error(error, request_id)
