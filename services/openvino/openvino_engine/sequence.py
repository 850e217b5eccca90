"""One answer as it grows: tokens in, releasable text out, and the reason why it ended.

Pure Python without the engine, so that the rules (stop strings, stop tokens, minimum length, characters) are tested
by tables. Stop strings are matched here on text rather than by the library on tokens: the cut is exact, and a stream
never shows the beginning of a stop string.
"""

from dataclasses import dataclass, field
from typing import Protocol

from openvino_engine.text import Detokenizer, TextTokenizer
from openvino_engine.tool_parser import ToolParser


@dataclass(frozen=True, slots=True)
class StopRules:
    """When an answer ends. ``eos`` ends it unless ``ignore_eos``; ``ids`` and ``strings`` are the client's.

    ``outside_calls`` are end tokens that do not end it inside a tool call: grammars know only one end token and take
    any other for text.
    """

    eos: frozenset[int]
    outside_calls: frozenset[int] = frozenset()
    ids: frozenset[int] = frozenset()
    strings: tuple[str, ...] = ()
    include_string: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    max_tokens: int = 16


@dataclass(slots=True)
class Delta:
    """What one step added. ``finish`` is stop or length on the last delta, else None."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: str | None = None
    stop_reason: int | str | None = None


class Growing(Protocol):
    """What the loop needs of an answer: it hands over every step's tokens, and the engine's own end."""

    def feed(self, ids: list[int], logprobs: list[float]) -> Delta:
        """Take the tokens of one step; a ``finish`` in what is returned ends the answer."""
        ...

    def end(self, delta: Delta) -> Delta:
        """The engine ended it: complete the last delta."""
        ...


class Sequence:
    """The state of one answer. ``feed`` after every engine step, ``done`` once a delta carried a finish."""

    def __init__(self, tokenizer: TextTokenizer, rules: StopRules, *, skip_special: bool = True) -> None:
        self._pieces = tokenizer.pieces if skip_special else tokenizer.names
        self._rules = rules
        self._detokenizer = Detokenizer(strip_first_space=tokenizer.strips_first_space)
        self._held = ""
        self._call = ToolParser() if rules.outside_calls else None
        self._ends = rules.ids if rules.ignore_eos else rules.ids | rules.eos
        self.token_count = 0
        self.done = False

    def feed(self, ids: list[int], logprobs: list[float]) -> Delta:
        """Take the tokens of one step. Tokens past the end (a draft's surplus) are dropped and not counted."""
        delta = Delta()
        texts: list[str] = []
        for position, token in enumerate(ids):
            self.token_count += 1
            delta.tokens.append(token)
            delta.logprobs.append(logprobs[position])
            texts.append(self._take(token, delta))
            if delta.finish is not None:
                break
        if delta.finish is not None:
            texts.append(self._close(delta))
        delta.text = "".join(texts)
        return delta

    def end(self, delta: Delta) -> Delta:
        """The engine ended the answer by a rule that is not ours: release what is held and call it a stop."""
        delta.finish = "stop"
        delta.text += self._close(delta)
        return delta

    def _take(self, token: int, delta: Delta) -> str:
        rules = self._rules
        if self._call is not None and token in rules.outside_calls and not self._call.inside:
            delta.finish = "stop"
            return ""
        if token in self._ends and self.token_count > rules.min_tokens:
            delta.finish = "stop"
            delta.stop_reason = token if token not in rules.eos else None
            return ""
        text = self._detokenizer.feed(self._pieces[token])
        if self._call is not None:
            self._call.feed(text)
        if rules.strings and text:
            text = self._release(text, delta)
        if delta.finish is None and self.token_count >= rules.max_tokens:
            delta.finish = "length"
        return text

    def _release(self, text: str, delta: Delta) -> str:
        if self.token_count <= self._rules.min_tokens:
            return text
        text = self._held + text
        hit = min(
            ((at, -len(stop), stop) for stop in self._rules.strings if (at := text.find(stop)) >= 0), default=None
        )
        if hit is not None:
            delta.finish, delta.stop_reason, self._held = "stop", hit[2], ""
            return text[: hit[0]] + (hit[2] if self._rules.include_string else "")
        keep = max(_overlap(text, stop) for stop in self._rules.strings)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _close(self, delta: Delta) -> str:
        self.done = True
        stopped_by_string = isinstance(delta.stop_reason, str)
        rest = "" if stopped_by_string else self._held + self._detokenizer.flush()
        self._held = ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of ``stop`` that ends ``text``."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
