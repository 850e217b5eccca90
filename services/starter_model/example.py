"""One training or test example and the dice it is thrown with: the words that families, corpus and evaluation share."""

import hashlib
import random
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
Tool = dict[str, Any]

HELD_OUT_ONE_IN = 16


@dataclass(frozen=True)
class Example:
    """A conversation up to the answer, and the answer.

    `key` names the problem: an example is held out by the hash of (family, key), so every phrasing of a held-out sum
    stays out of training. `raw` answers (JSON, tool calls) start at once; others start with a space, so that a word
    is the same token in prompt and answer.
    """

    family: str
    key: str
    messages: tuple[Message, ...]
    answer: str
    tools: tuple[Tool, ...] = ()
    raw: bool = False

    @property
    def answer_text(self) -> str:
        return self.answer if self.raw else " " + self.answer

    @property
    def held_out(self) -> bool:
        digest = hashlib.sha256(f"{self.family}\x00{self.key}".encode()).digest()
        return int.from_bytes(digest[:4], "big") % HELD_OUT_ONE_IN == 0


def ask(family: str, prompt: str, answer: str, key: str | None = None, *, raw: bool = False) -> Example:
    """The common case: one user turn, one answer. The prompt is the key unless the problem has a shorter name."""
    return Example(family, prompt if key is None else key, ({"role": "user", "content": prompt},), answer, raw=raw)


def dice(*parts: object) -> random.Random:
    """A generator seeded by words and numbers: the same on every machine and in every process."""
    seed = hashlib.sha256("\x00".join(map(str, parts)).encode()).digest()
    return random.Random(int.from_bytes(seed[:8], "big"))  # noqa: S311 - data, not secrets
