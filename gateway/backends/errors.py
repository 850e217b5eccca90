"""Eight shapes of engine errors, read into one. Clients of the gateway only ever see OpenAI's.

| source                    | body                                                    |
|---------------------------|---------------------------------------------------------|
| OpenAI, vLLM              | {"error": {message, type, param, code}} (code may be int) |
| vLLM 401, trtllm, Triton  | {"error": "text"}                                       |
| SGLang, trtllm-serve      | {"object": "error", message, type, param, code}         |
| LightLLM                  | {"message": "text"}, HTTP 417                           |
| Anthropic routes          | {"type": "error", "error": {type, message}}             |
| SGLang's adapter routes   | {"success": false, "error_message": "text"}             |
| bare FastAPI              | {"detail": ...}, HTTP 422 or 404                        |
| anything else             | text                                                    |
"""

from http import HTTPStatus
from typing import Any

import msgspec

from gateway.core.errors import EngineRefused

MESSAGE_LIMIT = 4096
NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding an engine's words may raise: they may be broken, no UTF-8, or too deep."""
_KNOWN = frozenset(status.value for status in HTTPStatus if status >= 400)


def engine_error(status: int, body: bytes, retry_after: bytes | None = None) -> EngineRefused:
    """What the engine's answer of `status` means for the caller."""
    message, type_, param, code = _read(body)
    message = message or f"The engine answered with HTTP {status}."
    wait_s = _number(retry_after) if retry_after is not None else None
    if status in (401, 403):
        return EngineRefused(
            502, "The engine refused the gateway's credentials.", type="server_error", code="engine_unauthorized"
        )
    if status in (429, 503):
        return EngineRefused(
            503, message, type="service_unavailable_error", code="engine_overloaded", retryable=True,
            retry_after_s=wait_s or 1,
        )  # fmt: skip
    if status in (417, 422) or (400 <= status < 500 and status not in _KNOWN):
        status = 400  # LightLLM's and bare FastAPI's word for a bad request, and words nobody knows
    elif status < 400:  # not an answer to a POST, and some may have no body
        status = 502
    if code is not None and code.isdigit():  # vLLM, SGLang: the HTTP status again
        code = None
    if status < 500:
        code = code or ("context_length_exceeded" if _is_context_length(message) else None)
        return EngineRefused(status, message, type=_client_type(type_), param=param, code=code)
    status = status if status in (500, 501, 504) else 502
    return EngineRefused(status, message, type="server_error", code=code or "engine_error", retryable=status == 502)


def stream_error(payload: bytes) -> EngineRefused:
    """An `error` event inside a stream; its status is the one it names, else 500."""
    message, type_, param, code = _read(payload)
    named = _number(code.encode()) if code is not None else None
    status = named if named in _KNOWN else 500
    if status < 500:
        return EngineRefused(status, message or "The engine refused.", type=_client_type(type_), param=param)
    return EngineRefused(status, message or "The engine failed.", type="server_error", param=param, code="engine_error")


def _number(text: bytes) -> int | None:
    """Of at most nine digits: an engine may say anything, and `int` refuses what is too long."""
    return int(text) if text.isdigit() and len(text) < 10 else None


def _client_type(type_: str | None) -> str:
    return type_ if type_ and type_.islower() else "invalid_request_error"


def _is_context_length(message: str) -> bool:
    lowered = message.lower()
    return "context length" in lowered or "maximum model length" in lowered or "context window" in lowered


def _read(body: bytes) -> tuple[str, str | None, str | None, str | None]:
    """(message, type, param, code) from whatever the engine sent."""
    try:
        parsed = msgspec.json.decode(body)
    except NOT_JSON:
        return body.decode("utf-8", "replace")[:MESSAGE_LIMIT].strip(), None, None, None
    if not isinstance(parsed, dict):
        return str(parsed)[:MESSAGE_LIMIT], None, None, None
    error: Any = parsed.get("error", parsed)
    if not isinstance(error, dict):
        return str(error)[:MESSAGE_LIMIT], None, None, None
    message = error.get("message", error.get("detail", error.get("error_message", "")))
    if not isinstance(message, str):
        message = msgspec.json.encode(message).decode()
    return message[:MESSAGE_LIMIT], _text(error.get("type")), _text(error.get("param")), _code(error.get("code"))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _code(value: object) -> str | None:
    return str(value) if isinstance(value, str | int) and value else None
