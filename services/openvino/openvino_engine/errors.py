"""Errors as OpenAI clients read them: `{"error": {message, type, param, code}}`, all four keys, code a string."""

from typing import Any


class ApiError(Exception):
    """A refusal or failure with its HTTP status and OpenAI words. ``retry_after_s`` becomes a Retry-After header."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        kind: str = "invalid_request_error",
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.kind = kind
        self.param = param
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def invalid(param: str | None, message: str, code: str = "invalid_value") -> ApiError:
    """400: a field has a wrong type, range or combination."""
    return ApiError(400, message, code=code, param=param)


def unsupported(param: str, why: str) -> ApiError:
    """400: the field is understood but this engine cannot honour it."""
    return ApiError(400, f"{param!r} is not supported by this engine: {why}", code="unsupported_parameter", param=param)


def context_exceeded(context: int, prompt: int, completion: int, param: str) -> ApiError:
    """400: prompt and completion do not fit. Both numbers are in the message, as OpenAI writes it."""
    message = (
        f"This model's maximum context length is {context} tokens. However, you requested {prompt + completion} tokens "
        f"({prompt} in the prompt, {completion} in the completion). Please reduce the prompt or the completion length."
    )
    return ApiError(400, message, code="context_length_exceeded", param=param)


def overloaded(message: str) -> ApiError:
    """503: the queue is full; the client should come back."""
    return ApiError(503, message, code="server_is_overloaded", kind="service_unavailable_error", retry_after_s=1)


def engine_failed(message: str) -> ApiError:
    """500: the engine lost this request; nothing is wrong with what the client sent."""
    return ApiError(500, message, code="engine_error", kind="server_error")
