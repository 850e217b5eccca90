"""OpenAI's Responses: POST /v1/responses, on every engine.

Relayed as it is where the engine has the endpoint and nothing is to be remembered here (`store: false`, no
`previous_response_id`); else translated over chat (responses_request.py, responses_answer.py) and, unless `store` is
false, remembered (responses_store.py).
"""

import re
import time
from typing import Any

import msgspec

from gateway.api.auth import Authenticator
from gateway.api.http_client import HttpClient, guarded
from gateway.api.images import Images
from gateway.api.parse import Parser, decoded
from gateway.api.responses_answer import ResponseTranslator
from gateway.api.responses_request import chat_call, input_items, new_id, refuse_absent, wants_logprobs
from gateway.api.responses_store import ResponseStore
from gateway.api.wire import Handler
from gateway.core.call import Call, Endpoint
from gateway.core.errors import NotFound, PenstockError
from gateway.serving.serve import Service
from gateway.serving.translator import Relayed

_ENCODE = msgspec.json.encode
_NUMBER = re.compile(rb'"sequence_number": ?(\d+)')


def responses_route(
    service: Service, auth: Authenticator, json_depth_limit: int, images: Images, store: ResponseStore
) -> Handler:
    parser = Parser(Endpoint.RESPONSES, json_depth_limit)

    async def answer(client: HttpClient, received_s: float) -> None:
        key_name = auth.authenticate(client.headers.get(b"authorization"))
        call = parser.parse(bytes(client.body), client.request_id, received_s)
        client.body = b""
        call.key_name = key_name
        call.traceparent = client.traceparent
        values = decoded(call)
        refuse_absent(values)
        await images.check(call, "input")
        if not _is_to_be_remembered(values) and service.router.takes(call):
            relayed = RelayedResponse(client)
            client.voice = relayed
            await service.serve(call, relayed)
            return
        context = _context(values, store, key_name)
        context += [_ENCODE(item) for item in input_items(values["input"])]
        chat = chat_call(call, values, [msgspec.json.decode(item) for item in context])

        def remember(response: dict[str, Any]) -> None:
            if response["store"]:
                store.put(key_name, response["id"], _ENCODE(response), context, response["output"])

        asks_logprobs = wants_logprobs(values)
        translator = ResponseTranslator(client, new_response(call, values), logprobs=asks_logprobs, on_done=remember)
        client.voice = translator
        del call, values  # a long stream should not hold its prompt twice
        await service.serve(chat, translator)

    return guarded(Endpoint.RESPONSES, service, answer)


def _is_to_be_remembered(values: dict[str, Any]) -> bool:
    return values.get("store") is not False or values.get("previous_response_id") is not None


def _context(values: dict[str, Any], store: ResponseStore, key_name: str | None) -> list[bytes]:
    """The items of the turns before this one. Raises NotFound."""
    previous = values.get("previous_response_id")
    if previous is None:
        return []
    try:
        stored = store.get(key_name, previous)
    except NotFound as error:
        error.param, error.code = "previous_response_id", "previous_response_not_found"
        raise
    return [*stored.context, *stored.output]


def new_response(call: Call, values: dict[str, Any]) -> dict[str, Any]:
    """The object as `response.created` shows it: what was asked, and defaults where nothing was."""
    reasoning = values.get("reasoning") or {}
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": values.get("instructions"),
        "max_output_tokens": values.get("max_output_tokens"),
        "metadata": values.get("metadata") or {},
        "model": call.model,
        "output": [],
        "parallel_tool_calls": values.get("parallel_tool_calls") is not False,
        "previous_response_id": values.get("previous_response_id"),
        "reasoning": {"effort": reasoning.get("effort"), "summary": None},
        "service_tier": "default",
        "store": values.get("store") is not False,
        "temperature": values["temperature"] if values.get("temperature") is not None else 1.0,
        "text": {"format": {"type": "text"}, **(values.get("text") or {})},
        "tool_choice": values.get("tool_choice") or "auto",
        "tools": values.get("tools") or [],
        "top_logprobs": values.get("top_logprobs") or 0,
        "top_p": values["top_p"] if values.get("top_p") is not None else 1.0,
        "truncation": "disabled",
        "usage": None,
        "user": values.get("user"),
    }


class RelayedResponse(Relayed):
    """The engine's own events go to the client as they are; only a failure of ours is said in their shape."""

    def __init__(self, client: HttpClient) -> None:
        super().__init__(client)
        self._last = b""

    def open_stream(self, first: bytes) -> None:
        self._last = first
        super().open_stream(first)

    def send(self, data: bytes) -> None:
        self._last = data
        super().send(data)

    def fail(self, error: PenstockError) -> None:
        if not self._client.started:
            self._client.fail(error)
            return
        numbers = _NUMBER.findall(self._last)
        event = {
            "type": "error",
            "sequence_number": int(numbers[-1]) + 1 if numbers else 0,
            "code": error.code or error.type,
            "message": error.message,
            "param": error.param,
        }
        self._client.break_off(b"event: error\ndata: %b\n\n" % _ENCODE(event))
