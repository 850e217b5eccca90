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

_JSON = b"content-type: application/json\r\n"
_EVENT_STREAM = (
    b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"
)
log = logging.getLogger("penstock.api")
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class HttpClient(Exchange):
    """Whoever asked, over HTTP: the exchange as the `Client` that serving talks to."""

    __slots__ = ("id_header", "request_id")

    def identify(self) -> None:
        request_id = accept_request_id(self.headers.get(b"x-request-id"))
        self.request_id = request_id.decode()
        self.id_header = b"x-request-id: %b\r\n" % request_id

    def reply(self, reply: Reply) -> None:
        self.respond(200, self.id_header + _JSON, reply.body)

    def open_stream(self, first: bytes) -> None:
        self.start(200, self.id_header + _EVENT_STREAM, first)

    send = Exchange.write
    close_stream = Exchange.end
    drained = Exchange.drain

    def fail(self, error: PenstockError) -> None:
        if self.response_complete or self.disconnected:
            return
        if self.started:
            self._fail_stream(error)
            return
        if isinstance(error, Draining):
            self.keep_alive = False
        extra = "".join(f"{name}: {value}\r\n" for name, value in error_headers(error).items()).encode()
        self.respond(error.status, self.id_header + _JSON + extra, error_body(error))

    def _fail_stream(self, error: PenstockError) -> None:
        if self.paused:
            self.abort()  # it does not read: it would not read this either
        else:
            self.end(error_event(error))


def hot_routes(service: Service, auth: Authenticator, json_depth_limit: int) -> dict[bytes, Handler]:
    """Path -> handler, for wire.py."""
    return {
        b"/v1/" + endpoint.encode(): _route(Parser(endpoint, json_depth_limit), service, auth) for endpoint in Endpoint
    }


def _route(parser: Parser, service: Service, auth: Authenticator) -> Handler:
    async def handle(client: HttpClient) -> None:
        received_s = time.monotonic()
        client.identify()
        try:
            key_name = auth.authenticate(client.headers.get(b"authorization"))
            call = parser.parse(bytes(client.body), client.request_id, received_s)
            client.body = b""  # a long stream should not hold its prompt twice
            call.key_name = key_name
            call.traceparent = _traceparent(client.headers)
            await service.serve(call, client)
        except PenstockError as error:
            service.telemetry.refused(parser.endpoint, client.request_id, error, received_s)
            client.fail(error)
        except asyncio.CancelledError:
            client.fail(Draining("The gateway shut down before this answer was finished."))
        except Exception:
            log.exception("request %s failed inside the gateway", client.request_id)
            client.fail(PenstockError("The gateway failed; its log says why."))

    return handle


def _traceparent(headers: dict[bytes, bytes]) -> str | None:
    value = headers.get(b"traceparent")
    return value.decode() if value is not None and _TRACEPARENT.fullmatch(value) else None
