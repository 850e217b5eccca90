"""POST /v1/chat/completions: messages to a prompt, answers to messages or to chunks."""

import dataclasses
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from openvino_engine.answer import Answers
from openvino_engine.constraint import Constraint
from openvino_engine.errors import invalid
from openvino_engine.fields import Fields
from openvino_engine.logprobs import chat_entries
from openvino_engine.messages import read_messages
from openvino_engine.requests import COMMON_FIELDS, check_model, completion_budget, constraint, sampling, stream_options
from openvino_engine.scoring import Scoring
from openvino_engine.sequence import Delta
from openvino_engine.serving import Reply, Serving
from openvino_engine.template import no_template
from openvino_engine.tool_parser import Piece, ToolParser
from openvino_engine.tools import ToolUse, read_tools
from openvino_engine.web import event

_FIELDS = COMMON_FIELDS | {
    "messages",
    "max_completion_tokens",
    "top_logprobs",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "chat_template_kwargs",
}
_UNLIMITED = 2**31


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A checked request with its prompt. ``top_logprobs`` None: no log-probabilities at all."""

    fields: Fields
    prompt: list[int]
    n: int
    tools: ToolUse
    top_logprobs: int | None
    reply: Reply


class ChatRoute:
    """The handler; ``prepare`` refuses, ``whole`` and ``stream`` answer."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def prepare(self, body: object) -> tuple[ChatRequest, Answers]:
        """Check everything that can be checked before an answer begins. Raises ApiError."""
        fields = Fields(body, _FIELDS)
        check_model(fields, self._serving.name)
        options = stream_options(fields)
        top = _top_logprobs(fields)
        tools = read_tools(fields, self._serving.frame)
        rule = await self._constraint(fields, tools)
        prompt = await self._prompt(fields, tools)
        name = "max_completion_tokens" if "max_completion_tokens" in fields else "max_tokens"
        budget = completion_budget(fields, name, len(prompt), self._serving.context, _UNLIMITED, "messages")
        chosen = sampling(fields, self._serving.checkpoint, budget, rule)
        n = fields.integer("n", 1, 1, 128)
        self._serving.check_count(n, "n")
        reply = Reply(
            "chatcmpl", "chat.completion.chunk" if options.stream else "chat.completion", self._serving.name, options
        )
        reply.prompt_tokens = len(prompt)
        answers = self._serving.answers(dataclasses.replace(chosen, logprobs=top == 0), fields)
        return ChatRequest(fields, prompt, n, tools, top, reply), answers

    async def whole(self, request: ChatRequest, answers: Answers) -> dict[str, Any]:
        """The response body."""
        choices = [_Choice(index, request) for index in range(request.n)]
        scoring = self._scoring(request)
        answers.submit([request.prompt], request.n)
        async for index, delta in answers.deltas():
            request.reply.completion_tokens += len(delta.tokens)
            choices[index].collect(delta, await self._logprobs(request, scoring, index, delta))
        return request.reply.body([choice.message() for choice in choices])

    async def stream(self, request: ChatRequest, answers: Answers) -> AsyncIterator[bytes]:
        """The chunks, without the final [DONE]."""
        choices = [_Choice(index, request) for index in range(request.n)]
        scoring = self._scoring(request)
        answers.submit([request.prompt], request.n)
        reply = request.reply
        async for index, delta in answers.deltas():
            choice = choices[index]
            if not choice.began:
                choice.began = True
                yield event(reply.chunk([choice.chunk({"role": "assistant", "content": ""})]))
            reply.completion_tokens += len(delta.tokens)
            for part in choice.parts(delta, await self._logprobs(request, scoring, index, delta)):
                yield event(reply.chunk([part]))
        if reply.options.include_usage:
            yield event(reply.usage_chunk())

    def _scoring(self, request: ChatRequest) -> Scoring:
        return Scoring(self._serving.scorer, [request.prompt], request.n, request.top_logprobs or 0)

    async def _logprobs(
        self, request: ChatRequest, scoring: Scoring, index: int, delta: Delta
    ) -> list[dict[str, Any]] | None:
        if request.top_logprobs is None:
            return None
        scores = await scoring.take(index, delta)
        return chat_entries(self._serving.checkpoint.tokenizer.names, delta.tokens, scores)

    async def _constraint(self, fields: Fields, tools: ToolUse) -> Constraint | None:
        asked = constraint(fields)
        if tools.constraint is not None:
            if asked is not None:
                raise invalid(
                    asked[1], f"{asked[1]!r} and 'tools' cannot both shape the answer: set 'tool_choice' to none"
                )
            await self._serving.grammar.check(tools.constraint, "tools")
            return tools.constraint
        if asked is None:
            return None
        await self._serving.grammar.check(*asked)
        return asked[0]

    async def _prompt(self, fields: Fields, tools: ToolUse) -> list[int]:
        messages = read_messages(fields.get("messages"))
        if self._serving.template is None:
            raise no_template()
        text = self._serving.template.render(messages, tools.offered, fields.mapping("chat_template_kwargs"))
        return await self._serving.encode(text, add_special_tokens=fields.boolean("add_special_tokens"))


def _top_logprobs(fields: Fields) -> int | None:
    wanted = fields.boolean("logprobs")
    top = fields.optional_integer("top_logprobs", 0, 20)
    if top is not None and not wanted:
        raise invalid("top_logprobs", "'top_logprobs' needs 'logprobs' to be true")
    return (top or 0) if wanted else None


@dataclass(slots=True)
class _Choice:
    """One choice on its way to a message or to chunks."""

    index: int
    request: ChatRequest
    began: bool = False
    finish: str | None = None
    stop_reason: int | str | None = None
    text: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    parser: ToolParser | None = None

    def __post_init__(self) -> None:
        if self.request.tools.constraint is not None:
            self.parser = ToolParser()

    def collect(self, delta: Delta, logprobs: list[dict[str, Any]] | None) -> None:
        """Add a delta to the message."""
        for piece in self._pieces(delta):
            if piece.kind == "text":
                self.text.append(piece.value)
            elif piece.kind == "call":
                self.calls.append(_call(piece.value))
            else:
                self.calls[-1]["function"]["arguments"] += piece.value
        self.logprobs += logprobs or []
        self._note_end(delta)

    def message(self) -> dict[str, Any]:
        """The finished choice."""
        text = "".join(self.text)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self.calls:
            message |= {"content": text or None, "tool_calls": self.calls}
        logprobs = None if self.request.top_logprobs is None else {"content": self.logprobs, "refusal": None}
        return {"index": self.index, "message": message, "logprobs": logprobs} | self._ending()

    def parts(self, delta: Delta, logprobs: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
        """A delta as the choices of chunks; the log-probabilities go with the first of them."""
        deltas = [self._delta(piece) for piece in self._pieces(delta)]
        if logprobs is not None and not deltas:
            deltas = [{"content": ""}]
        parts = [self.chunk(part) for part in deltas]
        if logprobs is not None:
            parts[0]["logprobs"] = {"content": logprobs, "refusal": None}
        if delta.finish is not None:
            self._note_end(delta)
            parts.append(self.chunk({}) | self._ending())
        return parts

    def chunk(self, delta: dict[str, Any]) -> dict[str, Any]:
        """A choice of a chunk."""
        return {"index": self.index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _pieces(self, delta: Delta) -> list[Piece]:
        if self.parser is None:
            return [Piece("text", delta.text)] if delta.text else []
        pieces = self.parser.feed(delta.text)
        return pieces + self.parser.finish() if delta.finish is not None else pieces

    def _delta(self, piece: Piece) -> dict[str, Any]:
        if piece.kind == "text":
            return {"content": piece.value}
        if piece.kind == "call":
            self.calls.append(_call(piece.value))
            return {"tool_calls": [{"index": len(self.calls) - 1, **_call(piece.value, self.calls[-1]["id"])}]}
        return {"tool_calls": [{"index": len(self.calls) - 1, "function": {"arguments": piece.value}}]}

    def _note_end(self, delta: Delta) -> None:
        if delta.finish is not None:
            self.stop_reason = delta.stop_reason
            self.finish = "tool_calls" if self.calls and delta.finish == "stop" else delta.finish

    def _ending(self) -> dict[str, Any]:
        return {"finish_reason": self.finish, "stop_reason": self.stop_reason}


def _call(name: str, call_id: str | None = None) -> dict[str, Any]:
    call_id = call_id or f"call_{uuid.uuid4().hex[:24]}"
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}
