"""The ASGI application: routes, health, and the one place where errors become answers."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from openvino_engine.chat import ChatRoute
from openvino_engine.completions import CompletionRoute
from openvino_engine.errors import ApiError, engine_failed
from openvino_engine.metrics import CONTENT_TYPE, Metrics
from openvino_engine.serving import Serving
from openvino_engine.web import ClientLeft, Exchange, Message, Receive, Send

_log = logging.getLogger(__name__)
_Handler = Callable[[Exchange], Awaitable[None]]


class App:
    """Serves one model. ``draining`` makes /health say so, for a balancer that should stop sending."""

    def __init__(self, serving: Serving, metrics: Metrics, *, version: str, body_limit_bytes: int) -> None:
        self._serving = serving
        self._metrics = metrics
        self._version = version
        self._body_limit_bytes = body_limit_bytes
        self.draining = False
        self._chat = ChatRoute(serving)
        self._completions = CompletionRoute(serving)
        self._routes: dict[str, dict[str, _Handler]] = {
            "/health": {"GET": self._health},
            "/metrics": {"GET": self._metrics_text},
            "/version": {"GET": self._version_json},
            "/v1/models": {"GET": self._models},
            "/v1/chat/completions": {"POST": self._chat_completions},
            "/v1/completions": {"POST": self._text_completions},
        }

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise ValueError(f"only HTTP is served, not {scope['type']}")
        exchange = Exchange(scope, receive, send)
        try:
            await self._handler(exchange)(exchange)
        except ClientLeft:
            pass
        except ApiError as error:
            await exchange.error(error)
        except Exception:  # noqa: BLE001 - the outermost door: whatever happens, the client gets an answer
            _log.exception("request %s failed", exchange.request_id)
            await exchange.error(engine_failed("internal error"))

    def _handler(self, exchange: Exchange) -> _Handler:
        methods = self._routes.get(exchange.path)
        if methods is None and exchange.path.startswith("/v1/models/"):
            methods = {"GET": self._model}
        if methods is None:
            raise ApiError(404, f"unknown path {exchange.path[:200]!r}", code="not_found")
        method = "GET" if exchange.method == "HEAD" else exchange.method
        if method not in methods:
            raise ApiError(405, f"{exchange.method} is not allowed on {exchange.path}", code="method_not_allowed")
        return methods[method]

    async def _chat_completions(self, exchange: Exchange) -> None:
        await self._generate(exchange, self._chat)

    async def _text_completions(self, exchange: Exchange) -> None:
        await self._generate(exchange, self._completions)

    async def _generate(self, exchange: Exchange, route: Any) -> None:
        body = await exchange.read_json(self._body_limit_bytes)
        async with exchange.cancelled_when_client_leaves():
            request, answers = await route.prepare(body)
            with answers:
                if request.reply.options.stream:
                    await exchange.events(route.stream(request, answers))
                else:
                    await exchange.json(await route.whole(request, answers))

    async def _health(self, exchange: Exchange) -> None:
        if self._serving.loop.alive and not self.draining:
            await exchange.json({"status": "ok"})
            return
        reason = "shutting down" if self.draining else f"the engine loop is dead: {self._serving.loop.failure}"
        raise ApiError(503, reason, code="engine_unavailable", kind="service_unavailable_error")

    async def _metrics_text(self, exchange: Exchange) -> None:
        await exchange.whole(self._metrics.text(), CONTENT_TYPE)

    async def _version_json(self, exchange: Exchange) -> None:
        await exchange.json({"version": self._version})

    async def _models(self, exchange: Exchange) -> None:
        await exchange.json({"object": "list", "data": [self._card()]})

    async def _model(self, exchange: Exchange) -> None:
        name = exchange.path.removeprefix("/v1/models/")
        if name != self._serving.name:
            message = f"The model {name[:200]!r} does not exist; this engine serves {self._serving.name!r}"
            raise ApiError(404, message, code="model_not_found", param="model")
        await exchange.json(self._card())

    def _card(self) -> dict[str, Any]:
        serving = self._serving
        card: dict[str, Any] = {
            "id": serving.name,
            "object": "model",
            "created": serving.created_s,
            "owned_by": "penstock",
            "root": str(serving.checkpoint.root),
            "parent": None,
            "max_model_len": serving.context,
        }
        if serving.checkpoint.manifest is not None:
            card["penstock"] = serving.checkpoint.manifest
        return card
