"""One request's way back: data responses, then the final flag exactly once, whatever happens.

A final flag that is lost leaks the request inside tritonserver, and sending after it raises.
"""

import threading
from typing import Any

import triton_python_backend_utils as pb_utils

from openvino_engine.errors import ApiError
from triton_models.tensors import Array

Named = list[tuple[str, Array]]
"""Output tensors by name."""


class Exchange:
    """Wraps Triton's response sender. ``decoupled``: any number of responses, also none; else exactly one.

    One thread sends, another asks whether the client has left: never both at once, because the server frees with the
    final flag what the question reads (tritonserver 2.51 crashes).
    """

    def __init__(self, request: Any, *, decoupled: bool) -> None:
        self.id: str = request.request_id()
        self._decoupled = decoupled
        self._lock = threading.Lock()
        self._sender = request.get_response_sender()
        self.over = False
        self.stopped = False  # by another request with its id, which is no failure

    @property
    def is_cancelled(self) -> bool:
        """Whether the client has left before its last response (a round trip to the server)."""
        with self._lock:
            return not self.over and bool(self._sender.is_cancelled())

    def send(self, outputs: Named, *, final: bool = False) -> None:
        """One response; ``final`` is the last."""
        self._respond(pb_utils.InferenceResponse(_tensors(outputs)), final=final)

    def finish(self) -> None:
        """The end without tensors, unless the last response has been sent."""
        if self.over or not self._decoupled:
            self.send([], final=True)
            return
        with self._lock:  # the flag alone: an ensemble takes an empty response for one that lacks its outputs
            self.over = True
            self._sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def fail(self, error: ApiError) -> None:
        """An error as the last response."""
        self._respond(pb_utils.InferenceResponse(error=pb_utils.TritonError(error.message, _code(error))), final=True)

    def cancelled(self) -> None:
        """The last response to a client that has left (counted as CANCELED), or whose request was stopped by its id."""
        if self.stopped:
            self.finish()
            return
        error = pb_utils.TritonError("the request was cancelled", pb_utils.TritonError.CANCELLED)
        self._respond(pb_utils.InferenceResponse(error=error), final=True)

    def _respond(self, response: Any, *, final: bool) -> None:
        with self._lock:
            if self.over:
                return
            self.over = final
            self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0)


def inputs(request: Any) -> dict[str, Array]:
    """The input tensors by name; views of the server's memory, valid as long as the request."""
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


def _tensors(outputs: Named) -> list[Any]:
    return [pb_utils.Tensor(name, array) for name, array in outputs]


def _code(error: ApiError) -> Any:
    kinds = pb_utils.TritonError
    return {400: kinds.INVALID_ARG, 404: kinds.NOT_FOUND, 503: kinds.UNAVAILABLE}.get(error.status, kinds.INTERNAL)
