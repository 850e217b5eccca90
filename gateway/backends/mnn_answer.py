"""MNN-LLM's answers as OpenAI's: one id, a role, real token counts or none, a finish reason that is not "".

Apart from mnn.py, which is about its one slot. MNN says usage as constants (10, 7, 17): with the deployment's
`checkpoint` tokens are counted here, without it an answer carries no usage at all.
"""

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec

from gateway.backends.errors import NOT_JSON
from gateway.backends.sse import payloads
from gateway.backends.triton.checkpoint import read_checkpoint
from gateway.core.call import Call, Chunk, Reply, Sink, Usage
from gateway.core.errors import InvalidRequest, PenstockError, UpstreamError


class _Words(msgspec.Struct, gc=False):
    content: str | None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Words | None = None
    message: _Words | None = None
    finish_reason: str | None = None


class _Answer(msgspec.Struct, gc=False):
    choices: list[_Choice] = []


_DECODE = msgspec.json.Decoder(_Answer).decode
_DONE = b"data: [DONE]\n\n"


class TokenCounter:
    """Counts with the checkpoint's tokenizer, prompts through its chat template. Raises ConfigError when the folder
    has no tokenizer."""

    def __init__(self, folder: Path) -> None:
        self._checkpoint = read_checkpoint(folder)

    def prompt(self, call: Call) -> int:
        """A prompt that the template refuses counts as its texts: what MNN made of it nobody knows."""
        messages = msgspec.json.decode(call.fields["messages"])
        template = self._checkpoint.template
        texts = "\n".join(str(message.get("content")) for message in messages)
        try:
            return self.text(texts if template is None else template.render(messages))
        except InvalidRequest:
            return self.text(texts)

    def text(self, text: str) -> int:
        return len(self._checkpoint.tokens.encode(text, add_special_tokens=False))


def _usage(call: Call, counter: TokenCounter | None, text: str) -> Usage | None:
    return None if counter is None else Usage(counter.prompt(call), counter.text(text))


def _told(usage: Usage) -> dict[str, int]:
    said = usage.completion_tokens or 0
    return {"prompt_tokens": usage.prompt_tokens, "completion_tokens": said, "total_tokens": usage.prompt_tokens + said}


def rewritten(reply: Reply, call: Call, counter: TokenCounter | None) -> Reply:
    """A whole answer."""
    answer = _read(reply.body)
    said = answer.choices[0].message if answer.choices else None
    if said is None or said.content is None:
        raise UpstreamError("The engine answered without a message.")
    usage = _usage(call, counter, said.content)
    message = {"role": "assistant", "content": said.content, "refusal": None}
    body: dict[str, Any] = {
        **_base(call, "chat.completion"),
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
    }
    if usage is not None:
        body["usage"] = _told(usage)
    return Reply(msgspec.json.encode(body), usage, ["stop"])


def _read(body: bytes) -> _Answer:
    """Raises UpstreamError."""
    try:
        return _DECODE(body)
    except NOT_JSON as error:
        raise UpstreamError(f"The engine's answer is not the JSON it should be: {error}.") from None


def _base(call: Call, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{call.request_id}", "object": kind, "created": int(time.time()), "model": call.model}


class Rewriter:
    """A sink in front of the client's. `broken` gets what the client's raises, once; then, or once it is abandoned,
    the rest of the stream is listened to for its end only."""

    def __init__(self, sink: Sink, call: Call, counter: TokenCounter | None, broken: "asyncio.Future[None]") -> None:
        self._sink: Sink | None = sink
        self._call = call
        self._counter = counter
        self._broken = broken
        self._base = _base(call, "chat.completion.chunk")
        self._said: list[str] = []
        self._has_role = False

    def abandon(self) -> None:
        self._sink = None
        if not self._broken.cancel() and not self._broken.cancelled():
            self._broken.exception()  # seen: the loop need not complain

    def push(self, chunk: Chunk) -> bool:
        if self._sink is None:
            return False
        if chunk.error is None:
            events = [self._rewritten(payload, chunk) for payload in payloads(chunk.data)]
            chunk.data = b"".join(events)
        try:
            return self._sink.push(chunk)
        except PenstockError as error:
            self._fail(error)
            return False

    def push_content(self, data: bytes, at_s: float) -> bool:
        return self.push(Chunk(data, at_s, contents=1))

    @property
    def paused(self) -> bool:
        return self._sink is not None and self._sink.paused

    async def drained(self) -> None:
        if self._sink is not None:
            try:
                await self._sink.drained()
            except PenstockError as error:
                self._fail(error)

    def _fail(self, error: PenstockError) -> None:
        self._sink = None
        if not self._broken.done():
            self._broken.set_exception(error)

    def _rewritten(self, payload: bytes, chunk: Chunk) -> bytes:
        if payload.startswith(b"[DONE]"):
            return self._counted(chunk) + _DONE
        return b"".join(self._event(choice) for choice in _read(payload).choices)

    def _event(self, choice: _Choice) -> bytes:
        events = b""
        if not self._has_role:
            self._has_role = True
            events = self._chunk({"role": "assistant", "content": ""}, None)
        text = (choice.delta.content if choice.delta is not None else None) or ""
        if text:
            self._said.append(text)
            events += self._chunk({"content": text}, None)
        return events + self._chunk({}, choice.finish_reason) if choice.finish_reason else events

    def _chunk(self, delta: dict[str, str], reason: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return b"data: %b\n\n" % msgspec.json.encode({**self._base, "choices": [choice]})

    def _counted(self, chunk: Chunk) -> bytes:
        """The usage event, where one is wanted; the chunk is told in any case."""
        usage = chunk.usage = _usage(self._call, self._counter, "".join(self._said))
        if usage is None or not self._call.wants_usage:
            return b""
        return b"data: %b\n\n" % msgspec.json.encode({**self._base, "choices": [], "usage": _told(usage)})
