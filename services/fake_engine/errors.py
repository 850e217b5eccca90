"""The seven ways in which engines say that something is wrong, as bodies (contract of the gateway's normaliser)."""

import json
from typing import Any

import msgspec

from fake_engine.script import ErrorShape

_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    422: "UnprocessableEntityError",
    429: "RateLimitError",
    500: "InternalServerError",
    501: "NotImplementedError",
    503: "ServiceUnavailableError",
}
_OPENAI_TYPES = {429: "rate_limit_exceeded", 503: "service_unavailable_error"}


class RequestError(Exception):
    """A request that this engine refuses; becomes one HTTP answer in the engine's own shape, or in `shape`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        type: str | None = None,
        shape: ErrorShape | None = None,
    ) -> None:
        super().__init__(message)
        self.shape = shape
        self.status, self.message, self.param, self.code, self.type = status, message, param, code, type


def error_body(
    shape: ErrorShape,
    status: int,
    message: str,
    *,
    type: str | None = None,
    param: str | None = None,
    code: str | int | None = None,
) -> tuple[bytes, str]:
    """Body and content type of an error in one engine's shape."""
    if shape == "text":
        return message.encode(), "text/plain; charset=utf-8"
    if shape == "empty":
        return b"", "application/json"
    return msgspec.json.encode(_value(shape, status, message, type, param, code)), "application/json"


def _value(shape: ErrorShape, status: int, message: str, type: str | None, param: str | None, code: Any) -> Any:
    engine_type = type or _TYPES.get(status, "InternalServerError" if status >= 500 else "BadRequestError")
    number = code if code is not None else status
    if shape == "vllm":
        return {"error": {"message": message, "type": engine_type, "param": param, "code": _as_int(number, status)}}
    if shape == "sglang":
        return {
            "object": "error",
            "message": message,
            "type": engine_type,
            "param": param,
            "code": _as_int(number, status),
        }
    if shape == "string":
        return {"error": message}
    if shape == "fastapi":
        return {"detail": [{"type": "value_error", "loc": ["body", param or "model"], "msg": message, "input": None}]}
    if shape == "lightllm":
        return {"message": message}
    default = _OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    word = None if code is None else str(code)
    return {"error": {"message": message, "type": type or default, "param": param, "code": word}}


def _as_int(code: Any, status: int) -> Any:
    """vLLM and SGLang say the HTTP status where OpenAI says a word; a scripted code is kept as it is."""
    return status if isinstance(code, str) and code in ("model_not_found", "context_length_exceeded") else code


def error_event(message: str, type: str, code: str | int | None) -> bytes:
    """The JSON of an error inside a stream: nested for every engine (also SGLang)."""
    return json.dumps({"error": {"message": message, "type": type, "param": None, "code": code}}).encode()
