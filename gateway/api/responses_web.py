"""What was stored, over HTTP: GET and DELETE /v1/responses/{id}, its input items, cancel. In FastAPI, unhurried."""

from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from gateway.api.auth import Authenticator
from gateway.api.responses_store import ResponseStore
from gateway.core.errors import InvalidRequest


def stored_responses(store: ResponseStore, auth: Authenticator) -> APIRouter:
    async def key_name(request: Request) -> str | None:
        header = request.headers.get("authorization")
        return auth.authenticate(None if header is None else header.encode("latin-1"))

    router = APIRouter(tags=["responses"], prefix="/v1/responses")
    key = Annotated[str | None, Depends(key_name)]

    @router.get("/{response_id}", summary="A stored response")
    async def get_response(response_id: str, key_name: key, stream: bool = False) -> Response:
        if stream:
            raise InvalidRequest("A stored response is given whole: its stream is not kept.", param="stream")
        return Response(store.get(key_name, response_id).body, media_type="application/json")

    @router.delete("/{response_id}", summary="Forget a stored response")
    async def delete_response(response_id: str, key_name: key) -> dict[str, Any]:
        store.delete(key_name, response_id)
        return {"id": response_id, "object": "response", "deleted": True}

    @router.get("/{response_id}/input_items", summary="What a stored response answered to, earlier turns included")
    async def list_input_items(
        response_id: str,
        key_name: key,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
    ) -> dict[str, Any]:
        items = [msgspec.json.decode(item) for item in store.get(key_name, response_id).context]
        if order == "desc":
            items.reverse()
        return _page(items, limit, after)

    @router.post("/{response_id}/cancel", summary="Refused: only background responses can be cancelled")
    async def cancel_response(response_id: str, key_name: key) -> None:
        store.get(key_name, response_id)
        raise InvalidRequest(
            "Only background responses can be cancelled, and this gateway makes none; a client that leaves cancels "
            "its own.",
            param="response_id",
        )

    return router


def _page(items: list[Any], limit: int, after: str | None) -> dict[str, Any]:
    if after is not None:
        places = [place for place, item in enumerate(items) if item["id"] == after]
        if not places:
            raise InvalidRequest(f"There is no item {after[:128]!r}.", param="after")
        items = items[places[0] + 1 :]
    page = items[:limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(items) > limit,
    }
