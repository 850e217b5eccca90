"""MNN-LLM (`mnncli serve`), a server for phones and small machines: one request at a time, and few words of OpenAI's.

Two things are worked around. It cannot abort: whoever leaves early gives his place to nobody until the engine has
finished, so every exchange runs in a task of its own, to its end, and holds the replica's slot as long. And what it
answers is rewritten (mnn_answer.py). It acts on `messages` and `stream` alone; everything else is refused, not ignored.
Source: MNN `apps/mnncli/src/mnncli_server.cpp`.
"""

import asyncio
import functools
import re
import time
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import msgspec

from gateway.backends.base import Patience
from gateway.backends.capabilities import Capabilities, Tested
from gateway.backends.dialect import Fields, decoded, raw
from gateway.backends.mnn_answer import Rewriter, TokenCounter, rewritten
from gateway.backends.openai_http import OpenAIHTTP
from gateway.core.call import Call, Endpoint, Reply, Sink
from gateway.core.errors import DeadlineExceeded, InvalidRequest
from gateway.core.replica import Probe, Replica

Answer = TypeVar("Answer")
FOREVER = float("inf")
_FETCHED = re.compile(r"<(?:img|audio|video)\b", re.IGNORECASE)
"""MNN's multimodal prompts load what stands between such tags, also from the network: `omni.cpp`."""


class MNN(OpenAIHTTP):
    kind: ClassVar[str] = "mnn"
    capabilities: ClassVar[Capabilities] = Capabilities(
        tested=Tested.CONTRACT, quantization=None, checkpoints=False, concurrent=False
    )
    fields: ClassVar[Mapping[Endpoint, frozenset[str]]] = {
        Endpoint.CHAT: frozenset({"model", "messages", "stream", "stream_options"})
    }

    def __init__(self, patience: Patience, checkpoint: Path | None = None) -> None:
        super().__init__(patience, checkpoint)
        self._counter = None if checkpoint is None else TokenCounter(checkpoint)
        self._turns: set[asyncio.Task[Any]] = set()

    async def complete(self, replica: Replica, call: Call) -> Reply:
        reply = await self._to_its_end(replica, call, super().complete(replica, _endless(call)))
        return rewritten(reply, call, self._counter)

    async def stream(self, replica: Replica, call: Call, sink: Sink) -> None:
        broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        rewriter = Rewriter(sink, call, self._counter, broken)
        try:
            await self._to_its_end(replica, call, super().stream(replica, _endless(call), rewriter), broken)
        finally:
            rewriter.abandon()

    async def probe(self, replica: Replica) -> Probe:
        """Its list of models is a constant, and tells nothing."""
        probe = await super().probe(replica)
        probe.models = None
        return probe

    async def aclose(self) -> None:
        for turn in self._turns:
            turn.cancel()
        await super().aclose()

    def dialect(self, call: Call, fields: Fields) -> Fields:  # noqa: ARG002
        """Its messages have text: parts are joined, pictures refused."""
        messages = decoded(fields, "messages")
        texts = [_text(message) for message in messages]
        if any(_FETCHED.search(text) for text in texts):
            raise InvalidRequest(
                "The engine (mnn) would read <img> and <audio> in a text as something to fetch; write them otherwise.",
                param="messages",
            )
        if all(text is message.get("content") for text, message in zip(texts, messages, strict=True)):
            return fields
        plain = [message | {"content": text} for message, text in zip(messages, texts, strict=True)]
        return {**fields, "messages": raw(plain)}

    async def _to_its_end(
        self,
        replica: Replica,
        call: Call,
        exchange: Coroutine[Any, Any, Answer],
        broken: asyncio.Future[None] | None = None,
    ) -> Answer:
        """What `exchange` returns or raises. It goes on when we are cancelled, when the deadline passes, or when
        `broken` fails: the slot is its own then, until it is over."""
        turn = asyncio.create_task(exchange)
        patience_s = None if call.deadline_s == FOREVER else max(call.deadline_s - time.monotonic(), 0)
        waits: set[asyncio.Future[Any]] = {turn} if broken is None else {turn, broken}
        try:
            await asyncio.wait(waits, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not turn.done():
                replica.occupy()
                self._turns.add(turn)
                turn.add_done_callback(functools.partial(self._over, replica))
        if broken is not None and broken.done():
            broken.result()
        if not turn.done():
            raise DeadlineExceeded("The request's deadline is over.")
        return turn.result()

    def _over(self, replica: Replica, turn: "asyncio.Task[Any]") -> None:
        self._turns.discard(turn)
        if not turn.cancelled():
            turn.exception()  # nobody is there to hear it
        replica.vacate()


def _endless(call: Call) -> Call:
    """The engine works to the end whatever the deadline; only its silence ends our patience."""
    return msgspec.structs.replace(call, deadline_s=FOREVER)


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [None]
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    if None in texts:
        raise InvalidRequest(
            "The engine (mnn) takes messages of text only: no pictures, no tool calls.", param="messages"
        )
    return "\n".join(map(str, texts))
