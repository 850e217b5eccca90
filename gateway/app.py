"""Joins the parts. The only place where settings become objects and objects meet."""

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import FastAPI

from gateway.api.auth import Authenticator
from gateway.api.http_client import HttpClient
from gateway.api.images import Images
from gateway.api.inference import hot_routes
from gateway.api.kserve import PREFIX, kserve_route
from gateway.api.parse import Parser
from gateway.api.request_id import accept_request_id
from gateway.api.responses_store import ResponseStore
from gateway.api.voices import error_at
from gateway.api.web import make_web_app
from gateway.api.wire import Wire
from gateway.backends.base import Backend, Patience
from gateway.backends.capabilities import Adapters
from gateway.backends.checkpoint import read_manifest
from gateway.backends.registry import make_backend
from gateway.core.call import Endpoint
from gateway.core.replica import Replica
from gateway.routing.adapters import Adapter, Shelf
from gateway.routing.deployment import Deployment
from gateway.routing.health import HealthWatch
from gateway.routing.policies import POLICIES
from gateway.routing.router import Model, Router
from gateway.serving.intake import Intake
from gateway.serving.serve import Service
from gateway.settings import ConfigError, DeploymentSettings, Settings
from gateway.telemetry.logs import AccessLog
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.record import Telemetry
from gateway.telemetry.tracing import make_tracer

if TYPE_CHECKING:
    from gateway.rpc.server import RpcServer


@dataclass(frozen=True, slots=True)
class App:
    """`web` is the ASGI application (its lifespan opens and closes everything), `wire` what serves the hot
    routes in front of it, `service` the core under both, `rpc` the gRPC door where one is
    configured."""

    web: FastAPI
    wire: Wire
    service: Service
    rpc: "RpcServer | None"


def create_app(settings: Settings) -> App:
    """Raises LookupError for an engine nobody knows, ConfigError when the access log cannot be opened."""
    metrics = Metrics()
    models = _models(settings, metrics)
    watches = {d: _watch(model, d, settings) for model in models for d in model.deployments}
    by_name = {model.name: model for model in models}
    for model in models:
        by_name |= dict.fromkeys(settings.models[model.name].aliases, model)
    telemetry = Telemetry(metrics, _access_log(settings, metrics), make_tracer(settings.telemetry))
    service = Service(
        Router(by_name),
        watches,
        telemetry,
        max_attempts=settings.max_attempts,
        send_timeout_s=settings.server.send_timeout_s,
    )
    keys = settings.auth.keys
    auth = Authenticator({name: key.sha256 for name, key in keys.items()}, [name for name in keys if keys[name].admin])

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        for watch in watches.values():
            watch.start()
        if rpc is not None:
            await rpc.start()
        yield
        if rpc is not None:
            await rpc.stop()
        for watch in watches.values():
            await watch.stop()
        for deployment in watches:
            await deployment.backend.aclose()
        telemetry.close()

    server, stored = settings.server, settings.responses
    store = ResponseStore(stored.store_count, stored.store_bytes, stored.store_ttl_s)
    images = _images(settings)
    intake = Intake(
        service,
        auth,
        {endpoint: Parser(endpoint, server.json_depth_limit) for endpoint in (Endpoint.CHAT, Endpoint.COMPLETIONS)},
        images.check_chat,
        accept_request_id,
    )
    rpc = _rpc(intake, settings)
    wire = Wire(
        hot_routes(service, auth, server.json_depth_limit, images, store),
        HttpClient,
        metrics.wire_refusal,
        error_at,
        server.body_limit_bytes,
        server.header_limit_bytes,
        server.receive_timeout_s,
        server.send_timeout_s,
        {PREFIX: kserve_route(intake)},
    )
    return App(make_web_app(service, by_name, auth, store, metrics, lifespan), wire, service, rpc)


def _rpc(intake: Intake, settings: Settings) -> "RpcServer | None":
    """gRPC is only imported where it is wanted."""
    if settings.rpc.port is None:
        return None
    from gateway.rpc.server import RpcServer

    return RpcServer(intake, settings.rpc, settings.server)


def _images(settings: Settings) -> Images:
    vision = settings.vision
    hosts = frozenset(host.lower() for host in vision.allowed_hosts)
    return Images(vision.image_limit_bytes, vision.images_per_request, frozenset(vision.media_types), hosts)


def _models(settings: Settings, metrics: Metrics) -> list[Model]:
    created = int(time.time())
    return [
        Model(
            name,
            [_deployment(name, key, deployment, metrics) for key, deployment in model.deployments.items()],
            created,
            Shelf({adapter: Adapter(adapter, given.path) for adapter, given in model.adapters.items()}),
        )
        for name, model in settings.models.items()
    ]


def _deployment(model: str, name: str, settings: DeploymentSettings, metrics: Metrics) -> Deployment:
    patience = Patience(settings.connect_timeout_s, settings.first_token_timeout_s, settings.idle_timeout_s)
    series = metrics.new_series(model, name)
    backend = make_backend(settings.engine, patience, settings.checkpoint)
    replicas = [
        Replica(
            key,
            replica.url,
            settings.model or model,
            replica.max_in_flight if backend.capabilities.concurrent else 1,
            replica.api_key,
        )
        for key, replica in settings.replicas.items()
    ]
    for replica in replicas:
        series.replica_ready(replica.name, is_ready=False)
    return Deployment(
        name=name,
        model=model,
        backend=backend,
        policy=POLICIES[settings.policy](),
        replicas=replicas,
        series=series,
        weight=settings.weight,
        deadline_s=settings.deadline_s,
        max_waiting=settings.max_waiting,
        queue_timeout_s=settings.queue_timeout_s,
        warm_up=_warm_up(settings, backend),
        manifest=None if settings.checkpoint is None else read_manifest(settings.checkpoint),
    )


def _warm_up(settings: DeploymentSettings, backend: Backend) -> Endpoint | None:
    """What is asked first: completions, or the first endpoint there is where the engine has none (MNN)."""
    if settings.warm_up == "none":
        return None
    if settings.warm_up is not None:
        return Endpoint[settings.warm_up.upper()]
    return Endpoint.COMPLETIONS if Endpoint.COMPLETIONS in backend.fields else next(iter(backend.fields))


def _watch(model: Model, deployment: Deployment, settings: Settings) -> HealthWatch:
    """Raises ConfigError when the model has adapters and the deployment's engine cannot have them."""
    if model.shelf.adapters and deployment.backend.capabilities.adapters is Adapters.NONE:
        raise ConfigError(
            f"models.{model.name}.adapters: the engine of its deployment {deployment.name!r} "
            f"({deployment.backend.kind}) has no adapters"
        )
    interval_s = settings.models[model.name].deployments[deployment.name].probe_interval_s
    return HealthWatch(deployment, interval_s, shelf=model.shelf)


def _access_log(settings: Settings, metrics: Metrics) -> AccessLog | None:
    if not settings.telemetry.access_log:
        return None
    path = settings.telemetry.access_log_path
    try:
        return AccessLog(str(path) if path else None, metrics.log_lines_lost)
    except OSError as error:
        raise ConfigError(f"telemetry.access_log_path: {path}: {error.strerror}") from error
