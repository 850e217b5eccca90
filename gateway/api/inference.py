"""The hot routes: POST /v1/chat/completions, /v1/completions, /v1/embeddings.

authenticate -> parse -> serve, and the HTTP side of the answer. Works on `Exchange` (wire.py), without
the framework; serving/serve.py does the rest.
"""

import asyncio
import logging
import re
import time

from gateway.api.auth import Authenticator
from gateway.api.errors import error_body, error_event, error_headers
from gateway.api.exchange import Exchange
from gateway.api.parse import Parser
from gateway.api.request_id import accept_request_id
from gateway.api.wire import Handler
from gateway.core.call import Endpoint, Reply
from gateway.core.errors import Draining, PenstockError
from gateway.serving.serve import Service

log = logging.getLogger("penstock.api")
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class HttpClient:
    """Whoever asked, over HTTP: the `Client` that serving talks to."""

    __slots__ = ("_exchange", "_headers", "request_id")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        request_id = accept_request_id(exchange.headers.get(b"x-request-id"))
        self.request_id = request_id.decode()
        self._headers = b"x-request-id: %b\r\n" % request_id

    @property
    def started(self) -> bool:
        return self._exchange.response_started

    @property
    def paused(self) -> bool:
        return self._exchange.paused

    async def drained(self) -> None:
        await self._exchange.drain()

    def reply(self, reply: Reply) -> None:
        self._exchange.respond(200, self._headers + b"content-type: application/json\r\n", reply.body)

    def open_stream(self, first: bytes) -> None:
        headers = (
            b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"
        )
        self._exchange.start(200, self._headers + headers, first)

    def send(self, data: bytes) -> None:
        self._exchange.write(data)

    def close_stream(self, last: bytes = b"") -> None:
        self._exchange.end(last)

    def fail(self, error: PenstockError) -> None:
        if self._exchange.response_complete or self._exchange.disconnected:
            return
        if self._exchange.response_started:
            self._fail_stream(error)
            return
        if isinstance(error, Draining):
            self._exchange.keep_alive = False
        extra = "".join(f"{name}: {value}\r\n" for name, value in error_headers(error).items()).encode()
        headers = b"%bcontent-type: application/json\r\n%b" % (self._headers, extra)
        self._exchange.respond(error.status, headers, error_body(error))

    def _fail_stream(self, error: PenstockError) -> None:
        if self._exchange.paused:
            self._exchange.abort()  # it does not read: it would not read this either
        else:
            self._exchange.end(error_event(error))


def hot_routes(service: Service, auth: Authenticator, json_depth_limit: int) -> dict[bytes, Handler]:
    """Path -> handler, for wire.py."""
    return {
        b"/v1/" + endpoint.encode(): _route(Parser(endpoint, json_depth_limit), service, auth) for endpoint in Endpoint
    }


def _route(parser: Parser, service: Service, auth: Authenticator) -> Handler:
    async def handle(exchange: Exchange) -> None:
        received_s = time.monotonic()
        client = HttpClient(exchange)
        try:
            key_name = auth.authenticate(exchange.headers.get(b"authorization"))
            call = parser.parse(bytes(exchange.body), client.request_id, received_s)
            exchange.body = b""  # a long stream should not hold its prompt twice
            call.key_name = key_name
            call.traceparent = _traceparent(exchange)
            await service.serve(call, client)
        except PenstockError as error:
            service.telemetry.refused(parser.endpoint, client.request_id, error, received_s)
            client.fail(error)
        except asyncio.CancelledError:
            client.fail(Draining("The gateway shut down before this answer was finished."))
        except Exception:
            log.exception("request %s failed inside the gateway", client.request_id)
            client.fail(PenstockError("The gateway failed; its log says why.", param=None))

    return handle


def _traceparent(exchange: Exchange) -> str | None:
    value = exchange.headers.get(b"traceparent")
    return value.decode() if value is not None and _TRACEPARENT.fullmatch(value) else None
