"""The HTTP door's translator: an error of ours as OpenAI's JSON, whole or as an event of a stream."""

import msgspec

from gateway.core.errors import Overloaded, PenstockError, Unauthorized, Unavailable

RETRY_AFTER_S = 1  # the official SDK gives up when told to wait longer than 120 s


def error_body(error: PenstockError) -> bytes:
    """`{"error": {message, type, param, code}}`, all four keys present."""
    return msgspec.json.encode(
        {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}
    )


def error_event(error: PenstockError) -> bytes:
    """The last words of a broken stream: one error event, then the end clients wait for."""
    return b"data: %b\n\ndata: [DONE]\n\n" % error_body(error)


def error_headers(error: PenstockError) -> dict[str, str]:
    """Headers that belong to the status: Retry-After for overload, the challenge for 401."""
    if isinstance(error, Unauthorized):
        return {"www-authenticate": "Bearer"}
    if error.retry_after_s is not None or isinstance(error, Overloaded | Unavailable):
        return {"retry-after": str(min(error.retry_after_s or RETRY_AFTER_S, 120))}
    return {}
