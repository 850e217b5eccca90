"""Which replicas may get traffic: a cheap probe again and again, and one real token before the first request."""

import asyncio
import logging
import random
from dataclasses import dataclass

from gateway.core.errors import PenstockError
from gateway.core.replica import Replica, ReplicaState
from gateway.routing.deployment import Deployment

log = logging.getLogger("penstock.health")


@dataclass(slots=True)
class HealthWatch:
    """Watches the replicas of one deployment. `probe_interval_s` is jittered by a fifth, so gateways spread."""

    deployment: Deployment
    probe_interval_s: float = 2.0
    failures_to_down: int = 2
    _tasks: list[asyncio.Task[None]] | None = None

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._watch(replica)) for replica in self.deployment.replicas]
        for task in self._tasks:
            task.add_done_callback(_tell_if_broken)

    async def stop(self) -> None:
        for task in self._tasks or []:
            task.cancel()
        await asyncio.gather(*self._tasks or [], return_exceptions=True)

    async def _watch(self, replica: Replica) -> None:
        failures = 0
        while True:
            probe = await self.deployment.backend.probe(replica)
            if probe.up:
                failures = 0
                if probe.models:
                    replica.model_card = probe.models.get(replica.served_model, {})
                if not replica.is_ready:
                    await self._warm_up(replica, probe.models)
            else:
                failures += 1
                if failures >= self.failures_to_down or not replica.is_ready:
                    self._set(replica, ReplicaState.DOWN, probe.reason)
            await asyncio.sleep(self.probe_interval_s * random.uniform(0.8, 1.2) * (1 if replica.is_ready else 0.25))  # noqa: S311

    async def _warm_up(self, replica: Replica, models: dict[str, dict[str, object]] | None) -> None:
        if models and replica.served_model not in models:
            names = ", ".join(sorted(models)[:8])
            self._set(replica, ReplicaState.DOWN, f"it does not serve {replica.served_model!r}, but {names}")
            return
        endpoint = self.deployment.warm_up
        if endpoint is not None:
            self._set(replica, ReplicaState.WARMING, "it is generating its first token")
            try:
                await self.deployment.backend.warm_up(replica, endpoint)
            except PenstockError as error:
                self._set(replica, ReplicaState.DOWN, f"its first token failed: {error.message}")
                return
        self._set(replica, ReplicaState.READY, "")

    def report_unreachable(self, replica: Replica, reason: str) -> None:
        """A request could not reach it: out at once, back when a probe and a token succeed."""
        self._set(replica, ReplicaState.DOWN, reason)

    def _set(self, replica: Replica, state: ReplicaState, reason: str) -> None:
        changed = replica.state is not state
        replica.state, replica.reason = state, reason
        if not changed:
            return
        self.deployment.series.replica_ready(replica.name, is_ready=state is ReplicaState.READY)
        level = logging.WARNING if state is ReplicaState.DOWN else logging.INFO
        log.log(level, "replica %s of %s is %s%s", replica.name, self.deployment.model, state,
                f": {reason}" if reason else "")  # fmt: skip
        self.deployment.replicas_changed()


def _tell_if_broken(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("a health watch died; its replica gets no traffic any more", exc_info=error)
