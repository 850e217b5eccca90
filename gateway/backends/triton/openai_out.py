"""Answers in OpenAI's words: chunks of a stream, and whole bodies, of chat and of completions.

An event of plain text is built from two constant byte strings around the encoded text: that is the hot path.
Source: OpenAI API reference, chat and completions; contracts sections 1.3 to 1.5.
"""

import time
import uuid
from typing import Any

import msgspec

from gateway.backends.triton.text import Tokens
from gateway.backends.triton.tool_calls import Piece
from gateway.core.call import Call, Endpoint, Usage

ENCODE = msgspec.json.Encoder().encode
DONE = b"data: [DONE]\n\n"


class Envelope:
    """What all chunks of one stream, or a whole body, have in common."""

    def __init__(self, call: Call) -> None:
        self.is_chat = call.endpoint is Endpoint.CHAT
        kind = ("chat.completion.chunk" if call.stream else "chat.completion") if self.is_chat else "text_completion"
        self.fields = {
            "id": f"{'chatcmpl' if self.is_chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": call.model,
        }
        self._start = b"data: " + ENCODE(self.fields)[:-1] + b',"choices":['
        self._end = b'],"usage":null}\n\n' if call.wants_usage else b"]}\n\n"

    def chunk(self, choice: bytes) -> bytes:
        return self._start + choice + self._end

    def text_frame(self, index: int) -> tuple[bytes, bytes]:
        """What stands before and after the encoded text of an event that carries text and nothing else."""
        if self.is_chat:
            before, after = b'{"index":%d,"delta":{"content":', b"}"
        else:
            before, after = b'{"index":%d,"text":', b""
        return self._start + before % index, after + b',"logprobs":null,"finish_reason":null}' + self._end

    def usage(self, usage: Usage) -> bytes:
        return b"data: " + ENCODE(self.fields | {"choices": [], "usage": usage_fields(usage)}) + b"\n\n"

    def body(self, choices: list[dict[str, Any]], usage: Usage) -> bytes:
        return ENCODE(self.fields | {"choices": choices, "usage": usage_fields(usage)})


def usage_fields(usage: Usage) -> dict[str, int]:
    completion = usage.completion_tokens or 0
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": usage.prompt_tokens + completion,
    }


class ToolDeltas:
    """The tool calls of one answer: deltas with the index that clients merge on, and the whole list."""

    def __init__(self) -> None:
        self.whole: list[dict[str, Any]] = []

    def delta(self, piece: Piece) -> dict[str, Any]:
        if piece.kind == "call":
            function = {"name": piece.value, "arguments": ""}
            self.whole.append({"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function})
            return {"index": len(self.whole) - 1, **self.whole[-1], "function": dict(function)}
        self.whole[-1]["function"]["arguments"] += piece.value
        return {"index": len(self.whole) - 1, "function": {"arguments": piece.value}}


class ChatLogprobs:
    """`logprobs` of chat: one entry a token, with its bytes."""

    def __init__(self, tokens: Tokens) -> None:
        self._names = tokens.names
        self.whole: list[dict[str, Any]] = []

    def take(self, ids: list[int], logprobs: list[float]) -> dict[str, Any]:
        entries = [
            {"token": (name := self._names[token]).decode("utf-8", "replace"), "logprob": min(logprob, 0.0),
             "bytes": list(name), "top_logprobs": []}
            for token, logprob in zip(ids, logprobs, strict=False)
        ]  # fmt: skip
        self.whole += entries
        return {"content": entries, "refusal": None}

    def all(self) -> dict[str, Any]:
        return {"content": self.whole, "refusal": None}


class CompletionLogprobs:
    """`logprobs` of completions: parallel lists, offsets in characters of the text."""

    def __init__(self, tokens: Tokens) -> None:
        self._names = tokens.names
        self._offset = 0
        self._whole: dict[str, list[Any]] = {}

    def take(self, ids: list[int], logprobs: list[float]) -> dict[str, Any]:
        lists: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token, logprob in zip(ids, logprobs, strict=False):
            text = self._names[token].decode("utf-8", "replace")
            lists["tokens"].append(text)
            lists["token_logprobs"].append(min(logprob, 0.0))
            lists["top_logprobs"].append({text: min(logprob, 0.0)})
            lists["text_offset"].append(self._offset)
            self._offset += len(text)
        for name, values in lists.items():
            self._whole.setdefault(name, []).extend(values)
        return lists

    def all(self) -> dict[str, Any]:
        return self._whole
