"""One answer on its way through the engine: its prompt, its sampling, and what each step adds to it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import openvino_genai

from openvino_engine.errors import ApiError, overloaded
from openvino_engine.metrics import Metrics
from openvino_engine.sampling import Sampling
from openvino_engine.sequence import Delta, Growing


@dataclass(eq=False, slots=True)
class Job:
    """One answer (one choice of a request). ``deliver`` is called on the event loop with deltas, or one error."""

    prompt: list[int]
    sampling: Sampling
    choice: int
    sequence: Growing
    deliver: Callable[[Delta | ApiError], None]
    arrived_s: float = field(default_factory=time.monotonic)
    last_token_s: float = 0.0
    handle: Any = None
    over: bool = False  # event-loop side: the last event was delivered or the job was cancelled

    def read(self, now_s: float, metrics: Metrics) -> Delta | ApiError | None:
        """On the engine's thread, after a step: the new tokens, an error, or None when there is nothing yet."""
        tokens: list[int] = []
        logprobs: list[float] = []
        ended = False
        while self.handle.can_read():
            for output in self.handle.read().values():
                tokens += output.generated_ids
                logprobs += output.generated_log_probs
                ended |= output.finish_reason != openvino_genai.GenerationFinishReason.NONE
        if not tokens:
            return self._silence(metrics)
        delta = self.sequence.feed(tokens, logprobs)
        if ended and delta.finish is None:
            delta = self.sequence.end(delta)
        self._measure(delta, now_s, metrics)
        return delta

    def _silence(self, metrics: Metrics) -> ApiError | None:
        """No token: the answer waits for its turn, unless the library dropped it because the KV cache is full."""
        if self.handle.get_status() != openvino_genai.GenerationStatus.IGNORED:
            return None
        metrics.finished("error")
        return overloaded("the KV cache is full: the answer could not go on. Try again, or raise --kv-cache-gb")

    def _measure(self, delta: Delta, now_s: float, metrics: Metrics) -> None:
        metrics.generation_tokens.inc(len(delta.tokens))
        if self.last_token_s:
            metrics.itl.observe(now_s - self.last_token_s)
        else:
            metrics.ttft.observe(now_s - self.arrived_s)
        self.last_token_s = now_s
        if delta.finish is not None:
            metrics.e2e.observe(now_s - self.arrived_s)
            metrics.finished(delta.finish)
