"""The typed chat service, penstock.v1.ChatService."""

from gateway.core.call import Endpoint
from gateway.protos.penstock.v1 import chat_pb2 as pb
from gateway.protos.penstock.v1.chat_pb2_grpc import ChatServiceServicer
from gateway.rpc.chat_answer import StreamedAnswer, WholeAnswer
from gateway.rpc.chat_request import body_of
from gateway.rpc.entrance import Entrance
from gateway.rpc.outbox import Outbox, deliver
from gateway.rpc.status import Context

NAME = pb.DESCRIPTOR.services_by_name["ChatService"].full_name
DOOR = "grpc/chat"


class ChatService(ChatServiceServicer):
    def __init__(self, entrance: Entrance) -> None:
        self._entrance = entrance

    async def Complete(self, request: pb.CompleteRequest, context: Context) -> pb.CompleteResponse:
        async with self._entrance.rpc(context, DOOR) as asker:
            client = WholeAnswer(asker.request_id, request.chat.model)
            await self._entrance.intake.serve(asker, Endpoint.CHAT, lambda: body_of(request.chat, stream=False), client)
            if client.error is not None:
                raise client.error
            return client.message

    async def Stream(self, request: pb.StreamRequest, context: Context) -> None:
        async with self._entrance.rpc(context, DOOR) as asker:
            outbox: Outbox[pb.StreamResponse] = self._entrance.outbox()
            client = StreamedAnswer(asker.request_id, request.chat.model, outbox)
            work = self._entrance.intake.serve(asker, Endpoint.CHAT, lambda: body_of(request.chat, stream=True), client)
            await deliver(context, outbox, work)
            if client.error is not None:
                raise client.error

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:  # noqa: ARG002
        async with self._entrance.rpc(context, DOOR) as asker:
            self._entrance.intake.keys.authenticate(asker.authorization)
            return pb.ListModelsResponse(models=self._list())

    def _list(self) -> list[pb.Model]:
        router = self._entrance.intake.service.router
        models = [
            pb.Model(
                id=name, created=model.created, parent=model.name if name != model.name else "", ready=model.is_ready
            )
            for name, model in router.models.items()
        ]
        for name, model in router.adapters.items():
            created = model.shelf.adapters[name].created
            models.append(pb.Model(id=name, created=created, parent=model.name, ready=model.is_ready))
        return models
