"""What the fake says: the scripted tokens, lazily, as chunks. Every list item is one token."""

import hashlib
import itertools
import json
from collections.abc import Iterator
from typing import Literal, NamedTuple

import msgspec

from fake_engine.asked import Asked
from fake_engine.errors import RequestError
from fake_engine.script import Script, ToolCall

DEFAULT_TOKENS = ("Water", " runs", " through", " the", " penstock", ".")
COUNTED_TOKENS = ("water", " runs", " down", " to", " the", " wheel", " and", " turns", " it", ",")

Kind = Literal["reasoning", "content", "tool"]


class Chunk(NamedTuple):
    """`tokens` tokens of one kind. `call` is the index of a tool call, `opens` marks its first chunk (the name)."""

    kind: Kind
    text: str
    tokens: int = 1
    call: int = 0
    opens: bool = False


class Answer:
    """The chunks of one choice; every choice of a request says the same."""

    def __init__(self, script: Script, asked: Asked, echoed: str | None) -> None:
        self._script = script
        self._echoed = echoed
        self._fills_up = asked.ignore_eos and asked.max_tokens is not None and not script.tool_calls
        self._cap = asked.max_tokens
        is_endless = script.flood or self._fills_up
        if is_endless and self._cap is None and not asked.stream:
            raise RequestError(400, "`flood` has no end: ask for a stream or give max_tokens")
        own = None if is_endless else sum(1 for _ in self._units())
        self.is_cut = own is None or (self._cap is not None and own > self._cap)
        self.tokens = own if own is not None and not self.is_cut else self._cap
        """Tokens of one choice; None when only the client's leaving ends it."""

    def finish_reason(self) -> str:
        if self._script.finish_reason is not None:
            return self._script.finish_reason
        if self.is_cut:
            return "length"
        return "tool_calls" if self._script.tool_calls else "stop"

    def chunks(self) -> Iterator[Chunk]:
        """Up to `tokens_per_chunk` neighbours of one kind together."""
        size = self._script.tokens_per_chunk
        units = itertools.islice(self._units(), self._cap)
        if size == 1:
            yield from units
            return
        for (kind, call, opens), group in itertools.groupby(units, key=lambda unit: (unit.kind, unit.call, unit.opens)):
            while texts := [unit.text for unit in itertools.islice(group, size)]:
                yield Chunk(kind, "".join(texts), len(texts), call, opens)

    def _units(self) -> Iterator[Chunk]:
        script = self._script
        if script.reasoning is not None:
            yield from (Chunk("reasoning", text) for text in _texts(script.reasoning, 0))
        yield from (Chunk("content", text) for text in self._content())
        for index, call in enumerate(script.tool_calls):
            yield Chunk("tool", call.name, 1, index, opens=True)
            yield from (Chunk("tool", fragment, 1, index) for fragment in _fragments(call))

    def _content(self) -> Iterator[str]:
        script = self._script
        if self._echoed is not None:
            return iter((self._echoed,))
        tokens = script.tokens
        if tokens is None:
            tokens = [] if script.tool_calls else list(DEFAULT_TOKENS)
        if script.flood or self._fills_up:
            endless = itertools.cycle(COUNTED_TOKENS if isinstance(tokens, int) or not tokens else tokens)
            return (_padded(text, script.token_bytes) for text in endless)
        return _texts(tokens, script.token_bytes)


def _texts(tokens: list[str] | int, size_bytes: int) -> Iterator[str]:
    texts = itertools.islice(itertools.cycle(COUNTED_TOKENS), tokens) if isinstance(tokens, int) else iter(tokens)
    return (_padded(text, size_bytes) for text in texts) if size_bytes else texts


def _padded(text: str, size_bytes: int) -> str:
    return text + "x" * (size_bytes - len(text.encode()))


def _fragments(call: ToolCall) -> list[str]:
    return [call.arguments] if isinstance(call.arguments, str) else call.arguments


def echoed_text(script: Script, headers: list[tuple[str, str]], body: bytes) -> str | None:
    """What arrived, as the answer's text, so that a test sees what went upstream."""
    if script.echo == "body":
        return hashlib.sha256(body).hexdigest()
    if script.echo == "raw":
        return body.decode("utf-8", "backslashreplace")
    if script.echo == "headers":
        keys = list(msgspec.json.decode(body))
        return json.dumps({"headers": headers, "body_keys": keys}, ensure_ascii=False)
    return None
