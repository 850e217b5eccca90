"""One request's answers on the event loop: submit them, receive their deltas, abort what is left."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from openvino_engine.errors import ApiError
from openvino_engine.job import Job
from openvino_engine.loop import EngineLoop
from openvino_engine.sampling import Sampling
from openvino_engine.sequence import Delta, Growing


class Answers:
    """``prompts`` × ``n`` answers, flattened as index = prompt · n + choice. Leaving the `with` aborts what runs."""

    def __init__(self, loop: EngineLoop, sampling: Sampling, new_sequence: Callable[[], Growing]) -> None:
        self._loop = loop
        self._sampling = sampling
        self._new_sequence = new_sequence
        self._jobs: list[Job] = []
        self._arrived: deque[tuple[int, Delta | ApiError]] = deque()
        self._wake = asyncio.Event()

    def __enter__(self) -> "Answers":
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.cancel(self._jobs)

    def submit(self, prompts: list[list[int]], n: int) -> None:
        """Queue all answers. Raises ApiError 503 when they do not fit."""
        jobs = [
            self._job(prompt, choice, index * n + choice) for index, prompt in enumerate(prompts) for choice in range(n)
        ]
        self._loop.submit(jobs)
        self._jobs = jobs

    async def deltas(self) -> AsyncIterator[tuple[int, Delta]]:
        """(index, delta) as they come, until every answer has finished. Raises ApiError when one of them fails."""
        left = len(self._jobs)
        while left:
            await self._wake.wait()
            self._wake.clear()
            while self._arrived:
                index, event = self._arrived.popleft()
                if isinstance(event, ApiError):
                    raise event
                left -= event.finish is not None
                yield index, event

    def has_more(self, index: int) -> bool:
        """Whether the next delta of `index` is there already: a slow way out may take both at once."""
        return any(waiting == index for waiting, _ in self._arrived)

    def _job(self, prompt: list[int], choice: int, index: int) -> Job:
        def deliver(event: Delta | ApiError) -> None:
            self._arrived.append((index, event))
            self._wake.set()

        return Job(prompt, self._sampling, choice, self._new_sequence(), deliver)
