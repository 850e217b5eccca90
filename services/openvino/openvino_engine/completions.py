"""POST /v1/completions: text or token-id prompts, one or many, each with n choices."""

import dataclasses
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from openvino_engine.answer import Answers
from openvino_engine.errors import invalid, unsupported
from openvino_engine.fields import Fields
from openvino_engine.logprobs import LegacyLogprobs
from openvino_engine.requests import COMMON_FIELDS, check_model, completion_budget, constraint, sampling, stream_options
from openvino_engine.sequence import Delta
from openvino_engine.serving import Reply, Serving
from openvino_engine.web import event

_FIELDS = COMMON_FIELDS | {"prompt", "echo"}
_DEFAULT_MAX_TOKENS = 16  # OpenAI's for this route
_MOST_PROMPTS = 2048


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A checked request. ``echoes`` holds each prompt's text when it is to be repeated, else empty strings."""

    prompts: list[list[int]]
    echoes: list[str]
    n: int
    logprobs: bool
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
        logprobs = self._logprobs(fields)
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
        echoes = texts if fields.boolean("echo") else [""] * len(prompts)
        answers = self._serving.answers(dataclasses.replace(chosen, logprobs=logprobs), fields)
        return CompletionRequest(prompts, echoes, n, logprobs, reply), answers

    async def whole(self, request: CompletionRequest, answers: Answers) -> dict[str, Any]:
        """The response body."""
        choices = self._choices(request)
        merged = [_Merged() for _ in choices]
        answers.submit(request.prompts, request.n)
        async for index, delta in answers.deltas():
            request.reply.completion_tokens += len(delta.tokens)
            merged[index].add(choices[index].take(delta))
        return request.reply.body([part.choice for part in merged])

    async def stream(self, request: CompletionRequest, answers: Answers) -> AsyncIterator[bytes]:
        """The chunks, without the final [DONE]."""
        choices = self._choices(request)
        answers.submit(request.prompts, request.n)
        reply = request.reply
        async for index, delta in answers.deltas():
            reply.completion_tokens += len(delta.tokens)
            choice = choices[index].take(delta)
            if choice["text"] or choice["logprobs"] or choice["finish_reason"]:
                yield event(reply.chunk([choice]))
        if reply.options.include_usage:
            yield event(reply.usage_chunk())

    def _choices(self, request: CompletionRequest) -> list["_Choice"]:
        names = self._serving.checkpoint.tokenizer.names if request.logprobs else None
        return [_Choice(index, request.echoes[index // request.n], names) for index in range(request.count)]

    def _logprobs(self, fields: Fields) -> bool:
        top = fields.optional_integer("logprobs", 0, 5)
        if top:
            raise unsupported("logprobs", "only the chosen token's log-probability is known; use logprobs=0")
        if top is not None and fields.boolean("echo"):
            raise unsupported("echo", "log-probabilities of the prompt are not known; leave out 'logprobs' or 'echo'")
        return top is not None

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
    """One choice: its index, the echo that comes first, and its log-probabilities."""

    def __init__(self, index: int, echo: str, names: list[bytes] | None) -> None:
        self._index = index
        self._echo = echo
        self._logprobs = LegacyLogprobs(names) if names is not None else None

    def take(self, delta: Delta) -> dict[str, Any]:
        """A delta as a choice of a chunk."""
        text, self._echo = self._echo + delta.text, ""
        return {
            "index": self._index,
            "text": text,
            "logprobs": self._logprobs.take(delta) if self._logprobs is not None else None,
            "finish_reason": delta.finish,
            "stop_reason": delta.stop_reason,
        }


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
