"""Slots, queue and choice of a deployment, without a network."""

import asyncio
from collections.abc import Mapping

import pytest
from msgspec import Raw

from gateway.backends.openai_http import OpenAIHTTP
from gateway.core.call import Call, Endpoint
from gateway.core.errors import DeadlineExceeded, InvalidRequest, ModelNotFound, Overloaded, Unavailable
from gateway.core.replica import Probe, Replica, ReplicaState
from gateway.routing.deployment import Deployment
from gateway.routing.health import HealthWatch
from gateway.routing.policies import POLICIES
from gateway.routing.router import Model, Router
from gateway.telemetry.metrics import Series


class NoBackend:
    """Deployments only look at these two."""

    kind = "none"
    fields: Mapping[Endpoint, frozenset[str]] = {Endpoint.CHAT: frozenset({"model", "messages"})}


def deployment(replicas: int = 2, slots: int = 1, **options: object) -> Deployment:
    made = Deployment(
        name=str(options.pop("name", "d")),
        model="m",
        backend=NoBackend(),  # type: ignore[arg-type]
        policy=POLICIES[str(options.pop("policy", "least_request"))](),
        replicas=[Replica(f"r{i}", f"http://r{i}", "m", slots) for i in range(replicas)],
        series=Series("m", "d"),
        **options,  # type: ignore[arg-type]
    )
    for replica in made.replicas:
        replica.state = ReplicaState.READY
    made.replicas_changed()
    return made


def call(model: str = "m", **fields: bytes) -> Call:
    raw = {"model": Raw(b'"m"'), **{name: Raw(value) for name, value in fields.items()}}
    return Call(Endpoint.CHAT, model, b"", raw, stream=False, wants_usage=False, request_id="r", received_s=0.0)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_policy_shares_equal_replicas_equally(policy: str) -> None:
    d = deployment(replicas=3, slots=10, policy=policy)
    picked = [d.try_slot(call()) for _ in range(9)]
    assert {r.name: picked.count(r) for r in d.replicas} == {"r0": 3, "r1": 3, "r2": 3}


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_no_policy_is_ever_offered_a_full_replica(policy: str) -> None:
    d = deployment(replicas=2, slots=1, policy=policy)
    assert {d.try_slot(call()), d.try_slot(call())} == set(d.replicas)
    assert d.try_slot(call()) is None


def test_least_request_weighs_by_slots() -> None:
    d = deployment(replicas=2, slots=2)
    d.replicas[0].max_in_flight, d.replicas[0].in_flight = 10, 3
    d.replicas[1].in_flight = 1
    assert d.try_slot(call()) is d.replicas[0]


def test_nobody_ready_is_unavailable_with_the_reason() -> None:
    d = deployment()
    for replica in d.replicas:
        replica.state, replica.reason = ReplicaState.DOWN, "connection refused"
    d.replicas_changed()
    with pytest.raises(Unavailable, match="connection refused"):
        d.try_slot(call())


async def test_the_queue_is_first_in_first_out_and_nobody_overtakes() -> None:
    d = deployment(replicas=1)
    held = d.try_slot(call())
    order: list[int] = []

    async def wait(number: int) -> Replica:
        replica = await d.wait_for_slot(call())
        order.append(number)
        return replica

    waiting = [asyncio.create_task(wait(number)) for number in range(3)]
    await asyncio.sleep(0)
    assert held is not None
    d.give_back(held, "ok")
    assert d.try_slot(call()) is None  # the slot belongs to the first in the queue already
    for task in waiting:
        d.give_back(await task, "ok")
    assert order == [0, 1, 2]
    assert d.replicas[0].in_flight == 0


async def test_who_leaves_the_queue_loses_no_slot_for_the_others() -> None:
    d = deployment(replicas=1)
    held = d.try_slot(call())
    assert held is not None
    first, second = (asyncio.create_task(d.wait_for_slot(call())) for _ in range(2))
    await asyncio.sleep(0)
    d.give_back(held, "ok")  # handed to the first ...
    first.cancel()  # ... who leaves in the same moment
    assert await second is held
    assert held.in_flight == 1
    assert d.waiting == 0


async def test_a_full_queue_and_a_long_wait_are_told_apart_from_a_deadline() -> None:
    d = deployment(replicas=1, max_waiting=1, queue_timeout_s=0.05)
    d.try_slot(call())
    late = call()
    late.deadline_s = 0.0
    with pytest.raises(DeadlineExceeded):
        await d.wait_for_slot(late)
    with pytest.raises(Overloaded, match="within"):
        await d.wait_for_slot(call())
    waiting = asyncio.create_task(d.wait_for_slot(call()))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="wait already"):
        await d.wait_for_slot(call())
    waiting.cancel()


async def test_a_replica_that_becomes_ready_serves_the_queue() -> None:
    d = deployment(replicas=2)
    d.replicas[1].state = ReplicaState.DOWN
    d.replicas_changed()
    d.try_slot(call())
    waiting = asyncio.create_task(d.wait_for_slot(call()))
    await asyncio.sleep(0)
    d.replicas[1].state = ReplicaState.READY
    d.replicas_changed()
    assert await waiting is d.replicas[1]


def test_traffic_is_shared_by_weight_among_deployments_that_can_answer() -> None:
    big, small, idle = deployment(name="big", weight=9), deployment(name="small"), deployment(name="idle", weight=0)
    router = Router({"m": Model("m", [big, small, idle], 0)})
    picked = [router.route(call()).name for _ in range(2000)]
    assert 1700 < picked.count("big") < 1900
    assert "idle" not in picked
    for replica in big.replicas:
        replica.state = ReplicaState.DOWN
    big.replicas_changed()
    assert {router.route(call()).name for _ in range(50)} == {"small"}


def test_what_the_engine_would_ignore_is_refused_by_name() -> None:
    router = Router({"m": Model("m", [deployment()], 0)})
    with pytest.raises(InvalidRequest) as caught:
        router.route(call(seed=b"1"))
    assert caught.value.param == "seed"
    router.route(call(seed=b"null", user=b'"u"'))  # asks for nothing
    with pytest.raises(ModelNotFound):
        router.route(call(model="other"))


class Hostile(NoBackend):
    """Raises what no backend should, `faults` times at each step; then all is well."""

    capabilities = OpenAIHTTP.capabilities

    def __init__(self, **faults: int) -> None:
        self.faults = faults

    def _meet(self, step: str) -> None:
        if self.faults.get(step, 0) > 0:
            self.faults[step] -= 1
            raise ValueError(f"nobody thought of {step}")

    async def probe(self, replica: Replica) -> Probe:
        self._meet("probe")
        return Probe(up=True, models={replica.served_model: {}})

    async def warm_up(self, replica: Replica, endpoint: Endpoint) -> None:
        self._meet("warm_up")


@pytest.mark.parametrize("step", ["probe", "warm_up"])
async def test_a_health_watch_outlives_whatever_a_backend_raises(step: str) -> None:
    made = deployment(replicas=1)
    made.backend = Hostile(**{step: 1})  # type: ignore[assignment]
    (replica,) = made.replicas
    replica.state = ReplicaState.DOWN
    reasons = set()
    watch = HealthWatch(made, probe_interval_s=0.001)
    watch.start()
    try:
        async with asyncio.timeout(10):
            while not replica.is_ready:
                await asyncio.sleep(0)
                reasons.add(replica.reason)
    finally:
        await watch.stop()
    assert f"looking at it failed: ValueError: nobody thought of {step}" in reasons
