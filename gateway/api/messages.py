"""Anthropic's Messages: POST /v1/messages on every engine, and /v1/messages/count_tokens where the engine has it.

Relayed as it is where the engine has the endpoint and takes all that was asked; else translated over chat
(messages_request.py, messages_answer.py). Errors leave in Anthropic's shape, and the key may come as `x-api-key`.
"""

from gateway.api.auth import Authenticator
from gateway.api.http_client import HttpClient, guarded
from gateway.api.images import Images
from gateway.api.messages_answer import MessageTranslator, message_error, message_error_event
from gateway.api.messages_request import chat_call, refuse_absent
from gateway.api.parse import Parser, decoded
from gateway.api.wire import Handler
from gateway.core.call import Call, Endpoint
from gateway.core.errors import PenstockError
from gateway.serving.serve import Service
from gateway.serving.translator import Relayed


def messages_routes(
    service: Service, auth: Authenticator, json_depth_limit: int, images: Images
) -> dict[Endpoint, Handler]:
    """The handlers of both endpoints."""
    return {
        endpoint: _route(Parser(endpoint, json_depth_limit), service, auth, images)
        for endpoint in (Endpoint.MESSAGES, Endpoint.COUNT_TOKENS)
    }


def _route(parser: Parser, service: Service, auth: Authenticator, images: Images) -> Handler:
    async def answer(client: HttpClient, received_s: float) -> None:
        client.voice = relayed = RelayedMessage(client)
        client.id_header += b"request-id: %b\r\n" % client.request_id.encode()  # the header Anthropic's SDKs read
        call = await _read(client, received_s)
        values = decoded(call)
        refuse_absent(values)
        if parser.endpoint is Endpoint.COUNT_TOKENS or service.router.takes(call):
            await service.serve(call, relayed)
            return
        chat = chat_call(call, values)
        client.voice = translator = MessageTranslator(client, call.model, client.request_id)
        await service.serve(chat, translator)

    async def _read(client: HttpClient, received_s: float) -> Call:
        key_name = auth.authenticate(_authorization(client.headers))
        call = parser.parse(bytes(client.body), client.request_id, received_s)
        client.body = b""
        call.key_name = key_name
        call.traceparent = client.traceparent
        await images.check(call, "messages")
        return call

    return guarded(parser.endpoint, service, answer)


def _authorization(headers: dict[bytes, bytes]) -> bytes | None:
    key = headers.get(b"x-api-key")
    return headers.get(b"authorization") if key is None else b"Bearer " + key


class RelayedMessage(Relayed):
    """The engine's own events go to the client as they are; failures are said in Anthropic's shape."""

    def __init__(self, client: HttpClient) -> None:
        super().__init__(client)
        self._request_id = client.request_id

    def fail(self, error: PenstockError) -> None:
        if self._client.started:
            self._client.break_off(message_error_event(error, self._request_id))
        else:
            self._client.refuse(error, message_error(error, self._request_id))
