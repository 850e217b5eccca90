"""Everything that is not a generation: probes, models, metrics, tokenize, and the control routes under /_fake/."""

import asyncio
import os
import time
import zlib
from typing import TYPE_CHECKING, Any

import msgspec

from fake_engine.adapters import Behaviour
from fake_engine.errors import RequestError
from fake_engine.request import Request
from fake_engine.script import ScriptError

if TYPE_CHECKING:
    from fake_engine.engine import Engine

Answered = tuple[int, bytes, str]
JSON = "application/json"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def operate(engine: "Engine", request: Request) -> Answered:
    """A client's request. Raises RequestError: 404 for an unknown path, 405 for a wrong method."""
    path, kind = request.path, engine.kind
    if path in kind.paths:
        raise RequestError(405, "Method Not Allowed")
    if path == kind.tokenize_path:
        _need(request, "POST")
        return _tokenize(engine, request)
    if engine.adapters.has_route(path):
        _need(request, "POST")
        return _adapt(engine, request)
    if path in kind.health_paths:
        return engine.health_status, b"", JSON
    answers = {"/v1/models": _models}
    if kind.manner == "sglang":
        answers["/server_info"] = _server_info
    if kind.version is not None:
        answers["/version"] = _version
    if kind.metrics_path != "/metrics":
        answers["/metrics"] = _iterations
    if kind.metrics:
        answers[kind.metrics_path] = _metrics
    if path in answers:
        _need(request, "GET")
        return answers[path](engine)
    if path.startswith("/v1/models/"):
        _need(request, "GET")
        return _model(engine, path.removeprefix("/v1/models/"))
    raise RequestError(404, "Not Found")


def _need(request: Request, method: str) -> None:
    if request.method != method:
        raise RequestError(405, "Method Not Allowed")


def _version(engine: "Engine") -> Answered:
    return 200, msgspec.json.encode({"version": engine.kind.version}), JSON


def _server_info(engine: "Engine") -> Answered:
    return 200, msgspec.json.encode({"enable_deterministic_inference": engine.settings.deterministic}), JSON


def _metrics(engine: "Engine") -> Answered:
    return 200, engine.meter.render(), METRICS_TYPE


def _iterations(engine: "Engine") -> Answered:  # noqa: ARG001
    """trtllm-serve: statistics of iterations since the last look, and never an old one again."""
    return 200, b"[]", JSON


def _models(engine: "Engine") -> Answered:
    data = [_card(engine, name) for name in engine.kind.models or engine.settings.models]
    data += [_card(engine, card["id"]) | card for card in engine.adapters.cards(engine.settings.models[0])]
    return 200, msgspec.json.encode({"object": "list", "data": data}), JSON


def _model(engine: "Engine", name: str) -> Answered:
    if name not in engine.settings.models:
        message = f"The model `{name}` does not exist."
        raise RequestError(404, message, param="model", code="model_not_found")
    return 200, msgspec.json.encode(_card(engine, name)), JSON


def _card(engine: "Engine", name: str) -> dict[str, Any]:
    card = {"id": name, "object": "model", "created": int(time.time()), "owned_by": engine.settings.engine}
    if engine.kind.model_extras:
        card |= {"root": name, "parent": None, "max_model_len": engine.settings.max_model_len}
    return card


def _adapt(engine: "Engine", request: Request) -> Answered:
    """vLLM answers in plain text (docs: contracts of its LoRA routes), SGLang with the list of what is loaded."""
    adapters = engine.adapters
    if engine.kind.lora_prefix:
        return 200, adapters.operate(request.path, bytes(request.body)).encode(), "text/plain; charset=utf-8"
    fault = None
    try:
        adapters.operate(request.path, bytes(request.body))
    except RequestError as error:
        fault = error
    answer = {
        "success": fault is None, "error_message": fault.message if fault else "", "loaded_adapters": adapters.loaded
    }  # fmt: skip
    return 200 if fault is None else 400, msgspec.json.encode(answer), JSON


def _tokenize(engine: "Engine", request: Request) -> Answered:
    body = _json(request)
    text = body.get("prompt") if isinstance(body, dict) else None
    if not isinstance(text, str):
        raise RequestError(400, "`prompt` must be a string", param="prompt")
    tokens = [zlib.crc32(word.encode("utf-8", "replace")) % 50_000 for word in text.split()]
    answer = {"count": len(tokens), "max_model_len": engine.settings.max_model_len, "tokens": tokens}
    return 200, msgspec.json.encode(answer), JSON


def _json(request: Request) -> Any:
    try:
        return msgspec.json.decode(bytes(request.body))
    except (msgspec.DecodeError, RecursionError) as error:
        raise RequestError(400, f"bad request body: {error}") from None


# ---- /_fake/ ----


def control(engine: "Engine", request: Request) -> Answered:
    """A test's request. Errors are plain `{"error": "..."}` whatever the engine's shape."""
    try:
        return 200, _control(engine, request), JSON
    except (RequestError, ScriptError) as error:
        status = error.status if isinstance(error, RequestError) else 400
        return status, msgspec.json.encode({"error": str(error)}), JSON


def _control(engine: "Engine", request: Request) -> bytes:
    match request.method, request.path:
        case "POST", "/_fake/script":
            engine.scripts.post(_json(request))
        case "DELETE", "/_fake/script":
            engine.scripts.reset()
        case "GET", "/_fake/stats":
            return engine.stats.to_json()
        case "DELETE", "/_fake/stats":
            engine.stats.reset()
        case "POST", "/_fake/health":
            engine.health_status = _status(_json(request))
        case "POST", "/_fake/adapters":
            engine.adapters.behaviour = _behaviour(request)
        case "POST", "/_fake/exit":
            asyncio.get_running_loop().call_later(0.01, os._exit, 1)
        case _:
            raise RequestError(
                404, "control routes: POST or DELETE /_fake/script, GET or DELETE /_fake/stats, "
                "POST /_fake/health, POST /_fake/adapters, POST /_fake/exit",
            )  # fmt: skip
    return b"{}"


def _behaviour(request: Request) -> Behaviour:
    try:
        return msgspec.json.decode(bytes(request.body), type=Behaviour)
    except (msgspec.DecodeError, RecursionError) as error:
        raise RequestError(400, f"bad request body: {error}") from None


def _status(body: Any) -> int:
    status = body.get("status") if isinstance(body, dict) else None
    if not isinstance(status, int) or not 200 <= status <= 599:
        raise RequestError(400, 'want {"status": 200} or another HTTP status from 200 to 599')
    return status
