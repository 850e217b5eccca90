"""What a failure on the gRPC side means for the caller: status codes and texts into the gateway's tree of errors.

Triton says UNAVAILABLE both when it cannot be reached and when its queue is full; the words tell them apart.
Source: Triton's code map (contracts section 3.1), gRPC core's own status texts.
"""

import grpc

from gateway.backends.errors import engine_error
from gateway.core.errors import (
    BodyTooLarge,
    DeadlineExceeded,
    EngineRefused,
    EngineUnreachable,
    PenstockError,
    UpstreamError,
)

_UNCONNECTED = ("failed to connect", "connection refused", "dns resolution failed", "no route to host", "handshake")
_TRANSPORT = ("socket closed", "connection reset", "goaway", "stream removed", "rst_stream", "broken pipe", "eof")
_NO_MODEL = ("unknown model", "not found", "no available versions", "is not ready", "unloading")
_CONSTRAINT = ("guided_decoding", "guided decoding", "grammar", "json schema", "regex")
_TOO_LARGE = ("received message larger", "message size")
_BODY = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.ALREADY_EXISTS: 400,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 503,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.INTERNAL: 500,
}


def status_error(code: grpc.StatusCode, details: str, *, answered: bool = False) -> PenstockError:
    """`answered`: responses had come before, so a connection there was."""
    details = details.rstrip(".")
    words = details.lower()
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded("The request's deadline is over.")
    if code is grpc.StatusCode.UNAVAILABLE and not answered and _has(words, _UNCONNECTED):
        return EngineUnreachable(f"The engine cannot be reached: {details}.")
    if _has(words, _UNCONNECTED + _TRANSPORT) and code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL):
        return UpstreamError("The engine closed the connection before its answer was complete.")
    if code is grpc.StatusCode.NOT_FOUND or (code is grpc.StatusCode.UNAVAILABLE and _has(words, _NO_MODEL)):
        return UpstreamError(f"The engine does not have the model ready: {details}.")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and _has(words, _TOO_LARGE):
        return BodyTooLarge(f"The request is larger than the engine takes: {details}.")
    if code in (grpc.StatusCode.CANCELLED, grpc.StatusCode.ABORTED):
        return UpstreamError(f"The engine cancelled the request: {details or 'it gave no reason'}.")
    status = _BODY.get(code)
    if status is None:
        return UpstreamError(f"The engine failed: {details or code.name}.")
    return engine_error(status, details.encode())


def message_error(message: str) -> PenstockError:
    """An `error_message` inside a stream: words without a code, so it is these that say whose fault it is."""
    error = engine_error(400, message.encode())
    if error.code == "context_length_exceeded" or _has(message.lower(), _CONSTRAINT):
        return error
    if "maximum queue size" in message.lower():
        return engine_error(503, message.encode())
    if _has(message.lower(), _NO_MODEL):
        return UpstreamError(f"The engine does not have the model ready: {message}.")
    return EngineRefused(500, message or "The engine failed.", type="server_error", code="engine_error")


def _has(words: str, marks: tuple[str, ...]) -> bool:
    return any(mark in words for mark in marks)
