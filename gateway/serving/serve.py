"""The life of a request, top to bottom: route, admit, attempt, relay, record.

The client is told nothing before an engine has answered: until the first event another replica may be
tried, after it never. docs/request-life.md walks through this file.
"""

import asyncio
import time

from gateway.core.call import Call, Client
from gateway.core.errors import Draining, EngineUnreachable, PenstockError, UpstreamError
from gateway.core.replica import Replica
from gateway.routing.deployment import Deployment
from gateway.routing.health import HealthWatch
from gateway.routing.router import Router
from gateway.serving.relay import Relay
from gateway.telemetry.record import Record, Telemetry


class Service:
    """Answers calls. `send_timeout_s`: how long a client may read nothing before its stream is cut."""

    def __init__(
        self,
        router: Router,
        watches: dict[Deployment, HealthWatch],
        telemetry: Telemetry,
        *,
        max_attempts: int,
        send_timeout_s: float,
    ) -> None:
        self.router = router
        self.watches = watches
        self.telemetry = telemetry
        self.max_attempts = max_attempts
        self.send_timeout_s = send_timeout_s
        self.is_draining = False

    async def serve(self, call: Call, client: Client) -> None:
        """Never raises but for cancellation: every failure is told to the client and recorded."""
        record = self.telemetry.open(call)
        try:
            if self.is_draining:
                raise Draining("The gateway is shutting down; try another one.")
            deployment = self.router.route(call)
            record.routed(deployment.series, deployment.backend.kind)
            call.deadline_s = min(call.deadline_s, call.received_s + deployment.deadline_s)
            await self._attempts(deployment, call, client, record)
            record.outcome, record.status = "ok", 200
        except PenstockError as error:
            record.failed(error)
            client.fail(error)
        except asyncio.CancelledError:
            record.outcome, record.status = "client_closed", 499
            raise
        finally:
            self.telemetry.finish(record)

    async def _attempts(self, deployment: Deployment, call: Call, client: Client, record: Record) -> None:
        tried: list[Replica] = []
        while True:
            replica = deployment.try_slot(call, tried) or await self._queue(deployment, call, record, tried)
            try:
                await self._attempt(deployment, replica, call, client, record)
                return
            except PenstockError as error:
                if isinstance(error, EngineUnreachable):
                    self.watches[deployment].report_unreachable(replica, error.message)
                tried.append(replica)
                may_retry = error.retryable and record.contents == 0 and not client.started
                if not may_retry or len(tried) >= self.max_attempts or not deployment.candidates(tried):
                    raise

    async def _queue(self, deployment: Deployment, call: Call, record: Record, tried: list[Replica]) -> Replica:
        since_s = time.monotonic()
        deployment.series.waiting += 1
        try:
            return await deployment.wait_for_slot(call, tried)
        finally:
            deployment.series.waiting -= 1
            record.queue_s += time.monotonic() - since_s

    async def _attempt(
        self, deployment: Deployment, replica: Replica, call: Call, client: Client, record: Record
    ) -> None:
        self.telemetry.attempt(record, replica)
        outcome = "client_closed"  # what it is when we are cancelled
        try:
            self.router.refuse_gone(call)
            if call.stream:
                await self._stream(deployment, replica, call, client, record)
            else:
                reply = await deployment.backend.complete(replica, call)
                record.saw_reply(reply)
                client.reply(reply)
            outcome = "ok"
        except PenstockError as error:
            outcome = error.outcome
            raise
        finally:
            deployment.give_back(replica, outcome)
            self.telemetry.attempt_done(record, outcome)

    async def _stream(
        self, deployment: Deployment, replica: Replica, call: Call, client: Client, record: Record
    ) -> None:
        relay = Relay(call, client, record, self.send_timeout_s)
        await deployment.backend.stream(replica, call, relay)
        if not client.started:
            raise UpstreamError("The engine ended its stream without a single event.")
