"""Whoever asked, over HTTP: an exchange as the `Client` that serving talks to, and the guard around every hot route."""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable

from gateway.api.errors import error_body, error_event, error_headers
from gateway.api.exchange import Exchange
from gateway.api.request_id import accept_request_id
from gateway.api.wire import Handler
from gateway.core.call import Client, Endpoint, Reply
from gateway.core.errors import Draining, PenstockError
from gateway.serving.serve import Service

_JSON = b"content-type: application/json\r\n"
_EVENT_STREAM = (
    b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"
)
log = logging.getLogger("penstock.api")
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class HttpClient(Exchange):
    """The exchange as a `Transport`. `voice`: the translator that a door put before it, which tells failures; itself
    when None. Taken away at the end: a circle would keep the exchange until the collector comes."""

    __slots__ = ("id_header", "request_id", "voice")

    def identify(self) -> None:
        request_id = accept_request_id(self.headers.get(b"x-request-id"))
        self.request_id = request_id.decode()
        self.id_header = b"x-request-id: %b\r\n" % request_id
        self.voice: Client | None = None

    def reply(self, reply: Reply) -> None:
        self.respond(200, self.id_header + _JSON, reply.body)

    def open_stream(self, first: bytes) -> None:
        self.start(200, self.id_header + _EVENT_STREAM, first)

    send = Exchange.write
    close_stream = Exchange.end
    drained = Exchange.drain

    def fail(self, error: PenstockError) -> None:
        if self.started:
            self.break_off(error_event(error))
        else:
            self.refuse(error, error_body(error))

    def refuse(self, error: PenstockError, body: bytes) -> None:
        if self.response_complete or self.disconnected:
            return
        if isinstance(error, Draining):
            self.keep_alive = False
        extra = "".join(f"{name}: {value}\r\n" for name, value in error_headers(error).items()).encode()
        self.respond(error.status, self.id_header + _JSON + extra, body)

    def break_off(self, last: bytes) -> None:
        if self.response_complete or self.disconnected:
            return
        if self.paused:
            self.abort()  # it does not read: it would not read this either
        else:
            self.end(last)

    @property
    def traceparent(self) -> str | None:
        value = self.headers.get(b"traceparent")
        return value.decode() if value is not None and _TRACEPARENT.fullmatch(value) else None


def guarded(
    endpoint: Endpoint,
    service: Service,
    answer: Callable[[HttpClient, float], Awaitable[None]],
    *,
    door: str | None = None,
) -> Handler:
    """The outermost door: whatever `answer` raises is told to the client, and counted. `door`: as in core/call.py."""

    async def handle(client: HttpClient) -> None:
        received_s = time.monotonic()
        client.identify()
        try:
            await answer(client, received_s)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001
            tell(error, client, service, endpoint, received_s, door)
        finally:
            client.voice = None

    return handle


def tell(
    error: BaseException,
    client: HttpClient,
    service: Service,
    endpoint: Endpoint,
    received_s: float,
    door: str | None = None,
) -> None:
    """What went wrong before, or outside of, `Service.serve`, which tells the client of its own failures."""
    voice = client.voice or client
    if isinstance(error, PenstockError):
        service.telemetry.refused(endpoint, client.request_id, error, received_s, door)
        voice.fail(error)
    elif isinstance(error, asyncio.CancelledError):
        if not client.disconnected:  # else there is nobody to be told
            voice.fail(Draining("The gateway shut down before this answer was finished."))
    else:
        log.error("request %s failed inside the gateway", client.request_id, exc_info=error)
        voice.fail(PenstockError("The gateway failed; its log says why."))
