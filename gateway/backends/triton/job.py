"""One call while it is asked of a model: its prompts, its answers, and their way into the client's stream.

Apart from the backend, which knows replicas and wires.
"""

import asyncio
from collections.abc import Coroutine
from time import monotonic
from typing import Any

from gateway.backends.triton.answer import Answer
from gateway.backends.triton.asked import Asked
from gateway.backends.triton.choice import Choice
from gateway.backends.triton.contracts.base import Answering, Contract
from gateway.backends.triton.openai_out import DONE, ENCODE, Envelope
from gateway.backends.triton.prompts import Prompt
from gateway.core.call import Call, Chunk, Sink, Usage


class Job:
    """A checked call, ready to be asked of a model: its prompts, `n` answers to each."""

    def __init__(
        self, call: Call, asked: Asked, prompts: list[Prompt], contract: Contract, *, has_matrices: bool
    ) -> None:
        self.call = call
        self.asked = asked
        self.contract = contract
        self._has_matrices = has_matrices
        self.envelope = Envelope(call)
        self.prompt_tokens = sum(len(prompt.ids) for prompt in prompts)
        self._prompts = prompts
        self.count = len(prompts) * asked.n
        # A whole answer is asked for in one piece, unless it may have to be stopped here.
        may_stop = bool(asked.ending.strings or asked.ending.ids) or asked.tools.offered is not None
        self.streams = call.stream or (may_stop and contract.keeps_characters)

    def answering(self, index: int) -> Answering:
        prompt = self._prompts[index // self.asked.n]
        checkpoint = self.contract.checkpoint
        most = self.asked.ending.max_tokens or checkpoint.context - len(prompt.ids)
        return Answering(self.asked, prompt, most, index % self.asked.n, self.streams, self._has_matrices)

    def answer(self, answering: Answering) -> Answer:
        return Answer(
            self.asked.ending,
            self.contract.checkpoint,
            answering.max_tokens,
            skip_special=self.asked.skip_special_tokens,
            end_is_counted=self.contract.end_is_counted,
        )

    def choice(self, index: int, prompt: Prompt) -> Choice:
        echo = prompt.text if self.asked.echo else ""
        return Choice(index, self.asked, self.envelope, self.contract.checkpoint.tokens, echo)


class JobStream:
    """The answers of one streaming call on their way into its sink."""

    def __init__(self, job: Job, sink: Sink) -> None:
        self.job = job
        self._sink = sink
        self._left = job.count
        self._tokens = 0
        self._started = False
        self._draining = asyncio.Lock()

    def take(self, choice: Choice, text: str, answer: Answer) -> bool:
        """Push what `choice` says; True when the client is behind."""
        plain = choice.plain
        if plain is not None and answer.finish is None and text:
            return self._sink.push_content(plain[0] + ENCODE(text) + plain[1], monotonic())
        data, contents = choice.events(text, answer)
        chunk = Chunk(data, monotonic(), contents)
        if answer.finish is not None:
            self._finish(chunk, choice, answer)
        return self._sink.push(chunk) if chunk.data else False

    def _finish(self, chunk: Chunk, choice: Choice, answer: Answer) -> None:
        chunk.finish_reason = choice.finish_reason
        self._tokens += answer.count
        self._left -= 1
        if self._left:
            return
        job = self.job
        chunk.usage = Usage(job.prompt_tokens, self._tokens)
        if job.call.wants_usage:
            chunk.data += job.envelope.usage(chunk.usage)
        chunk.data += DONE
        chunk.is_last = True

    async def drained(self) -> None:
        async with self._draining:
            if self._sink.paused:
                await self._sink.drained()


async def together(coroutines: list[Coroutine[Any, Any, Any]]) -> list[Any]:
    """All results in order; the first failure ends the others."""
    if len(coroutines) == 1:
        return [await coroutines[0]]
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
