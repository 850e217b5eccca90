"""Triton over gRPC: one channel a replica, one ModelStreamInfer a request.

Requests are not multiplexed on one stream: HTTP/2 does that already, and so a cancelled RPC aborts exactly one request,
and flow control holds back exactly one answer. As one request is all a stream carries here, it is called as server
streaming: the same bytes on the wire, one task less.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import grpc
import grpc.aio

from gateway.backends.base import Patience
from gateway.backends.triton.status import message_error, status_error
from gateway.backends.triton.tensors import ModelInfo, Outputs, Spec, Tensor, from_raw, to_raw
from gateway.backends.triton.wire import Watch, unique_id
from gateway.core.call import Call
from gateway.core.errors import PenstockError, UpstreamError
from gateway.core.replica import Replica
from gateway.protos import inference_pb2 as pb

SERVICE = "/inference.GRPCInferenceService/"
MESSAGE_LIMIT_BYTES = 256 * 2**20
AFTER_FINAL_S = 1.0  # for the end of the stream after its last response, so that it counts as a success over there
LONGEST_BACKOFF_MS = 1000
_CONTENTS = ("int_contents", "bytes_contents", "fp32_contents", "uint_contents", "int64_contents", "uint64_contents",
             "bool_contents", "fp64_contents")  # fmt: skip
_T = TypeVar("_T")


class GrpcWire:
    has_matrices = True

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._stubs: dict[str, _Stub] = {}

    async def why_not_ready(self, replica: Replica) -> str:
        stub, model = self._stub(replica), replica.served_model
        try:
            ready = await self._ask(stub.model_ready(pb.ModelReadyRequest(name=model), **self._quickly(replica)))
        except PenstockError as error:
            return error.message
        return "" if ready.ready else await self._state(replica)

    async def _state(self, replica: Replica) -> str:
        model = replica.served_model
        try:
            index = await self._ask(self._stub(replica).index(pb.RepositoryIndexRequest(), **self._quickly(replica)))
        except PenstockError:
            return f"model {model!r} is not loaded"
        for entry in index.models:
            if entry.name == model:
                return f"model {model!r} is {entry.state.lower() or 'not loaded'}: {entry.reason or 'no reason given'}"
        names = ", ".join(sorted({entry.name for entry in index.models})[:8])
        return f"it has no model {model!r}, but {names or 'none'}"

    async def describe(self, replica: Replica) -> ModelInfo:
        stub, model, quickly = self._stub(replica), replica.served_model, self._quickly(replica)
        metadata = await self._ask(stub.metadata(pb.ModelMetadataRequest(name=model), **quickly))
        config = (await self._ask(stub.config(pb.ModelConfigRequest(name=model), **quickly))).config
        return ModelInfo(
            name=model,
            inputs={tensor.name: Spec(tensor.datatype, len(tensor.shape)) for tensor in metadata.inputs},
            outputs={tensor.name: Spec(tensor.datatype, len(tensor.shape)) for tensor in metadata.outputs},
            platform=metadata.platform,
            decoupled=config.model_transaction_policy.decoupled,
            parameters={name: value.string_value for name, value in config.parameters.items()},
        )

    async def infer(
        self, replica: Replica, call: Call, tensors: Sequence[Tensor], outputs: Sequence[str]
    ) -> AsyncGenerator[Outputs, None]:
        message = _request(replica.served_model, unique_id(call), tensors, outputs)
        timeout_s = None if call.deadline_s == float("inf") else max(call.deadline_s - time.monotonic(), 0.001)
        rpc = self._stub(replica).stream(message, timeout=timeout_s, metadata=_metadata(replica, call))
        watch = Watch(self._patience, rpc.cancel)
        answered = final = False
        try:
            while not final:
                response: Any = await rpc.read()
                watch.rest()
                if response is grpc.aio.EOF:
                    raise UpstreamError("The engine ended its stream before the answer was finished.")
                if response.error_message:
                    raise message_error(response.error_message)
                answered = True
                final = _is_final(response.infer_response)
                yield Outputs(_values(response.infer_response), final)
                watch.heard()
            async with asyncio.timeout(AFTER_FINAL_S):
                await rpc.read()
        except TimeoutError:
            pass  # the answer is whole; what follows is between the connection and itself
        except grpc.aio.AioRpcError as error:
            if not final:
                raise _told(error, answered=answered) from None
        except asyncio.CancelledError:
            if watch.words is None:
                raise
            raise watch.error() from None
        finally:
            watch.stop()
            rpc.cancel()

    async def aclose(self) -> None:
        for stub in self._stubs.values():
            await stub.channel.close()

    def _stub(self, replica: Replica) -> "_Stub":
        stub = self._stubs.get(replica.url)
        if stub is None:
            stub = self._stubs[replica.url] = _Stub(replica.url, self._patience)
        return stub

    def _quickly(self, replica: Replica) -> dict[str, Any]:
        return {"timeout": self._patience.probe_timeout_s, "metadata": _authorization(replica)}

    async def _ask(self, rpc: Awaitable[_T]) -> _T:
        try:
            return await rpc
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise UpstreamError(f"it did not answer in {self._patience.probe_timeout_s:g} s") from None
            raise _told(error, answered=False) from None


class _Stub:
    """The methods used, on one channel."""

    def __init__(self, url: str, patience: Patience) -> None:
        parts = urlsplit(url)
        connect_ms = int(patience.connect_timeout_s * 1000)
        self.channel = grpc.aio.insecure_channel(
            parts.netloc if parts.port else f"{parts.netloc}:8001",
            options=[
                ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
                ("grpc.max_send_message_length", MESSAGE_LIMIT_BYTES),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", LONGEST_BACKOFF_MS),
                ("grpc.min_reconnect_backoff_ms", connect_ms),
                ("grpc.enable_http_proxy", 0),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        self.model_ready = self._unary("ModelReady", pb.ModelReadyResponse)
        self.metadata = self._unary("ModelMetadata", pb.ModelMetadataResponse)
        self.config = self._unary("ModelConfig", pb.ModelConfigResponse)
        self.index = self._unary("RepositoryIndex", pb.RepositoryIndexResponse)
        self.stream = self.channel.unary_stream(
            f"{SERVICE}ModelStreamInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )

    def _unary(self, name: str, response: Any) -> Any:
        return self.channel.unary_unary(
            SERVICE + name,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,
        )


def _request(model: str, request_id: str, tensors: Sequence[Tensor], outputs: Sequence[str]) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(
        model_name=model,
        id=request_id,
        inputs=[
            pb.ModelInferRequest.InferInputTensor(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            for tensor in tensors
        ],
        outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in outputs],
        raw_input_contents=[to_raw(tensor) for tensor in tensors],
    )
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    return message


def _metadata(replica: Replica, call: Call) -> list[tuple[str, str]]:
    """Not `triton_grpc_error`, which would give errors codes: tritonserver 2.51 crashes when a decoupled model says
    its last word after the stream was ended by it."""
    metadata = [("x-request-id", call.request_id), *_authorization(replica)]
    if call.traceparent:
        metadata.append(("traceparent", call.traceparent))
    return metadata


def _authorization(replica: Replica) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {replica.api_key}")] if replica.api_key else []


def _is_final(response: pb.ModelInferResponse) -> bool:
    parameters = response.parameters
    return "triton_final_response" in parameters and parameters["triton_final_response"].bool_param


def _values(response: pb.ModelInferResponse) -> dict[str, Sequence[Any]]:
    raw = response.raw_output_contents
    if not raw:
        return {tensor.name: _contents(tensor.contents) for tensor in response.outputs}
    if len(raw) != len(response.outputs):
        raise UpstreamError("The engine sent a response whose tensors and contents do not match.")
    return {tensor.name: from_raw(tensor.datatype, data) for tensor, data in zip(response.outputs, raw, strict=True)}


def _contents(contents: pb.InferTensorContents) -> Sequence[Any]:
    return next((values for name in _CONTENTS if (values := getattr(contents, name))), ())


def _told(error: grpc.aio.AioRpcError, *, answered: bool) -> PenstockError:
    return status_error(error.code(), error.details() or "", answered=answered)
