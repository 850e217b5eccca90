"""The JSON of an answer: stream chunks and whole bodies of chat and legacy completions."""

import hashlib
import time
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from fake_engine.answer import Answer, Chunk
from fake_engine.asked import Asked
from fake_engine.engines import EngineKind
from fake_engine.script import Script

encode = msgspec.json.encode


class Frames:
    """Frames of one answer: `id`, `created` and `model` are the same in all of them."""

    def __init__(self, asked: Asked, script: Script, kind: EngineKind, answer_id: str) -> None:
        self._asked = asked
        self._script = script
        self._kind = kind
        self._is_chat = asked.endpoint == "chat"
        name = "chat.completion" if self._is_chat else "text_completion"
        suffix = ".chunk" if self._is_chat and asked.stream else ""
        self._id = answer_id
        self._base = {
            "id": answer_id, "object": name + suffix, "created": int(time.time()), "model": asked.model
        }  # fmt: skip
        wanted = script.reasoning_field or kind.reasoning_field
        self._reasoning_fields = ("reasoning", "reasoning_content") if wanted == "both" else (wanted,)
        self._null_usage = kind.null_usage and asked.include_usage
        self._usage_everywhere = asked.include_usage and (script.usage_chunk == "every" or asked.usage_everywhere)

    @property
    def has_roles(self) -> bool:
        return self._is_chat

    @property
    def sends_usage(self) -> bool:
        how = self._script.usage_chunk
        return how == "always" or (self._asked.include_usage and how != "never")

    # ---- chunks of a stream ----

    def extra_events(self, event: Callable[[bytes], bytes]) -> list[bytes]:  # noqa: ARG002
        """What the engine says of its own between finish and usage, when the script asks for it."""
        return []

    def role(self, index: int) -> bytes:
        return self._chunk(index, {"role": "assistant", "content": ""}, None, 0)

    def part(self, index: int, chunk: Chunk, reason: str | None, with_role: bool, so_far: int) -> bytes:
        """One content chunk; `so_far` counts the answer's tokens up to it (for usage in every chunk)."""
        if not self._is_chat:
            return self._chunk(index, chunk.text, reason, so_far)
        delta = self._delta(index, chunk)
        return self._chunk(index, {"role": "assistant", **delta} if with_role else delta, reason, so_far)

    def finish(self, index: int, reason: str, so_far: int) -> bytes:
        return self._chunk(index, {} if self._is_chat else "", reason, so_far)

    def usage(self, tokens: int, reasoning_tokens: int) -> bytes:
        return encode({**self._base, "choices": [], "usage": self._usage(tokens, reasoning_tokens)})

    def _chunk(self, index: int, delta: Any, reason: str | None, so_far: int) -> bytes:
        key: Literal["delta", "text"] = "delta" if self._is_chat else "text"
        frame = {**self._base, "choices": [self._choice(index, key, delta, reason)]}
        if self._usage_everywhere:
            frame["usage"] = self._usage(so_far, None)
        elif self._null_usage:
            frame["usage"] = None
        return encode(frame)

    def _choice(self, index: int, key: str, said: Any, reason: str | None) -> dict[str, Any]:
        """`said` under `key`: a delta, a message, or a text."""
        return {"index": index, key: said, "logprobs": None, "finish_reason": reason}

    def _delta(self, index: int, chunk: Chunk) -> dict[str, Any]:
        if chunk.kind == "content":
            return {"content": chunk.text}
        if chunk.kind == "reasoning":
            return dict.fromkeys(self._reasoning_fields, chunk.text)
        if not chunk.opens:
            return {"tool_calls": [{"index": chunk.call, "function": {"arguments": chunk.text}}]}
        call = {
            "index": chunk.call,
            "id": self._call_id(index, chunk.call),
            "type": "function",
            "function": {"name": chunk.text, "arguments": ""},
        }
        return {"tool_calls": [call]}

    # ---- whole bodies ----

    def whole(self, answer: Answer, chunks: list[Chunk]) -> bytes:
        """The body of an answer that is not streamed."""
        make = self._message_choice if self._is_chat else self._text_choice
        choices = [make(index, answer, chunks) for index in range(self._asked.choices)]
        frame: dict[str, Any] = {**self._base, "choices": choices}
        if self._script.usage_chunk != "never":
            frame["usage"] = self._usage(*count(chunks, self._asked.choices))
        return encode(frame)

    def _text_choice(self, index: int, answer: Answer, chunks: list[Chunk]) -> dict[str, Any]:
        text = "".join(chunk.text for chunk in chunks if chunk.kind == "content")
        return self._choice(index, "text", text, answer.finish_reason())

    def _message_choice(self, index: int, answer: Answer, chunks: list[Chunk]) -> dict[str, Any]:
        content = "".join(chunk.text for chunk in chunks if chunk.kind == "content")
        calls = self._calls(index, chunks)
        message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else ""), "refusal": None}
        if calls:
            message["tool_calls"] = calls
        if reasoning := "".join(chunk.text for chunk in chunks if chunk.kind == "reasoning"):
            message |= dict.fromkeys(self._reasoning_fields, reasoning)
        return self._choice(index, "message", message, answer.finish_reason())

    def _calls(self, index: int, chunks: list[Chunk]) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []
        for chunk in chunks:
            if chunk.kind == "tool" and chunk.opens:
                function = {"name": chunk.text, "arguments": ""}
                calls.append({"id": self._call_id(index, chunk.call), "type": "function", "function": function})
            elif chunk.kind == "tool":
                calls[chunk.call]["function"]["arguments"] += chunk.text
        return calls

    def _call_id(self, index: int, call: int) -> str:
        scripted = self._script.tool_calls[call].id
        digest = hashlib.sha256(f"{self._id}/{index}/{call}".encode()).hexdigest()
        return scripted or f"call_{digest[:24]}"

    def _usage(self, tokens: int, reasoning_tokens: int | None) -> dict[str, Any]:
        prompt = self._asked.prompt_tokens
        usage: dict[str, Any] = {"prompt_tokens": prompt, "total_tokens": prompt + tokens, "completion_tokens": tokens}
        if self._script.cached_tokens is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": min(prompt, self._script.cached_tokens)}
        if reasoning_tokens:
            usage["completion_tokens_details"] = {"reasoning_tokens": reasoning_tokens}
        return usage


def count(chunks: list[Chunk], choices: int) -> tuple[int, int]:
    """Completion tokens and the reasoning tokens among them, over all choices."""
    reasoning = sum(chunk.tokens for chunk in chunks if chunk.kind == "reasoning")
    return sum(chunk.tokens for chunk in chunks) * choices, reasoning * choices
