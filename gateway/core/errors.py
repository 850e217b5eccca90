"""Everything that can go wrong with a request, as one tree.

Each class knows its HTTP status, its OpenAI `type` and `code`, and whether the same request may be
tried on another replica. The doors translate (api/errors.py); nobody else knows about protocols.
"""


class PenstockError(Exception):
    """A request failed in a way the caller is told about.

    `retryable` means: another replica may be tried, as long as nothing has reached the client.
    `outcome` is the bounded label under which metrics and the access log count it.
    """

    status = 500
    type = "server_error"
    code: str | None = None
    retryable = False
    outcome = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class InvalidRequest(PenstockError):
    status, type, outcome = 400, "invalid_request_error", "client_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, param=param)
        self.code = code


class Unauthorized(PenstockError):
    status, type, code, outcome = 401, "invalid_request_error", "invalid_api_key", "client_error"


class Forbidden(PenstockError):
    """A known key that may not do this."""

    status, type, code, outcome = 403, "invalid_request_error", "admin_key_required", "client_error"


class NotFound(PenstockError):
    status, type, code, outcome = 404, "invalid_request_error", "not_found", "client_error"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(PenstockError):
    status, type, code, outcome = 405, "invalid_request_error", "method_not_allowed", "client_error"


class RequestTimeout(PenstockError):
    """The client did not finish sending its request in time."""

    status, type, code, outcome = 408, "invalid_request_error", "request_timeout", "client_error"


class Conflict(PenstockError):
    """The name is taken."""

    status, type, code, outcome = 409, "invalid_request_error", "name_taken", "client_error"


class BodyTooLarge(PenstockError):
    status, type, code, outcome = 413, "invalid_request_error", "request_too_large", "client_error"


class UnsupportedEncoding(PenstockError):
    status, type, code, outcome = 415, "invalid_request_error", "unsupported_content_encoding", "client_error"


class HeadersTooLarge(PenstockError):
    status, type, code, outcome = 431, "invalid_request_error", "headers_too_large", "client_error"


class Overloaded(PenstockError):
    """More requests than slots and queue hold; the client should come back."""

    status, type, code, outcome = 429, "rate_limit_exceeded", "queue_full", "overloaded"


class Unavailable(PenstockError):
    """Nobody can answer now: no ready replica, or the gateway is draining."""

    status, type, code, outcome = 503, "service_unavailable_error", "no_ready_replica", "unavailable"


class Draining(Unavailable):
    code = "draining"


class UpstreamError(PenstockError):
    """The replica failed, not the request: it broke off, or answered nonsense."""

    status, type, code, outcome = 502, "server_error", "engine_failed", "upstream_error"
    retryable = True


class EngineUnreachable(UpstreamError):
    """No connection to the replica could be made."""

    code = "engine_unreachable"


class UpstreamTimeout(UpstreamError):
    """A replica was silent for longer than the first-token or idle timeout allows."""

    status, code, outcome = 504, "engine_timeout", "timeout"


class DeadlineExceeded(PenstockError):
    """The request's own deadline is over: no other replica could help."""

    status, type, code, outcome = 504, "server_error", "deadline_exceeded", "timeout"


class ClientTooSlow(PenstockError):
    """The client took nothing for so long that its stream was cut."""

    status, type, code, outcome = 408, "invalid_request_error", "client_too_slow", "client_closed"


class EngineRefused(PenstockError):
    """The engine answered with an error of its own; its words are kept, its shape is not."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str,
        param: str | None = None,
        code: str | None = None,
        retryable: bool = False,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message, param=param, retry_after_s=retry_after_s)
        self.status, self.type, self.code, self.retryable = status, type, code, retryable
        self.outcome = "client_error" if status < 500 else "upstream_error"
