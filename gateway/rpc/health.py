"""grpc.health.v1: the server as a whole (""), each service, each model by its name.

Written here because it must end on its own: a watching client may never leave, and would hold up the drain. Readiness
has no events, so it is looked at again every quarter of a second: once for all who watch, for they need no key and
may be thousands.
"""

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager, suppress

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthServicer

from gateway.routing.router import Router
from gateway.rpc.entrance import Entrance
from gateway.rpc.status import Context

LOOK_S = 0.25


class Health(HealthServicer):
    """`services`: their full names; they serve as soon as any model is ready."""

    def __init__(self, entrance: Entrance, router: Router, services: list[str]) -> None:
        self._entrance = entrance
        self._router = router
        self._services = {"", *services}
        self._watching = 0
        self._looking: asyncio.Task[None] | None = None
        self._seen: object = None
        self._changed = asyncio.Event()

    async def Check(self, request: HealthCheckRequest, context: Context) -> HealthCheckResponse:
        status = self._status(request.service)
        if status == HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"There is no service and no model {request.service[:128]!r}."
            )
        return HealthCheckResponse(status=status)

    async def Watch(
        self,
        request: HealthCheckRequest,
        context: Context,  # noqa: ARG002
    ) -> AsyncGenerator[HealthCheckResponse, None]:
        """Ends when the server stops, after NOT_SERVING."""
        told: int | None = None
        with self._looked_at():
            while True:
                changed = self._changed
                status = self._status(request.service)
                if status != told:
                    told = status
                    yield HealthCheckResponse(status=status)
                if self._entrance.is_draining.is_set():
                    return
                await changed.wait()

    @contextmanager
    def _looked_at(self) -> Generator[None, None, None]:
        """Within it, `_changed` is set, and a new one made, when any status may have changed."""
        self._look()
        self._watching += 1
        if self._looking is None:
            self._looking = asyncio.ensure_future(self._keep_looking())
        try:
            yield
        finally:
            self._watching -= 1

    async def _keep_looking(self) -> None:
        draining = self._entrance.is_draining
        while self._watching:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await draining.wait()
            self._look()
            if draining.is_set():
                break
        self._looking = None

    def _look(self) -> None:
        models = self._router.models | self._router.adapters
        seen = {name: model.is_ready for name, model in models.items()}, self._entrance.is_draining.is_set()
        if seen != self._seen:
            self._seen = seen
            self._changed.set()
            self._changed = asyncio.Event()

    def _status(self, name: str) -> int:
        models = self._router.models
        model = models.get(name) or self._router.adapters.get(name)
        if name not in self._services and model is None:
            return HealthCheckResponse.SERVICE_UNKNOWN
        is_ready = any(m.is_ready for m in models.values()) if model is None else model.is_ready
        if is_ready and not self._entrance.is_draining.is_set():
            return HealthCheckResponse.SERVING
        return HealthCheckResponse.NOT_SERVING
