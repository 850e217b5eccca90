"""The hot routes: every POST that asks an engine for something.

authenticate -> parse -> serve, and the HTTP side of the answer. Works on `Exchange` (wire.py), without
the framework; serving/serve.py does the rest. Responses and Messages have doors of their own.
"""

import asyncio
import time

from gateway.api.auth import Authenticator
from gateway.api.http_client import HttpClient, tell
from gateway.api.images import Images, may_hold_media
from gateway.api.messages import messages_routes
from gateway.api.parse import Parser
from gateway.api.responses import responses_route
from gateway.api.responses_store import ResponseStore
from gateway.api.wire import Handler
from gateway.core.call import Endpoint
from gateway.serving.serve import Service

_PLAIN = (Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS, Endpoint.RERANK, Endpoint.SCORE)


def hot_routes(
    service: Service, auth: Authenticator, json_depth_limit: int, images: Images, store: ResponseStore
) -> dict[bytes, Handler]:
    """Path -> handler, for wire.py."""
    handlers = {endpoint: _route(Parser(endpoint, json_depth_limit), service, auth, images) for endpoint in _PLAIN}
    handlers[Endpoint.RESPONSES] = responses_route(service, auth, json_depth_limit, images, store)
    handlers |= messages_routes(service, auth, json_depth_limit, images)
    return {b"/v1/" + endpoint.encode(): handler for endpoint, handler in handlers.items()}


def _route(parser: Parser, service: Service, auth: Authenticator, images: Images) -> Handler:
    has_images = parser.endpoint is Endpoint.CHAT

    async def handle(client: HttpClient) -> None:
        received_s = time.monotonic()
        client.identify()
        try:
            key_name = auth.authenticate(client.headers.get(b"authorization"))
            call = parser.parse(bytes(client.body), client.request_id, received_s)
            client.body = b""  # a long stream should not hold its prompt twice
            call.key_name = key_name
            call.traceparent = client.traceparent
            if has_images and not call.is_text and may_hold_media(call.body):
                await images.check(call, "messages")
            await service.serve(call, client)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001
            tell(error, client, service, parser.endpoint, received_s)

    return handle
