"""The gRPC door's translator: an error of ours as a status with google.rpc details.

Details travel as gRPC has them, in the trailing metadata `grpc-status-details-bin`; tables: google.rpc.Code's own
notes on HTTP, google/rpc/error_details.proto.
"""

import asyncio

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status

from gateway.core.errors import ClientTooSlow, Overloaded, PenstockError, Unavailable

Context = grpc.aio.ServicerContext[object, object]
DOMAIN = "penstock"
RETRY_AFTER_S = 1
ABORT_PATIENCE_S = 1.0

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    405: grpc.StatusCode.UNIMPLEMENTED,
    409: grpc.StatusCode.ALREADY_EXISTS,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    502: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def code_of(error: PenstockError) -> grpc.StatusCode:
    if isinstance(error, ClientTooSlow):
        return grpc.StatusCode.ABORTED
    other = grpc.StatusCode.INVALID_ARGUMENT if error.status < 500 else grpc.StatusCode.INTERNAL
    return _CODES.get(error.status, other)


def details_of(error: PenstockError, request_id: str) -> Status:
    """ErrorInfo always; BadRequest where a field is to blame, RetryInfo where coming back helps; RequestInfo."""
    info = ErrorInfo(reason=(error.code or error.type).upper(), domain=DOMAIN)
    info.metadata.update({"type": error.type, "http_status": str(error.status), "request_id": request_id})
    details: list[Message] = [info, RequestInfo(request_id=request_id)]
    if error.param is not None:
        info.metadata["param"] = error.param
        violation = BadRequest.FieldViolation(field=error.param, description=error.message)
        details.append(BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None or isinstance(error, Overloaded | Unavailable):
        retry = RetryInfo()
        retry.retry_delay.FromSeconds(min(error.retry_after_s or RETRY_AFTER_S, 120))
        details.append(retry)
    status = Status(code=code_of(error).value[0], message=error.message)
    for detail in details:
        packed = Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


async def abort(context: Context, error: PenstockError, request_id: str) -> None:
    """End the RPC with the error. Raises grpc.aio.AbortError; returns where a client that does not read keeps it
    from leaving: then it follows what was sent before, if it is ever read."""
    status = details_of(error, request_id)
    trailing = (("grpc-status-details-bin", status.SerializeToString()), ("x-request-id", request_id))
    try:
        async with asyncio.timeout(ABORT_PATIENCE_S):
            await context.abort(code_of(error), error.message, trailing)
    except TimeoutError:
        return
