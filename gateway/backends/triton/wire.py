"""What the backend needs of a wire to Triton, gRPC or HTTP; the choice is the replica's URL scheme."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Protocol

from gateway.backends.base import Patience
from gateway.backends.triton.tensors import ModelInfo, Outputs, Tensor
from gateway.core.call import Call
from gateway.core.errors import UpstreamTimeout
from gateway.core.replica import Replica

NEVER = float("inf")


def unique_id(call: Call) -> str:
    """The request's id at the engine. Clients may repeat theirs, and TensorRT-LLM's models cancel by id."""
    return f"{call.request_id}-{secrets.token_hex(4)}"


class Wire(Protocol):
    """Raises PenstockError subclasses only.

    `has_matrices`: tensors may have more than one dimension besides the batch's.
    """

    has_matrices: bool

    async def why_not_ready(self, replica: Replica) -> str:
        """Why the replica's model cannot answer now; empty when it can."""
        ...

    async def describe(self, replica: Replica) -> ModelInfo:
        """The model's metadata and configuration."""
        ...

    def infer(
        self, replica: Replica, call: Call, tensors: Sequence[Tensor], outputs: Sequence[str]
    ) -> AsyncGenerator[Outputs, None]:
        """Responses as they come, the last one final. Close it before that and the engine aborts the request."""
        ...

    async def aclose(self) -> None:
        """Close every connection."""
        ...


class Watch:
    """Ends a silent request: `expire` is called when nothing was `heard` in time. One timer a request, moved only
    when it rings, so that a token costs no timer."""

    __slots__ = ("_expire", "_idle_s", "_loop", "_timer", "due_s", "words")

    def __init__(self, patience: Patience, expire: Callable[[], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._idle_s = patience.idle_timeout_s
        self._expire = expire
        self.words: str | None = None
        self.due_s = time.monotonic() + patience.first_token_timeout_s
        self._timer: asyncio.TimerHandle | None = None
        self._set(patience.first_token_timeout_s, f"no first token after {patience.first_token_timeout_s:g} s")

    def _set(self, in_s: float, words: str) -> None:
        self._timer = self._loop.call_later(in_s, self._ring, words)

    def heard(self) -> None:
        """The engine may be silent again from now on."""
        self.due_s = time.monotonic() + self._idle_s

    def _ring(self, words: str) -> None:
        left_s = min(self.due_s - time.monotonic(), self._idle_s)
        if left_s > 0:
            self._set(left_s, f"nothing for {self._idle_s:g} s in the middle of its answer")
            return
        self.words = words
        self._expire()

    def rest(self) -> None:
        """Silence is the client's fault for now."""
        self.due_s = NEVER

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def error(self) -> UpstreamTimeout:
        return UpstreamTimeout(f"The engine was silent for too long ({self.words}).")
