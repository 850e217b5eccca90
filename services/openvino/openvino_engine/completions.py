"""POST /v1/completions: text or token-id prompts, one or many, each with n choices."""

import dataclasses
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from openvino_engine.answer import Answers
from openvino_engine.errors import invalid
from openvino_engine.fields import Fields
from openvino_engine.logprobs import LegacyLogprobs
from openvino_engine.requests import COMMON_FIELDS, check_model, completion_budget, constraint, sampling, stream_options
from openvino_engine.scorer import Score
from openvino_engine.scoring import Scoring
from openvino_engine.sequence import Delta
from openvino_engine.serving import Reply, Serving
from openvino_engine.web import event

_FIELDS = COMMON_FIELDS | {"prompt", "echo"}
_DEFAULT_MAX_TOKENS = 16  # OpenAI's for this route
_MOST_PROMPTS = 2048


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A checked request. ``echoes`` holds each prompt's text when it is to be repeated, else None.

    ``top_logprobs`` None: no log-probabilities at all.
    """

    prompts: list[list[int]]
    echoes: list[str] | None
    n: int
    top_logprobs: int | None
    reply: Reply

    @property
    def count(self) -> int:
        """Choices in all."""
        return len(self.prompts) * self.n


class CompletionRoute:
    """The handler; ``prepare`` refuses, ``whole`` and ``stream`` answer."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def prepare(self, body: object) -> tuple[CompletionRequest, Answers]:
        """Check everything that can be checked before an answer begins. Raises ApiError."""
        fields = Fields(body, _FIELDS)
        check_model(fields, self._serving.name)
        options = stream_options(fields)
        top = fields.optional_integer("logprobs", 0, 5)
        texts, prompts = await self._prompts(fields)
        longest = max(len(prompt) for prompt in prompts)
        budget = completion_budget(fields, "max_tokens", longest, self._serving.context, _DEFAULT_MAX_TOKENS, "prompt")
        asked = constraint(fields)
        if asked is not None:
            await self._serving.grammar.check(*asked)
        chosen = sampling(fields, self._serving.checkpoint, budget, asked[0] if asked else None)
        n = fields.integer("n", 1, 1, 128)
        self._serving.check_count(n * len(prompts), "n" if n > 1 else "prompt")
        reply = Reply("cmpl", "text_completion", self._serving.name, options)
        reply.prompt_tokens = sum(len(prompt) for prompt in prompts)
        echoes = texts if fields.boolean("echo") else None
        answers = self._serving.answers(dataclasses.replace(chosen, logprobs=top == 0), fields)
        return CompletionRequest(prompts, echoes, n, top, reply), answers

    async def whole(self, request: CompletionRequest, answers: Answers) -> dict[str, Any]:
        """The response body."""
        choices = self._choices(request)
        merged = [_Merged() for _ in choices]
        answers.submit(request.prompts, request.n)
        async for index, delta in answers.deltas():
            request.reply.completion_tokens += len(delta.tokens)
            merged[index].add(await choices[index].take(delta))
        return request.reply.body([part.choice for part in merged])

    async def stream(self, request: CompletionRequest, answers: Answers) -> AsyncIterator[bytes]:
        """The chunks, without the final [DONE]."""
        choices = self._choices(request)
        answers.submit(request.prompts, request.n)
        reply = request.reply
        async for index, delta in answers.deltas():
            reply.completion_tokens += len(delta.tokens)
            choice = await choices[index].take(delta)
            if choice["text"] or choice["logprobs"] or choice["finish_reason"]:
                yield event(reply.chunk([choice]))
        if reply.options.include_usage:
            yield event(reply.usage_chunk())

    def _choices(self, request: CompletionRequest) -> list["_Choice"]:
        scoring = Scoring(self._serving.scorer, request.prompts, request.n, request.top_logprobs or 0)
        names = self._serving.checkpoint.tokenizer.names
        return [_Choice(index, request, scoring, names) for index in range(request.count)]

    async def _prompts(self, fields: Fields) -> tuple[list[str], list[list[int]]]:
        """Texts (for echo) and token ids of every prompt."""
        prompt = fields.get("prompt")
        if isinstance(prompt, list) and not prompt:
            raise invalid("prompt", "'prompt' must not be an empty list")
        if isinstance(prompt, str) or (isinstance(prompt, list) and isinstance(prompt[0], int)):
            prompt = [prompt]
        if not isinstance(prompt, list) or len(prompt) > _MOST_PROMPTS:
            raise invalid("prompt", "'prompt' must be text, token ids, or a list of either", code="invalid_type")
        add = fields.boolean("add_special_tokens", default=True)
        texts, encoded = [], []
        for item in prompt:
            ids = await self._encode(item, add_special_tokens=add)
            texts.append(item if isinstance(item, str) else self._decode(ids))
            encoded.append(ids)
        return texts, encoded

    async def _encode(self, item: object, *, add_special_tokens: bool) -> list[int]:
        rows = self._serving.checkpoint.rows
        if isinstance(item, str):
            ids = await self._serving.encode(item, add_special_tokens=add_special_tokens)
        elif isinstance(item, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in item):
            ids = item
        else:
            raise invalid("prompt", "'prompt' must be text, token ids, or a list of either", code="invalid_type")
        if not ids:
            raise invalid("prompt", "a prompt must have at least one token")
        if not all(0 <= i < rows for i in ids):
            raise invalid("prompt", f"token ids must be from 0 to {rows - 1}")
        return ids

    def _decode(self, ids: list[int]) -> str:
        pieces = self._serving.checkpoint.tokenizer.pieces
        return b"".join(pieces[i] for i in ids).decode("utf-8", errors="replace")


class _Choice:
    """One choice: the echo that comes first, then its text, each with its log-probabilities."""

    def __init__(self, index: int, request: CompletionRequest, scoring: Scoring, names: list[bytes]) -> None:
        self._index = index
        self._prompt = request.prompts[index // request.n]
        self._echo = request.echoes[index // request.n] if request.echoes is not None else None
        self._scoring = scoring
        self._logprobs = LegacyLogprobs(names) if request.top_logprobs is not None else None

    async def take(self, delta: Delta) -> dict[str, Any]:
        """A delta as a choice of a chunk."""
        tokens, scores = await self._scores(delta)
        text, self._echo = (self._echo or "") + delta.text, None
        return {
            "index": self._index,
            "text": text,
            "logprobs": self._logprobs.take(tokens, scores) if self._logprobs is not None else None,
            "finish_reason": delta.finish,
            "stop_reason": delta.stop_reason,
        }

    async def _scores(self, delta: Delta) -> tuple[list[int], list[Score | None]]:
        """The tokens that this chunk shows and their scores: the prompt's first when it is echoed."""
        if self._logprobs is None:
            return [], []
        own = await self._scoring.take(self._index, delta)
        if self._echo is None:
            return delta.tokens, [*own]
        return self._prompt + delta.tokens, [*(await self._scoring.prompt(self._index)), *own]


class _Merged:
    """The chunks of one choice, joined."""

    def __init__(self) -> None:
        self.choice: dict[str, Any] = {}

    def add(self, part: dict[str, Any]) -> None:
        """Join the next chunk."""
        if not self.choice:
            self.choice = part
            return
        self.choice["text"] += part["text"]
        self.choice["finish_reason"], self.choice["stop_reason"] = part["finish_reason"], part["stop_reason"]
        if part["logprobs"]:
            for name, values in part["logprobs"].items():
                self.choice["logprobs"][name] += values
