"""One choice on its way to chunks or into a whole body: text, tool calls, log-probabilities, how it ended."""

from typing import Any

from gateway.backends.triton.answer import Answer
from gateway.backends.triton.asked import Asked
from gateway.backends.triton.openai_out import ENCODE, ChatLogprobs, CompletionLogprobs, Envelope, ToolDeltas
from gateway.backends.triton.text import Tokens
from gateway.backends.triton.tool_calls import Piece, ToolCalls


class Choice:
    """`plain`: the bytes around the text of its events, while nothing but text can come; else None."""

    def __init__(self, index: int, asked: Asked, envelope: Envelope, tokens: Tokens, echo: str) -> None:
        self.index = index
        self._envelope = envelope
        self._echo = echo
        self._began = False
        self._texts: list[str] = [echo] if echo else []
        self._parallel = asked.tools.parallel
        self._parser = ToolCalls(inside=asked.tools.forced is not None) if asked.tools.offered is not None else None
        self._calls = ToolDeltas()
        self._logprobs: ChatLogprobs | CompletionLogprobs | None = None
        if asked.logprobs:
            self._logprobs = ChatLogprobs(tokens) if envelope.is_chat else CompletionLogprobs(tokens)
        self.plain: tuple[bytes, bytes] | None = None
        self.finish_reason = ""

    def events(self, text: str, answer: Answer) -> tuple[bytes, int]:
        """The events that say `text` and, once it has one, the answer's end; and how many carry content."""
        pieces = self._pieces(text, answer)
        parts = [self._part(piece) for piece in pieces]
        contents = sum(piece.kind != "call" for piece in pieces)
        if self._logprobs is not None and answer.tokens:
            parts = parts or [self._text_part("")]
            parts[0]["logprobs"] = self._logprobs.take(answer.tokens, answer.logprobs)
        if not self._began:
            self._began = True
            self._begin(parts)
            contents += bool(self._echo) and not text
            self.plain = None if self._parser or self._logprobs else self._envelope.text_frame(self.index)
        if answer.finish is not None:
            self._end(answer)
            last: dict[str, Any] = {"delta": {}} if self._envelope.is_chat else {"text": ""}
            parts.append(last | {"finish_reason": self.finish_reason, "stop_reason": answer.stop_reason})
        return b"".join([self._envelope.chunk(self._encoded(part)) for part in parts]), contents

    def collect(self, text: str, answer: Answer) -> None:
        """The same for a whole body."""
        for piece in self._pieces(text, answer):
            if piece.kind == "text":
                self._texts.append(piece.value)
            else:
                self._calls.delta(piece)
        if self._logprobs is not None:
            self._logprobs.take(answer.tokens, answer.logprobs)
        if answer.finish is not None:
            self._end(answer)

    def whole(self, answer: Answer) -> dict[str, Any]:
        text = "".join(self._texts)
        logprobs = None if self._logprobs is None else self._logprobs.all()
        ending = {"logprobs": logprobs, "finish_reason": self.finish_reason, "stop_reason": answer.stop_reason}
        if not self._envelope.is_chat:
            return {"index": self.index, "text": text} | ending
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self._calls.whole:
            message |= {"content": text or None, "tool_calls": self._calls.whole}
        return {"index": self.index, "message": message} | ending

    def _pieces(self, text: str, answer: Answer) -> list[Piece]:
        if self._parser is None:
            return [Piece("text", text)] if text else []
        pieces = self._parser.feed(text)
        if self._parser.is_closed and not self._parallel and answer.finish is None:
            answer.finish = "stop"  # one call was asked for, and here it is
        return pieces + self._parser.finish() if answer.finish is not None else pieces

    def _part(self, piece: Piece) -> dict[str, Any]:
        if piece.kind == "text":
            return self._text_part(piece.value)
        return {"delta": {"tool_calls": [self._calls.delta(piece)]}}

    def _text_part(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text}} if self._envelope.is_chat else {"text": text}

    def _begin(self, parts: list[dict[str, Any]]) -> None:
        if self._envelope.is_chat:
            parts.insert(0, {"delta": {"role": "assistant", "content": ""}})
        elif self._echo:
            if parts:
                parts[0]["text"] = self._echo + parts[0]["text"]
            else:
                parts.append(self._text_part(self._echo))

    def _end(self, answer: Answer) -> None:
        assert answer.finish is not None
        self.finish_reason = "tool_calls" if self._calls.whole and answer.finish == "stop" else answer.finish

    def _encoded(self, part: dict[str, Any]) -> bytes:
        return ENCODE({"index": self.index, "logprobs": None, "finish_reason": None} | part)
