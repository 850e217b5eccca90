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
        self._cap = asked.max_tokens
        self._is_chat = asked.endpoint == "chat"
        has_calls = bool(script.tool_calls) and self._is_chat
        default = [] if has_calls else list(DEFAULT_TOKENS)
        self._tokens = default if script.tokens is None else script.tokens
        self._is_endless = echoed is None and (
            script.flood or (asked.ignore_eos and self._cap is not None and not has_calls)
        )
        if self._is_endless and self._cap is None and not asked.stream:
            raise RequestError(400, "`flood` has no end: ask for a stream or give max_tokens")
        self._is_cut = self._is_endless or (self._cap is not None and self._own_tokens() > self._cap)

    def finish_reason(self) -> str:
        if self._script.finish_reason is not None:
            return self._script.finish_reason
        if self._is_cut:
            return "length"
        return "tool_calls" if self._script.tool_calls and self._is_chat else "stop"

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

    def _own_tokens(self) -> int:
        script = self._script
        said = 1 if self._echoed is not None else _size(self._tokens)
        if not self._is_chat:
            return said
        return said + _size(script.reasoning or 0) + sum(1 + len(_fragments(call)) for call in script.tool_calls)

    def _units(self) -> Iterator[Chunk]:
        script = self._script
        if not self._is_chat:
            yield from (Chunk("content", text) for text in self._content())
            return
        if script.reasoning is not None:
            yield from (Chunk("reasoning", text) for text in _texts(script.reasoning, 0))
        yield from (Chunk("content", text) for text in self._content())
        for index, call in enumerate(script.tool_calls):
            yield Chunk("tool", call.name, 1, index, opens=True)
            yield from (Chunk("tool", fragment, 1, index) for fragment in _fragments(call))

    def _content(self) -> Iterator[str]:
        if self._echoed is not None:
            return iter((self._echoed,))
        tokens, size_bytes = self._tokens, self._script.token_bytes
        if self._is_endless:
            endless = itertools.cycle(COUNTED_TOKENS if isinstance(tokens, int) or not tokens else tokens)
            return (_padded(text, size_bytes) for text in endless)
        return _texts(tokens, size_bytes)


def _texts(tokens: list[str] | int, size_bytes: int) -> Iterator[str]:
    texts = itertools.islice(itertools.cycle(COUNTED_TOKENS), tokens) if isinstance(tokens, int) else iter(tokens)
    return (_padded(text, size_bytes) for text in texts) if size_bytes else texts


def _size(tokens: list[str] | int) -> int:
    return tokens if isinstance(tokens, int) else len(tokens)


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
