"""What a model says, as penstock.v1's messages: the clients of the two RPCs that ask one.

Both hear the same typed pieces (serving/events.py); one gathers them into an answer, the other sends them on.
"""

from gateway.core.errors import PenstockError
from gateway.protos.penstock.v1 import chat_pb2 as pb
from gateway.rpc.outbox import Outbox
from gateway.serving.events import FullUsage, Listener, Logprobs, TokenLogprob, ToolCall


class Heard(Listener):
    """What both have in common. `error` is how the RPC ends, if it does not end well."""

    def __init__(self) -> None:
        self.error: PenstockError | None = None

    def fail(self, error: PenstockError) -> None:
        self.error = error

    def on_usage(self, usage: FullUsage) -> None:
        self.usage = pb.Usage(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.output,
            cached_tokens=usage.cached,
            reasoning_tokens=usage.thought,
        )

    usage: pb.Usage | None = None


class WholeAnswer(Heard):
    """`message` is complete when serving has returned without an error."""

    started = False
    paused = False

    def __init__(self, request_id: str, model: str) -> None:
        super().__init__()
        self.message = pb.CompleteResponse(id=request_id, model=model)
        self._choices: dict[int, pb.Choice] = {}

    async def drained(self) -> None:
        return

    def on_reasoning(self, index: int, text: str) -> None:
        self._choice(index).message.reasoning += text

    def on_text(self, index: int, text: str, logprobs: Logprobs | None) -> None:
        choice = self._choice(index)
        choice.message.content += text
        choice.logprobs.extend(_tokens(logprobs))

    def on_refusal(self, index: int, text: str) -> None:
        self._choice(index).message.refusal += text

    def on_tool_call(self, index: int, part: ToolCall) -> None:
        function = part.function
        self._choice(index).message.tool_calls.append(
            pb.ToolCall(
                id=part.id or "",
                name=(function.name if function else None) or "",
                arguments_json=(function.arguments if function else None) or "",
            )
        )

    def on_finish(self, index: int, reason: str) -> None:
        self._choice(index).finish_reason = reason

    def flush(self, *, is_first: bool, is_last: bool) -> None:  # noqa: ARG002
        del self.message.choices[:]
        self.message.choices.extend(self._choices[index] for index in sorted(self._choices))
        if self.usage is not None:
            self.message.usage.CopyFrom(self.usage)

    def _choice(self, index: int) -> pb.Choice:
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = pb.Choice(index=index, message=pb.Message(role=pb.ROLE_ASSISTANT))
        return choice


class StreamedAnswer(Heard):
    """What arrived together leaves in one message; the usage in the last."""

    def __init__(self, request_id: str, model: str, outbox: Outbox[pb.StreamResponse]) -> None:
        super().__init__()
        self.started = False
        self._request_id = request_id
        self._model = model
        self._outbox = outbox
        self._deltas: list[pb.ChoiceDelta] = []

    @property
    def paused(self) -> bool:
        return self._outbox.paused

    async def drained(self) -> None:
        await self._outbox.drained()

    def on_reasoning(self, index: int, text: str) -> None:
        self._deltas.append(pb.ChoiceDelta(index=index, reasoning=text))

    def on_text(self, index: int, text: str, logprobs: Logprobs | None) -> None:
        self._deltas.append(pb.ChoiceDelta(index=index, content=text, logprobs=_tokens(logprobs)))

    def on_refusal(self, index: int, text: str) -> None:
        self._deltas.append(pb.ChoiceDelta(index=index, refusal=text))

    def on_tool_call(self, index: int, part: ToolCall) -> None:
        delta = pb.ToolCallDelta(index=part.index or 0, id=part.id or "")
        if part.function is not None:
            delta.name, delta.arguments_json = part.function.name or "", part.function.arguments or ""
        self._deltas.append(pb.ChoiceDelta(index=index, tool_calls=[delta]))

    def on_finish(self, index: int, reason: str) -> None:
        self._deltas.append(pb.ChoiceDelta(index=index, finish_reason=reason))

    def flush(self, *, is_first: bool, is_last: bool) -> None:  # noqa: ARG002
        self.started = True
        usage = self.usage if is_last else None
        if self._deltas or usage is not None:
            self._outbox.put(
                pb.StreamResponse(id=self._request_id, model=self._model, deltas=self._deltas, usage=usage)
            )
            self._deltas = []


def _tokens(logprobs: Logprobs | None) -> list[pb.TokenLogprob]:
    return [_token(token) for token in (logprobs.content or ())] if logprobs is not None else []


def _token(token: TokenLogprob) -> pb.TokenLogprob:
    top = [
        pb.TokenLogprob.Alternative(token=other.token, logprob=other.logprob, raw=bytes(other.bytes or ()))
        for other in token.top_logprobs
    ]
    return pb.TokenLogprob(token=token.token, logprob=token.logprob, raw=bytes(token.bytes or ()), top=top)
