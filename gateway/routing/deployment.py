"""A deployment: the replicas that run one model, one way of speaking to them, and their slots.

A slot is the right to one attempt at one replica. When all are taken, requests wait here, first in,
first out, up to a limit; beyond it the client is told to come back.
"""

import asyncio
import time
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from gateway.backends.base import Backend
from gateway.core.call import Call, Endpoint
from gateway.core.errors import DeadlineExceeded, InvalidRequest, Overloaded, Unavailable
from gateway.core.openai import IDENTIFIERS
from gateway.core.replica import Replica
from gateway.routing.policies import Policy
from gateway.telemetry.metrics import Series


@dataclass(slots=True, eq=False)
class Waiter:
    """A request in the queue; `slot` is resolved with the replica it may use."""

    slot: asyncio.Future[Replica]
    call: Call
    tried: Collection[Replica]


@dataclass(slots=True, eq=False)
class Deployment:
    """`weight` is its share of the model's traffic; times are seconds. `manifest`: the checkpoint's, as it was when
    the gateway started."""

    name: str
    model: str
    backend: Backend
    policy: Policy
    replicas: list[Replica]
    series: Series
    weight: float = 1.0
    deadline_s: float = 600.0
    max_waiting: int = 1024
    queue_timeout_s: float = 30.0
    warm_up: Endpoint | None = Endpoint.COMPLETIONS
    manifest: dict[str, Any] | None = None
    ready: list[Replica] = field(default_factory=list)
    _waiting: "deque[Waiter]" = field(default_factory=deque)

    def __post_init__(self) -> None:
        for replica in self.replicas:
            replica.freed = self.hand_over

    def refuse_ignored_fields(self, call: Call) -> None:
        """Raises InvalidRequest for a field, or an endpoint, that this deployment's engine would ignore."""
        accepted = self.backend.fields.get(call.endpoint)
        if accepted is None:
            raise InvalidRequest(
                f"The engine of {self.model!r} ({self.backend.kind}) does not offer /v1/{call.endpoint}.",
                param="model", code="unsupported_endpoint",
            )  # fmt: skip
        if call.images and not self.backend.capabilities.vision:
            raise InvalidRequest(
                f"The engine of {self.model!r} ({self.backend.kind}) reads text only: it takes no images.",
                param="messages", code="unsupported_content",
            )  # fmt: skip
        if call.fields.keys() <= accepted:
            return
        for name in call.fields.keys() - accepted - IDENTIFIERS:
            if bytes(call.fields[name]) != b"null":
                raise InvalidRequest(
                    f"{name!r} is not supported by the engine of {self.model!r} ({self.backend.kind}).",
                    param=name, code="unsupported_parameter",
                )  # fmt: skip

    def takes(self, call: Call) -> bool:
        """The engine has the endpoint, and ignores nothing of the call."""
        accepted = self.backend.fields.get(call.endpoint)
        if accepted is None:
            return False
        ignored = call.fields.keys() - accepted - IDENTIFIERS
        return all(bytes(call.fields[name]) == b"null" for name in ignored)

    def candidates(self, tried: Collection[Replica] = ()) -> list[Replica]:
        """Ready replicas that have not been tried, with or without a free slot."""
        ready = self.ready
        return [replica for replica in ready if replica not in tried] if tried else ready

    def replicas_changed(self) -> None:
        """The state of a replica changed; who waits may have a slot now."""
        self.ready = [replica for replica in self.replicas if replica.is_ready]
        self.hand_over()

    def try_slot(self, call: Call, tried: Collection[Replica] = ()) -> Replica | None:
        """A slot at the replica the policy picks; None when the request must wait. Raises Unavailable."""
        ready = self.candidates(tried)
        if not ready:
            raise self._unavailable()
        return None if self._waiting else self._pick_free(ready, call)

    def _pick_free(self, ready: list[Replica], call: Call) -> Replica | None:
        free = [replica for replica in ready if replica.in_flight < replica.max_in_flight]
        if not free:
            return None
        replica = self.policy.pick(free, call)
        replica.in_flight += 1
        return replica

    async def wait_for_slot(self, call: Call, tried: Collection[Replica] = ()) -> Replica:
        """Raises Overloaded when too many wait or it takes too long, DeadlineExceeded."""
        if len(self._waiting) >= self.max_waiting:
            raise Overloaded(f"All slots of {self.model!r} are taken and {self.max_waiting} requests wait already.")
        patience_s = min(self.queue_timeout_s, call.deadline_s - time.monotonic())
        waiter = Waiter(asyncio.get_running_loop().create_future(), call, tried)
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout(max(patience_s, 0)):
                return await waiter.slot
        except TimeoutError:
            self._leave(waiter)
            if time.monotonic() >= call.deadline_s:
                raise DeadlineExceeded("The request's deadline passed while it waited for a slot.") from None
            if not self.candidates(tried):
                raise self._unavailable() from None
            raise Overloaded(f"No slot of {self.model!r} became free within {self.queue_timeout_s:g} s.") from None
        except asyncio.CancelledError:
            self._leave(waiter)
            raise

    def _leave(self, waiter: "Waiter") -> None:
        if waiter in self._waiting:
            self._waiting.remove(waiter)
        elif waiter.slot.done() and not waiter.slot.cancelled():
            self.give_back(waiter.slot.result(), "client_closed")  # handed over in the very moment we left

    def give_back(self, replica: Replica, outcome: str) -> None:
        """The attempt is over: the longest waiting request gets the slot."""
        replica.in_flight -= 1
        self.policy.on_done(replica, outcome)
        if self._waiting:
            self.hand_over()

    def hand_over(self) -> None:
        """Give free slots to those who wait, in order."""
        while self._waiting:
            waiter = self._waiting[0]
            if not waiter.slot.done():
                replica = self._pick_free(self.candidates(waiter.tried), waiter.call)
                if replica is None:
                    return
                waiter.slot.set_result(replica)
            self._waiting.popleft()

    def _unavailable(self) -> Unavailable:
        return Unavailable(f"No replica of {self.model!r} is ready: {self.why_not_ready()}.")

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def why_not_ready(self) -> str:
        return "; ".join(f"{r.name} is {r.state}, {r.reason}" for r in self.replicas if not r.is_ready) or "all tried"
