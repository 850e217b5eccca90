"""What the two generating routes share: the model, the loop, and the steps from a request to its answers."""

import asyncio
import dataclasses
import time
import uuid
from dataclasses import dataclass
from typing import Any

from openvino_engine.answer import Answers
from openvino_engine.checkpoint import Checkpoint
from openvino_engine.constraint import ToolFrame
from openvino_engine.errors import invalid
from openvino_engine.fields import Fields
from openvino_engine.grammar_check import GrammarChecker
from openvino_engine.loop import EngineLoop
from openvino_engine.requests import StreamOptions
from openvino_engine.sampling import Sampling
from openvino_engine.scorer import Scorer
from openvino_engine.sequence import Sequence
from openvino_engine.template import ChatTemplate

# Longer texts are tokenized off the event loop, so that one long prompt does not stall other streams.
_INLINE_CHARS = 20_000


@dataclass(frozen=True, slots=True)
class Serving:
    """Everything a route needs, made once at start."""

    name: str
    checkpoint: Checkpoint
    template: ChatTemplate | None
    frame: ToolFrame
    context: int
    loop: EngineLoop
    grammar: GrammarChecker
    scorer: Scorer
    created_s: int

    async def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of ``text``."""
        tokenizer = self.checkpoint.tokenizer
        if len(text) <= _INLINE_CHARS:
            return tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return await asyncio.to_thread(tokenizer.encode, text, add_special_tokens=add_special_tokens)

    def answers(self, sampling: Sampling, fields: Fields) -> Answers:
        """Answers for one request, not submitted yet."""
        # A grammar takes special tokens for the text they are written as, so a structured answer must show them.
        shaped = sampling.constraint is not None and not sampling.constraint.leaves_free_text
        skip_special = fields.boolean("skip_special_tokens", default=True) and not shaped
        tokenizer = self.checkpoint.tokenizer
        return Answers(self.loop, sampling, lambda: Sequence(tokenizer, sampling.stop, skip_special=skip_special))

    def check_count(self, count: int, param: str) -> None:
        """Raises ApiError 400 when so many answers could never fit."""
        if count > self.loop.capacity:
            raise invalid(param, f"{count} answers are more than this engine ever holds ({self.loop.capacity})")


@dataclass(slots=True)
class Reply:
    """The constant parts of one response, and its usage."""

    prefix: str
    kind: str
    model: str
    options: StreamOptions
    prompt_tokens: int = 0
    completion_tokens: int = 0
    id: str = dataclasses.field(default="")
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"

    def usage(self) -> dict[str, int]:
        """The usage object, as counted so far."""
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
        }

    def body(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """A whole response."""
        return self._frame(choices) | {"usage": self.usage()}

    def chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """One chunk of a stream, with the usage that the stream options ask for."""
        chunk = self._frame(choices)
        if self.options.continuous_usage:
            chunk["usage"] = self.usage()
        elif self.options.include_usage:
            chunk["usage"] = None
        return chunk

    def usage_chunk(self) -> dict[str, Any]:
        """The last chunk, when usage is asked for."""
        return self._frame([]) | {"usage": self.usage()}

    def _frame(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": self.kind, "created": self.created, "model": self.model, "choices": choices}
