"""The gRPC server: its services and limits, how it starts, and how it stops without cutting off anybody too early."""

import asyncio

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_reflection.v1alpha import reflection, reflection_pb2

from gateway.protos.inference_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from gateway.protos.penstock.v1.chat_pb2_grpc import add_ChatServiceServicer_to_server
from gateway.rpc import chat, kserve
from gateway.rpc.entrance import Entrance
from gateway.rpc.health import Health
from gateway.serving.intake import Intake
from gateway.settings import RpcSettings, ServerSettings

MIN_PING_MS = 10_000
"""How often a client may ping; gRPC's own default, five minutes, ends the connections of clients set to less."""


class RpcServer:
    """Made before the event loop runs; `start()` needs it. `address` is where it listens, once started."""

    def __init__(self, intake: Intake, settings: RpcSettings, server: ServerSettings) -> None:
        self.address = ""
        self._intake = intake
        self._settings = settings
        self._limits = server
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises OSError when the port cannot be had."""
        self._loop = asyncio.get_running_loop()
        self._entrance = Entrance(self._intake)
        self._server = grpc.aio.server(options=self._options())
        add_GRPCInferenceServiceServicer_to_server(kserve.KServe(self._entrance), self._server)
        add_ChatServiceServicer_to_server(chat.ChatService(self._entrance), self._server)
        services = [kserve.NAME, chat.NAME]
        add_HealthServicer_to_server(Health(self._entrance, self._intake.service.router, services), self._server)
        own = [module.DESCRIPTOR.services_by_name for module in (health_pb2, reflection_pb2)]
        names = services + [service.full_name for module in own for service in module.values()]
        reflection.enable_server_reflection(names, self._server)
        self.address = self._listen()
        await self._server.start()

    def _listen(self) -> str:
        host = f"[{self._settings.host}]" if ":" in self._settings.host else self._settings.host
        try:
            return f"{host}:{self._server.add_insecure_port(f'{host}:{self._settings.port}')}"
        except RuntimeError as error:
            raise OSError(f"cannot listen for gRPC on {host}:{self._settings.port}: is the port taken?") from error

    def _options(self) -> list[tuple[str, int]]:
        """Sources: grpc_types.h, gRPC's keepalive guide."""
        return [
            ("grpc.so_reuseport", 0),  # a second gateway on the same port is a mistake to be told
            ("grpc.max_receive_message_length", self._limits.body_limit_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", self._limits.header_limit_bytes),
            ("grpc.absolute_max_metadata_size", self._limits.header_limit_bytes),
            ("grpc.keepalive_time_ms", int(self._settings.keepalive_s * 1000)),
            ("grpc.keepalive_timeout_ms", int(self._settings.keepalive_timeout_s * 1000)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", MIN_PING_MS),
        ]

    def signalled(self, *, is_forced: bool) -> None:
        """From a signal's handler: begin to stop; `is_forced`: at once."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._cut if is_forced else self._begin)

    async def stop(self) -> None:
        """Let running RPCs finish, within `drain_timeout_s` of the first signal; then nothing is left."""
        self._begin()
        assert self._stopping is not None
        await self._stopping

    def _begin(self) -> None:
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._stop())

    async def _stop(self) -> None:
        timeout_s = self._limits.drain_timeout_s
        refusing = asyncio.ensure_future(self._server.stop(timeout_s + 1))  # clients are told to go elsewhere
        await self._entrance.drain(timeout_s)
        await self._server.stop(None)
        await refusing

    def _cut(self) -> None:
        self._begin()
        self._entrance.cut()
