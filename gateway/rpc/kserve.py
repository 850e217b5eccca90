"""KServe v2 over gRPC, `inference.GRPCInferenceService`: every model under TensorRT-LLM's tensor names.

What Triton's clients ask is answered as Triton would; what only its own models have (loading, shared memory, traces) is
UNIMPLEMENTED, as gRPC has it. Source: Triton's gRPC frontend, KServe's Open Inference Protocol v2.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from gateway.core.call import Endpoint
from gateway.core.errors import ModelNotFound, PenstockError
from gateway.protos import inference_pb2 as pb
from gateway.protos.inference_pb2_grpc import GRPCInferenceServiceServicer
from gateway.routing.router import Model
from gateway.rpc.entrance import Entrance
from gateway.rpc.kserve_statistics import statistics
from gateway.rpc.kserve_stream import InferStream
from gateway.rpc.outbox import deliver
from gateway.rpc.status import Context
from gateway.rpc.tensor_codec import put, tensors_of
from gateway.serving.tensor_answer import Outputs, TensorAnswer
from gateway.serving.tensors import INPUTS, OUTPUTS, PLATFORM, VERSION, Reading, check_version, in_tensor_words

NAME = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
_TYPES = {
    "BOOL": pb.TYPE_BOOL,
    "INT32": pb.TYPE_INT32,
    "UINT64": pb.TYPE_UINT64,
    "FP32": pb.TYPE_FP32,
    "BYTES": pb.TYPE_STRING,
}
DOOR = "grpc/kserve"


class KServe(GRPCInferenceServiceServicer):
    def __init__(self, entrance: Entrance) -> None:
        self._entrance = entrance
        self._router = entrance.intake.service.router

    # ---- inference ----

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        async with self._entrance.rpc(context, DOOR) as asker:
            client = OneResponse(request)
            await self._entrance.intake.serve(asker, Endpoint.COMPLETIONS, client.body, client)
            if client.error is not None:
                raise in_tensor_words(client.error)
            response = pb.ModelInferResponse(model_name=request.model_name, model_version=VERSION, id=request.id)
            put(response, client.outputs)
            return response

    async def ModelStreamInfer(self, requests: AsyncIterator[pb.ModelInferRequest], context: Context) -> None:
        async with self._entrance.rpc(context, DOOR) as asker:
            self._entrance.intake.keys.authenticate(asker.authorization)  # who has no key holds no stream open
            metadata = dict(context.invocation_metadata() or ())
            stream = InferStream(
                self._entrance, asker, ends_on_error=metadata.get("triton_grpc_error") in ("true", b"true")
            )
            await deliver(context, stream.outbox, stream.run(requests))
            if stream.error is not None:
                raise stream.error

    # ---- what there is ----

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:  # noqa: ARG002
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:  # noqa: ARG002
        is_ready = any(model.is_ready for model in self._router.models.values())
        return pb.ServerReadyResponse(ready=is_ready and not self._entrance.is_draining.is_set())

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:  # noqa: ARG002
        return pb.ServerMetadataResponse(
            name=PLATFORM,
            version=version("penstock"),
            extensions=["model_configuration", "model_repository", "statistics"],
        )

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        async with self._known(context):
            model = self._models().get(request.name)
            is_ready = model is not None and model.is_ready and request.version in ("", VERSION)
            return pb.ModelReadyResponse(ready=is_ready)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        async with self._known(context):
            self._find(request.name, request.version)
            response = pb.ModelMetadataResponse(name=request.name, versions=[VERSION], platform=PLATFORM)
            for name, spec in INPUTS.items():
                response.inputs.add(name=name, datatype=spec.datatype, shape=spec.shape)
            for name, (datatype, shape) in OUTPUTS.items():
                response.outputs.add(name=name, datatype=datatype, shape=shape)
            return response

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        async with self._known(context):
            self._find(request.name, request.version)
            config = pb.ModelConfig(name=request.name, platform=PLATFORM, backend=PLATFORM)
            config.model_transaction_policy.decoupled = True
            for name, spec in INPUTS.items():
                is_optional = name != "text_input"
                config.input.add(name=name, data_type=_TYPES[spec.datatype], dims=spec.shape, optional=is_optional)
            for name, (datatype, shape) in OUTPUTS.items():
                config.output.add(name=name, data_type=_TYPES[datatype], dims=shape)
            return pb.ModelConfigResponse(config=config)

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:
        async with self._known(context):
            response = pb.RepositoryIndexResponse()
            for name, model in self._models().items():
                if model.is_ready:
                    response.models.add(name=name, version=VERSION, state="READY")
                elif not request.ready:
                    response.models.add(name=name, version=VERSION, state="UNAVAILABLE", reason=model.why_not_ready())
            return response

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Context) -> pb.ModelStatisticsResponse:
        async with self._known(context):
            if request.name:
                self._find(request.name, request.version)
            names = [request.name] if request.name else list(self._models())
            return pb.ModelStatisticsResponse(
                model_stats=[
                    statistics(name, (deployment.series for deployment in self._models()[name].deployments))
                    for name in names
                ]
            )

    def _models(self) -> dict[str, Model]:
        return self._router.models | self._router.adapters

    def _find(self, name: str, version: str) -> None:
        if name not in self._models():
            raise ModelNotFound(f"The model {name[:128]!r} does not exist; RepositoryIndex lists those that do.")
        check_version(name, version)

    @asynccontextmanager
    async def _known(self, context: Context) -> AsyncGenerator[None, None]:
        """For RPCs that tell of models: to those who may ask them."""
        async with self._entrance.rpc(context, DOOR) as asker:
            self._entrance.intake.keys.authenticate(asker.authorization)
            yield


class OneResponse(TensorAnswer):
    """The client of ModelInfer. `outputs` are complete when serving has returned without an error."""

    started = False
    paused = False

    def __init__(self, request: pb.ModelInferRequest) -> None:
        super().__init__()
        self.outputs: Outputs = {}
        self.error: PenstockError | None = None
        self._request = request

    def body(self) -> bytes:
        """Raises InvalidRequest."""
        request = self._request
        check_version(request.model_name, request.model_version)
        names = [output.name for output in request.outputs]
        return self.expect(Reading(request.model_name, tensors_of(request), names).asked())

    async def drained(self) -> None:
        return

    def flush(self, *, is_first: bool, is_last: bool) -> None:  # noqa: ARG002
        self.outputs = self.last()

    def fail(self, error: PenstockError) -> None:
        self.error = error
