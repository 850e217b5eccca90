"""KServe v2 over HTTP, the part that tells what there is: health, readiness, metadata, configuration, repository."""

from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from gateway.api.auth import Authenticator
from gateway.core.errors import ModelNotFound
from gateway.routing.router import Model, Router
from gateway.serving.serve import Service
from gateway.serving.tensors import INPUTS, OUTPUTS, PLATFORM, VERSION, check_version

_NOT_READY = 400  # KServe: 200 is yes, 4xx is no


def kserve_models(service: Service, auth: Authenticator) -> APIRouter:
    async def authenticated(request: Request) -> None:
        header = request.headers.get("authorization")
        auth.authenticate(None if header is None else header.encode("latin-1"))

    served = service.router
    router = APIRouter(prefix="/v2", tags=["kserve"])
    known = [Depends(authenticated)]

    @router.get("/health/live", summary="Is the process alive")
    async def live() -> Response:
        return Response()

    @router.get("/health/ready", summary="Can any model answer: 200, else 400")
    async def ready() -> Response:
        is_ready = any(model.is_ready for model in served.models.values()) and not service.is_draining
        return Response(status_code=200 if is_ready else _NOT_READY)

    @router.get("", summary="What this server is")
    async def server() -> dict[str, Any]:
        extensions = ["binary_tensor_data", "generate", "model_configuration", "model_repository"]
        return {"name": PLATFORM, "version": version("penstock"), "extensions": extensions}

    @router.get("/models/{target:path}/ready", summary="Can this model answer: 200, else 400", dependencies=known)
    async def model_ready(target: str) -> Response:
        name, wanted = _parts(target)
        model = _all(served).get(name)
        is_ready = model is not None and model.is_ready and wanted in ("", VERSION)
        return Response(status_code=200 if is_ready else _NOT_READY)

    @router.get("/models/{target:path}/config", summary="The model as Triton would configure it", dependencies=known)
    async def config(target: str) -> dict[str, Any]:
        return _config(_name(served, target))

    @router.get("/models/{target:path}", summary="The model's inputs and outputs", dependencies=known)
    async def metadata(target: str) -> dict[str, Any]:
        return _metadata(_name(served, target))

    @router.post("/repository/index", summary="All models and whether they are ready", dependencies=known)
    async def index() -> list[dict[str, str]]:
        return [
            {"name": name, "version": VERSION, "state": "READY"}
            if model.is_ready
            else {"name": name, "version": VERSION, "state": "UNAVAILABLE", "reason": model.why_not_ready()}
            for name, model in _all(served).items()
        ]

    return router


def _all(served: Router) -> dict[str, Model]:
    return served.models | served.adapters


def _parts(target: str) -> tuple[str, str]:
    name, found, wanted = target.rpartition("/versions/")
    return (name, wanted) if found else (target, "")


def _name(served: Router, target: str) -> str:
    name, wanted = _parts(target)
    if name not in _all(served):
        raise ModelNotFound(f"The model {name[:128]!r} does not exist; GET /v1/models lists those that do.")
    check_version(name, wanted)
    return name


def _metadata(name: str) -> dict[str, Any]:
    inputs = [{"name": key, "datatype": spec.datatype, "shape": spec.shape} for key, spec in INPUTS.items()]
    outputs = [{"name": key, "datatype": datatype, "shape": shape} for key, (datatype, shape) in OUTPUTS.items()]
    return {"name": name, "versions": [VERSION], "platform": PLATFORM, "inputs": inputs, "outputs": outputs}


def _config(name: str) -> dict[str, Any]:
    def type_of(datatype: str) -> str:
        return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"

    return {
        "name": name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "max_batch_size": 0,
        "input": [
            {"name": key, "data_type": type_of(spec.datatype), "dims": spec.shape, "optional": key != "text_input"}
            for key, spec in INPUTS.items()
        ],
        "output": [
            {"name": key, "data_type": type_of(datatype), "dims": shape} for key, (datatype, shape) in OUTPUTS.items()
        ],
        "model_transaction_policy": {"decoupled": True},
    }
