"""Which replicas may get traffic: a cheap probe again and again; one real token, and the model's adapters,
before the first request."""

import asyncio
import logging
import random
from dataclasses import dataclass, field

from gateway.core.errors import PenstockError
from gateway.core.replica import Replica, ReplicaState
from gateway.routing.adapters import Cards, Shelf
from gateway.routing.deployment import Deployment

log = logging.getLogger("penstock.health")


@dataclass(slots=True)
class HealthWatch:
    """Watches the replicas of one deployment. `probe_interval_s` is jittered by a fifth, so gateways spread.

    `shelf`: the adapters that each replica must have.
    """

    deployment: Deployment
    probe_interval_s: float = 2.0
    failures_to_down: int = 2
    shelf: Shelf = field(default_factory=Shelf)
    _tasks: list[asyncio.Task[None]] | None = None
    _told: dict[str, str] = field(default_factory=dict)

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._watch(replica)) for replica in self.deployment.replicas]

    async def stop(self) -> None:
        for task in self._tasks or []:
            task.cancel()
        await asyncio.gather(*self._tasks or [], return_exceptions=True)

    async def _watch(self, replica: Replica) -> None:
        failed = _Failures()
        while True:
            try:
                await self._look(replica, failed)
            except Exception as error:  # noqa: BLE001  the outermost door of this task: a watch that dies never comes back
                failed.tokens += 1
                self._set(replica, ReplicaState.DOWN, f"looking at it failed: {type(error).__name__}: {error}", error)
            await asyncio.sleep(self._pause_s(replica, failed.tokens))

    async def _look(self, replica: Replica, failed: "_Failures") -> None:
        probe = await self.deployment.backend.probe(replica)
        if not probe.up:
            failed.probes += 1
            if failed.probes >= self.failures_to_down or not replica.is_ready:
                self._set(replica, ReplicaState.DOWN, probe.reason)
            return
        failed.probes = 0
        if probe.models:
            replica.model_card = probe.models.get(replica.served_model, {})
        if not replica.is_ready:
            failed.tokens = 0 if await self._warm_up(replica, probe.models) else failed.tokens + 1
        elif not self.shelf.is_complete(self.deployment, probe.models):
            await self._refill(replica)

    def _pause_s(self, replica: Replica, failed_tokens: int) -> float:
        """Look more often at one that is coming up, but ask one that fails at it for a token ever less often."""
        share = 1.0 if replica.is_ready else min(0.25 * 2.0 ** min(failed_tokens, 8), 8.0)
        return self.probe_interval_s * share * random.uniform(0.8, 1.2)  # noqa: S311

    async def _warm_up(self, replica: Replica, models: Cards | None) -> bool:
        if models and replica.served_model not in models:
            names = ", ".join(sorted(models)[:8])
            self._set(replica, ReplicaState.DOWN, f"it does not serve {replica.served_model!r}, but {names}")
            return False
        endpoint = self.deployment.warm_up
        if endpoint is not None:
            self._set(replica, ReplicaState.WARMING, "it is generating its first token")
            try:
                await self.deployment.backend.warm_up(replica, endpoint)
            except PenstockError as error:
                self._set(replica, ReplicaState.DOWN, f"its first token failed: {error.message}")
                return False
        async with self.shelf.changing:
            return await self._fill(replica)

    async def _refill(self, replica: Replica) -> None:
        """A ready replica lists fewer adapters than it should: it was started again between two probes."""
        async with self.shelf.changing:  # what the probe saw may be older than an adapter that was just added
            probe = await self.deployment.backend.probe(replica)
            if probe.up and replica.is_ready and not self.shelf.is_complete(self.deployment, probe.models):
                self._set(replica, ReplicaState.WARMING, "it has lost adapters and loads them again")
                await self._fill(replica)

    async def _fill(self, replica: Replica) -> bool:
        try:
            await self.shelf.fill(self.deployment, replica)
        except PenstockError as error:
            self._set(replica, ReplicaState.DOWN, f"it could not load its adapters: {error.message}")
            return False
        self._set(replica, ReplicaState.READY, "")
        return True

    def report_unreachable(self, replica: Replica, reason: str) -> None:
        """A request could not reach it: out at once, back when a probe and a token succeed."""
        self._set(replica, ReplicaState.DOWN, reason)

    def _set(self, replica: Replica, state: ReplicaState, reason: str, bug: Exception | None = None) -> None:
        """`bug`: what should not have happened, told with its traceback."""
        was_ready = replica.is_ready
        replica.state, replica.reason = state, reason
        if replica.is_ready is not was_ready:
            self.deployment.series.replica_ready(replica.name, is_ready=replica.is_ready)
            self.deployment.replicas_changed()
        if state is not ReplicaState.WARMING and self._told.get(replica.name) != (told := f"{state}: {reason}"):
            self._told[replica.name] = told
            level = logging.WARNING if state is ReplicaState.DOWN else logging.INFO
            log.log(level, "replica %s of %s is %s", replica.name, self.deployment.model, told.removesuffix(": "),
                    exc_info=bug)  # fmt: skip


@dataclass(slots=True)
class _Failures:
    """In a row: probes without an answer, and attempts at a first token."""

    probes: int = 0
    tokens: int = 0
