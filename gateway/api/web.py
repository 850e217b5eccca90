"""Everything that is not hot, in FastAPI: models, health, readiness, metrics, the API's description.

Errors of the framework itself (unknown path, wrong method, bad parameters) leave in the words of the path too.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.api.admin import admin_routes
from gateway.api.auth import Authenticator
from gateway.api.describe import describe
from gateway.api.errors import error_headers
from gateway.api.kserve_models import kserve_models
from gateway.api.model_facts import facts_of
from gateway.api.request_id import accept_request_id
from gateway.api.responses_store import ResponseStore
from gateway.api.responses_web import stored_responses
from gateway.api.voices import error_at
from gateway.core.call import Endpoint
from gateway.core.errors import InvalidRequest, MethodNotAllowed, ModelNotFound, NotFound, PenstockError
from gateway.routing.adapters import Adapter
from gateway.routing.router import Model, Router
from gateway.serving.adapters import Adapters
from gateway.serving.serve import Service
from gateway.telemetry.metrics import Metrics

HOT_PATHS = {f"/v1/{endpoint}" for endpoint in Endpoint}
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def make_web_app(
    service: Service,
    models: dict[str, Model],
    auth: Authenticator,
    store: ResponseStore,
    metrics: Metrics,
    lifespan: Lifespan,
) -> FastAPI:
    app = FastAPIOffline(title="Penstock", version=version("penstock"), lifespan=lifespan, redoc_url=None)
    app.include_router(_operations(service, models, metrics))
    app.include_router(_models(service.router, auth))
    app.include_router(stored_responses(store, auth))
    app.include_router(kserve_models(service, auth))
    app.include_router(admin_routes(Adapters(service.router), auth))
    app.add_exception_handler(PenstockError, _penstock_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(Exception, _crash)
    app.add_middleware(RequestId)
    app.openapi = lambda: describe(app, next(iter(models)))  # type: ignore[method-assign]
    return app


def _operations(service: Service, models: dict[str, Model], metrics: Metrics) -> APIRouter:
    router = APIRouter(tags=["operations"])

    @router.get("/health", summary="Is the process alive")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/ready", summary="Can it answer: 200 once a replica of any model generated a token")
    async def ready() -> JSONResponse:
        states = {model.name: _model_state(model) for model in models.values()}
        able = any(model.is_ready for model in models.values())
        status = "draining" if service.is_draining else "ready" if able else "not ready"
        is_ready = able and not service.is_draining
        return JSONResponse({"status": status, "models": states}, 200 if is_ready else 503)

    @router.get("/metrics", summary="Prometheus metrics")
    async def metrics_page() -> Response:
        return Response(metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _model_state(model: Model) -> dict[str, Any]:
    replicas = {
        f"{deployment.name}/{replica.name}": str(replica.state) + (f": {replica.reason}" if replica.reason else "")
        for deployment in model.deployments
        for replica in deployment.replicas
    }
    return {"ready": model.is_ready, "replicas": replicas}


def _models(served: Router, auth: Authenticator) -> APIRouter:
    async def authenticated(request: Request) -> None:
        header = request.headers.get("authorization")
        auth.authenticate(None if header is None else header.encode("latin-1"))

    router = APIRouter(tags=["models"], dependencies=[Depends(authenticated)])

    @router.get("/v1/models", summary="The models that can be asked for, adapters with their parent")
    async def list_models() -> dict[str, Any]:
        cards = [_card(name, model) for name, model in served.models.items()]
        cards += [_adapter_card(model, model.shelf.adapters[name]) for name, model in served.adapters.items()]
        return {"object": "list", "data": cards}

    @router.get("/v1/models/{model_id:path}", summary="One model; its id may contain slashes")
    async def get_model(model_id: str) -> dict[str, Any]:
        if model_id in served.models:
            return _card(model_id, served.models[model_id], is_whole=True)
        if (model := served.adapters.get(model_id)) is not None:
            return _adapter_card(model, model.shelf.adapters[model_id])
        raise ModelNotFound(f"The model {model_id[:128]!r} does not exist.", param="model")

    return router


def _card(name: str, model: Model, *, is_whole: bool = False) -> dict[str, Any]:
    """OpenAI's model object, the context length that an engine tells, and the manifest of the checkpoint behind it."""
    card: dict[str, Any] = {"id": name, "object": "model", "created": model.created, "owned_by": "penstock"}
    if name != model.name:
        card["root"] = model.name
    told = next((replica.model_card for d in model.deployments for replica in d.replicas if replica.model_card), {})
    if "max_model_len" in told:
        card["max_model_len"] = told["max_model_len"]
    manifests = {d.name: d.manifest for d in model.deployments if d.manifest is not None}
    if manifests or isinstance(told.get("penstock"), dict):
        card["penstock"] = facts_of(next(iter(manifests.values()), told.get("penstock")), is_whole=is_whole)
    if is_whole and len(manifests) > 1:  # a candidate beside the one that is served: who looks wants to tell them apart
        card["deployments"] = {name: facts_of(manifest, is_whole=True) for name, manifest in manifests.items()}
    return card


def _adapter_card(model: Model, adapter: Adapter) -> dict[str, Any]:
    card = {"id": adapter.name, "object": "model", "created": adapter.created, "owned_by": "penstock"}
    base = _card(model.name, model)
    return card | {"parent": model.name} | {key: base[key] for key in ("max_model_len",) if key in base}


class RequestId:
    """Every answer carries `x-request-id`, the client's own where it sent a sane one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = accept_request_id(dict(scope["headers"]).get(b"x-request-id"))
        scope["penstock.request_id"] = request_id.decode()

        async def send_with_id(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id)]
            await send(message)

        await self.app(scope, receive, send_with_id)


async def _penstock_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, PenstockError)
    body = error_at(request.url.path, error, request.scope.get("penstock.request_id", ""))
    return Response(body, error.status, error_headers(error), "application/json")


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    ours: PenstockError
    if request.url.path in HOT_PATHS:  # served below the framework, which knows nothing of them
        ours = MethodNotAllowed(f"{request.url.path} takes POST.")
    elif error.status_code == 404:
        ours = NotFound(f"No route {request.method} {request.url.path[:256]}.")
    elif error.status_code == 405:
        ours = MethodNotAllowed(f"{request.url.path[:256]} does not take {request.method}.")
    else:
        ours = InvalidRequest(str(error.detail))
        ours.status = error.status_code
    response = await _penstock_error(request, ours)
    response.headers.update({"allow": "POST"} if request.url.path in HOT_PATHS else error.headers or {})
    return response


async def _validation_error(request: Request, error: Exception) -> Response:
    """Of the framework's own words only the reasons: its text names files of ours."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = ".".join(part for part in first["loc"][1:] if isinstance(part, str)) or None
    where = f"Invalid {param!r}" if param else "Invalid request"
    return await _penstock_error(
        request, InvalidRequest(f"{where}: {first['msg']}.", param=param, code="invalid_value")
    )


async def _crash(request: Request, error: Exception) -> Response:  # noqa: ARG001
    return await _penstock_error(request, PenstockError("The gateway failed; its log says why."))
