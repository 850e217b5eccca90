"""The admin's routes: which adapters are served.

Apart from web.py because they change things: a key needs `admin: true`; without keys the gateway listens on loopback
only, and who asks must be there too.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from gateway.api.auth import Authenticator
from gateway.core.errors import Forbidden
from gateway.routing.adapters import Adapter
from gateway.routing.router import Model
from gateway.serving.adapters import Adapters
from gateway.settings import Name, is_loopback


class NewAdapter(BaseModel):
    """`name` is what clients will ask for; `path` is where the engine finds it, as the engine sees its files."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    model: Name
    path: Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f\x7f]+$")]


def admin_routes(adapters: Adapters, auth: Authenticator) -> APIRouter:
    async def authorized(request: Request) -> None:
        header = request.headers.get("authorization")
        name = auth.authorize_admin(None if header is None else header.encode("latin-1"))
        if name is None and not (request.client and is_loopback(request.client.host)):
            raise Forbidden("Without API keys only this machine itself may change what is served.")

    router = APIRouter(prefix="/admin", tags=["admin"], dependencies=[Depends(authorized)])

    @router.get("/adapters", summary="The adapters of all models, and where they are")
    async def list_adapters() -> dict[str, Any]:
        return {"object": "list", "data": [_state(model, adapter) for model, adapter in adapters.all()]}

    @router.post("/adapters", summary="Load an adapter on every replica of a model, or on none", status_code=201)
    async def add_adapter(wanted: NewAdapter) -> JSONResponse:
        model, adapter, is_new = await adapters.add(wanted.name, wanted.model, wanted.path)
        return JSONResponse(_state(model, adapter), 201 if is_new else 200)

    @router.delete("/adapters/{name:path}", summary="Unload an adapter; running requests end with it", status_code=204)
    async def remove_adapter(name: str) -> Response:
        await adapters.remove(name)
        return Response(status_code=204)

    return router


def _state(model: Model, adapter: Adapter) -> dict[str, Any]:
    """A replica that is not ready gets the adapter before it is."""
    replicas = {
        f"{deployment.name}/{replica.name}": "loaded" if replica.is_ready else f"waits: the replica is {replica.state}"
        for deployment in model.deployments
        for replica in deployment.replicas
    }
    return {
        "name": adapter.name,
        "model": model.name,
        "path": adapter.path,
        "created": adapter.created,
        "replicas": replicas,
    }
