"""What serving tells a client, taken apart: for doors whose wire is not OpenAI's.

Serving speaks to a `Client` in OpenAI's bytes: a JSON reply, or complete server-sent events. A door that speaks
something else derives from `Listener`, whose hooks are called with typed pieces: text, reasoning, fragments of tool
calls, the finish reason, usage. A whole answer comes through the same hooks as a stream, as one large event, so that
one state machine makes both. serving/translator.py has the one that writes bytes of its own to the client it wraps.

Runs inside the engine connection's read callback, as the relay does: hooks must not block, and raise nothing but
PenstockError.
Source of the shapes: OpenAI chat and completions, whole and streamed; both spellings of the reasoning text.
"""

from typing import Any

import msgspec

from gateway.backends.errors import NOT_JSON
from gateway.backends.sse import payloads
from gateway.core.call import Reply
from gateway.core.errors import EngineRefused, UpstreamError


class Function(msgspec.Struct, gc=False):
    """Of a tool call; in a stream `name` comes once and `arguments` in fragments of a JSON text."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct, gc=False):
    """One tool call, or the next fragment of the one at `index`; None in a whole answer: its place in the list."""

    index: int | None = None
    id: str | None = None
    function: Function | None = None


class TopLogprob(msgspec.Struct, gc=False):
    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(msgspec.Struct, gc=False):
    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[TopLogprob] = []


class Logprobs(msgspec.Struct, gc=False):
    """Chat fills `content`; completions the lists, one entry a token."""

    content: list[TokenLogprob] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class Said(msgspec.Struct, gc=False):
    """A chat delta, or a whole message."""

    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None


class Choice(msgspec.Struct, gc=False):
    """`delta` in a chat stream, `message` in a whole chat answer, `text` in completions of both kinds.

    `stop_reason` (vLLM), `matched_stop` (SGLang): the stop string that ended it, or something else.
    """

    index: int = 0
    delta: Said | None = None
    message: Said | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: Logprobs | None = None
    stop_reason: Any = None
    matched_stop: Any = None


class PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class CompletionDetails(msgspec.Struct, gc=False):
    reasoning_tokens: int | None = None


class FullUsage(msgspec.Struct, gc=False):
    """Token counts with the details an engine may add; SGLang gives `reasoning_tokens` at the top."""

    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None
    reasoning_tokens: int | None = None

    @property
    def output(self) -> int:
        return self.completion_tokens or 0

    @property
    def cached(self) -> int:
        details = self.prompt_tokens_details
        return (details.cached_tokens or 0) if details is not None else 0

    @property
    def thought(self) -> int:
        details = self.completion_tokens_details
        return (details.reasoning_tokens if details is not None else self.reasoning_tokens) or 0


class Event(msgspec.Struct, gc=False):
    """One event of a stream, or a whole answer. `error` is never set where serving hands it on: it calls `fail`."""

    id: str = ""
    choices: list[Choice] = []
    usage: FullUsage | None = None
    error: Any = None


_DECODE = msgspec.json.Decoder(Event).decode


class Listener:
    """A `Client` that hears typed pieces. Choices are told apart by `index` (0 unless `n` was asked for).

    A door overrides the hooks it needs, `flush`, and the properties and `fail` of core/call.py's `Client`.
    """

    # ---- hooks, in the order they are called ----

    def on_open(self) -> None:
        """A stream begins. Not called for a whole answer."""

    def on_reasoning(self, index: int, text: str) -> None:
        """A piece of reasoning, not empty."""

    def on_text(self, index: int, text: str, logprobs: Logprobs | None) -> None:
        """A piece of the answer's text; empty only when there are logprobs."""

    def on_refusal(self, index: int, text: str) -> None:
        """A piece of the model's refusal, not empty."""

    def on_tool_call(self, index: int, part: ToolCall) -> None:
        """A fragment of a tool call; `part.index` is set."""

    def on_stop(self, index: int, text: str) -> None:
        """The stop string that ended choice `index`, where the engine says it; `on_finish` follows."""

    def on_finish(self, index: int, reason: str) -> None:
        """Choice `index` is complete."""

    def on_usage(self, usage: FullUsage) -> None:
        """Token counts; the last ones hold (some engines send them with every event)."""

    def on_end(self) -> None:
        """The answer is complete, whole or streamed. Never called after a failure."""

    def flush(self, *, is_first: bool, is_last: bool) -> None:
        """All that arrived together went through the hooks: hand on what they made of it. A whole answer is both."""
        raise NotImplementedError

    # ---- Client ----

    def reply(self, reply: Reply) -> None:
        self.hear(reply.body)
        self.on_end()
        self.flush(is_first=True, is_last=True)

    def open_stream(self, first: bytes) -> None:
        self.on_open()
        self._hear_events(first)
        self.flush(is_first=True, is_last=False)

    def send(self, data: bytes) -> None:
        self._hear_events(data)
        self.flush(is_first=False, is_last=False)

    def close_stream(self, last: bytes = b"") -> None:
        self._hear_events(last)
        self.on_end()
        self.flush(is_first=False, is_last=True)

    # ---- decoding ----

    def _hear_events(self, data: bytes) -> None:
        try:
            if data.startswith(b"data: {") and data.find(b"\n") == len(data) - 2:  # one event, one line: nearly always
                self.hear(data[6:])
                return
            for payload in payloads(data):
                if not payload.startswith(b"[DONE]"):
                    self.hear(payload)
        except UpstreamError as error:
            # Not to be tried again: the hooks have heard a part already. Nor of a kind that a backend takes, once
            # [DONE] is there, for a connection that broke after its answer: nobody would hear of it.
            raise EngineRefused(502, error.message, type=error.type, code=error.code) from None

    def hear(self, payload: bytes) -> None:
        """The JSON of one event, or of a whole answer. Raises UpstreamError when it is not the JSON it should be."""
        try:
            event = _DECODE(payload)
        except NOT_JSON as error:
            raise UpstreamError(f"The engine's answer is not the JSON it should be: {error}.") from None
        for choice in event.choices:
            said = choice.delta or choice.message
            if said is not None:
                self._hear_said(choice.index, said, choice.logprobs)
            elif choice.text or choice.logprobs is not None:
                self.on_text(choice.index, choice.text or "", choice.logprobs)
            if choice.finish_reason:  # MNN: empty while it goes on
                stop = choice.stop_reason or choice.matched_stop
                if isinstance(stop, str):
                    self.on_stop(choice.index, stop)
                self.on_finish(choice.index, choice.finish_reason)
        if event.usage is not None:
            self.on_usage(event.usage)

    def _hear_said(self, index: int, said: Said, logprobs: Logprobs | None) -> None:
        reasoning = said.reasoning or said.reasoning_content
        if reasoning:
            self.on_reasoning(index, reasoning)
        if said.content:
            self.on_text(index, said.content, logprobs)
        elif logprobs is not None and not reasoning and logprobs.content:
            self.on_text(index, "", logprobs)
        if said.refusal:
            self.on_refusal(index, said.refusal)
        for place, part in enumerate(said.tool_calls or ()):
            if part.index is None:
                part.index = place
            self.on_tool_call(index, part)
