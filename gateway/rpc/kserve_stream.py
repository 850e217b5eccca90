"""One ModelStreamInfer call: many requests at once on one stream, told apart by their ids.

Errors are responses with `error_message`: the stream goes on, unless the client asked for statuses instead with the
metadata `triton_grpc_error: true`. Source: Triton's gRPC frontend and its decoupled responses.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from time import monotonic

from google.protobuf.message import DecodeError

from gateway.core.call import Endpoint
from gateway.core.errors import ClientTooSlow, Draining, InvalidRequest, PenstockError
from gateway.protos import inference_pb2 as pb
from gateway.rpc.entrance import Entrance
from gateway.rpc.outbox import Outbox
from gateway.rpc.tensor_codec import put, tensors_of
from gateway.serving.intake import Asker
from gateway.serving.tensor_answer import Outputs, TensorAnswer
from gateway.serving.tensors import VERSION, Reading, check_version, in_tensor_words

REQUESTS_LIMIT = 256
"""Unfinished requests of one stream; further ones are read when some are done."""
FINAL = "triton_final_response"
WANTS_EMPTY_FINAL = "triton_enable_empty_final_response"


class InferStream:
    """`error` is how the stream ends, if not well. `ends_on_error`: at the first error of any request."""

    def __init__(self, entrance: Entrance, asker: Asker, *, ends_on_error: bool) -> None:
        self.outbox: Outbox[pb.ModelStreamInferResponse] = entrance.outbox()
        self.error: PenstockError | None = None
        self._entrance = entrance
        self._asker = asker
        self._ends_on_error = ends_on_error
        self._slots = asyncio.Semaphore(REQUESTS_LIMIT)
        self._tasks: set[asyncio.Task[None]] = set()
        self._count = 0

    async def run(self, requests: AsyncIterator[pb.ModelInferRequest]) -> None:
        """Until the client has no more requests and all are answered; no further ones are read once we drain."""
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(self._read(requests, group))
            self._tasks.add(reading)

            def leave() -> None:
                self.error = Draining("The gateway is shutting down; use another one.")
                reading.cancel()

            with self._entrance.on_drain(leave):
                await asyncio.wait({reading})

    async def _read(self, requests: AsyncIterator[pb.ModelInferRequest], group: asyncio.TaskGroup) -> None:
        try:
            async for request in requests:
                await self._slots.acquire()
                task = group.create_task(self._answer(request))
                self._tasks.add(task)
                task.add_done_callback(self._done)
        except DecodeError:
            self._end(InvalidRequest("A message on the stream is not a ModelInferRequest.", code="invalid_protobuf"))

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._slots.release()

    async def _answer(self, request: pb.ModelInferRequest) -> None:
        self._count += 1
        asker = replace(self._asker, request_id=f"{self._asker.request_id}-{self._count}", received_s=monotonic())
        answer = Responses(self, request, asker.request_id)
        await self._entrance.intake.serve(asker, Endpoint.COMPLETIONS, answer.body, answer)

    def failed(self, request: pb.ModelInferRequest, error: PenstockError, request_id: str) -> None:
        if self._ends_on_error or isinstance(error, ClientTooSlow):
            self._end(error)
            return
        response = pb.ModelInferResponse(model_name=request.model_name, model_version=VERSION, id=request.id)
        response.parameters["error_code"].string_param = error.code or error.type
        response.parameters["request_id"].string_param = request_id
        response.parameters[FINAL].bool_param = True
        self.outbox.put(pb.ModelStreamInferResponse(error_message=error.message, infer_response=response))

    def _end(self, error: PenstockError) -> None:
        """End the whole stream; what others still had to say is lost with it."""
        if self.error is not None:
            return
        self.error = error
        for task in self._tasks - {asyncio.current_task()}:
            task.cancel()


class Responses(TensorAnswer):
    """The client of one request on a stream: its answer as responses that carry its id."""

    def __init__(self, stream: InferStream, request: pb.ModelInferRequest, request_id: str) -> None:
        super().__init__()
        self.started = False
        self._stream = stream
        self._request = request
        self._request_id = request_id
        self._wants_empty_final = request.parameters[WANTS_EMPTY_FINAL].bool_param

    def body(self) -> bytes:
        """Raises InvalidRequest."""
        request = self._request
        check_version(request.model_name, request.model_version)
        names = [output.name for output in request.outputs]
        return self.expect(Reading(request.model_name, tensors_of(request), names).asked(stream=False))

    @property
    def paused(self) -> bool:
        return self._stream.outbox.paused

    async def drained(self) -> None:
        await self._stream.outbox.drained()

    def flush(self, *, is_first: bool, is_last: bool) -> None:  # noqa: ARG002
        self.started = True
        if is_last:
            self._put(self.last(), is_final=not self._wants_empty_final)
            if self._wants_empty_final:
                self._put({}, is_final=True)
        elif outputs := self.piece():
            self._put(outputs, is_final=False)

    def fail(self, error: PenstockError) -> None:
        self._stream.failed(self._request, in_tensor_words(error), self._request_id)

    def _put(self, outputs: Outputs, *, is_final: bool) -> None:
        response = pb.ModelInferResponse(
            model_name=self._request.model_name, model_version=VERSION, id=self._request.id
        )
        response.parameters[FINAL].bool_param = is_final
        put(response, outputs)
        self._stream.outbox.put(pb.ModelStreamInferResponse(infer_response=response))
