"""grpc.health.v1: the server as a whole (""), each service, each model by its name.

Written here because it must end on its own: a watching client may never leave, and would hold up the drain. Readiness
has no events, so a watch looks again every quarter of a second.
"""

import asyncio
from collections.abc import AsyncGenerator

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
        draining = self._entrance.is_draining
        told: int | None = None
        while True:
            status = self._status(request.service)
            if status != told:
                told = status
                yield HealthCheckResponse(status=status)
            if draining.is_set():
                return
            try:
                async with asyncio.timeout(LOOK_S):
                    await draining.wait()
            except TimeoutError:
                continue

    def _status(self, name: str) -> int:
        models = self._router.models
        model = models.get(name) or self._router.adapters.get(name)
        if name not in self._services and model is None:
            return HealthCheckResponse.SERVICE_UNKNOWN
        is_ready = any(m.is_ready for m in models.values()) if model is None else model.is_ready
        if is_ready and not self._entrance.is_draining.is_set():
            return HealthCheckResponse.SERVING
        return HealthCheckResponse.NOT_SERVING
