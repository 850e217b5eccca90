"""What every door does with a request before it is served: who asks, what is asked, under which id.

Apart from the doors so that gRPC and HTTP let in the same people and the same bodies. How keys are known and bodies
are checked is handed in by app.py.
"""

import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Protocol

from gateway.core.call import Call, Client, Endpoint
from gateway.core.errors import PenstockError
from gateway.serving.serve import Service

_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
log = logging.getLogger("penstock.door")


class KnowsKeys(Protocol):
    def authenticate(self, authorization: bytes | None) -> str | None:
        """The name of the key; None where none is needed. Raises Unauthorized."""
        ...


class ReadsBodies(Protocol):
    def parse(self, body: bytes, request_id: str, received_s: float) -> Call:
        """Raises PenstockError naming the field."""
        ...


@dataclass(slots=True)
class Asker:
    """Who asks, from the metadata of its protocol. `door`: what metrics and the access log call that protocol;
    `deadline_s`: when the client will have stopped waiting."""

    authorization: bytes | None
    request_id: str
    traceparent: str | None
    door: str
    received_s: float = field(default_factory=monotonic)
    deadline_s: float = float("inf")


@dataclass(frozen=True, slots=True)
class Intake:
    """`check_media` looks at what chat messages hold besides text, and raises PenstockError; `accept_request_id`: the
    id a client gave, if it is sane, else a fresh one."""

    service: Service
    keys: KnowsKeys
    bodies: Mapping[Endpoint, ReadsBodies]
    check_media: Callable[[Call], Awaitable[None]]
    accept_request_id: Callable[[bytes | None], bytes]

    def asker(self, door: str, headers: Mapping[bytes, bytes]) -> Asker:
        """`headers` by lower-case name."""
        trace = headers.get(b"traceparent")
        return Asker(
            headers.get(b"authorization"),
            self.accept_request_id(headers.get(b"x-request-id")).decode(),
            trace.decode() if trace is not None and _TRACEPARENT.fullmatch(trace) else None,
            door,
        )

    async def serve(self, asker: Asker, endpoint: Endpoint, body: Callable[[], bytes], client: Client) -> None:
        """Answer `client`. `body` makes the JSON of a POST to `endpoint`; what it raises is told like any other
        fault. Never raises but for cancellation."""
        try:
            await self._serve(asker, endpoint, body, client)
        except Exception:
            log.exception("request %s failed inside the gateway", asker.request_id)
            client.fail(PenstockError("The gateway failed; its log says why."))

    async def _serve(self, asker: Asker, endpoint: Endpoint, body: Callable[[], bytes], client: Client) -> None:
        try:
            call = self._call(asker, endpoint, body)
            await self.check_media(call)
        except PenstockError as error:
            self.service.telemetry.refused(endpoint, asker.request_id, error, asker.received_s, asker.door)
            client.fail(error)
        else:
            await self.service.serve(call, client)

    def _call(self, asker: Asker, endpoint: Endpoint, body: Callable[[], bytes]) -> Call:
        key_name = self.keys.authenticate(asker.authorization)
        call = self.bodies[endpoint].parse(body(), asker.request_id, asker.received_s)
        call.key_name, call.traceparent, call.door = key_name, asker.traceparent, asker.door
        call.deadline_s = asker.deadline_s
        return call
