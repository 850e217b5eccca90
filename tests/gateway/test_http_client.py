"""The guard around hot routes leaves nothing for the garbage collector: at full load its rounds would be felt."""

import asyncio
import gc
import json
from typing import Any

import pytest

from gateway.api.http_client import HttpClient, guarded
from gateway.api.messages_answer import MessageTranslator
from gateway.core.call import Endpoint, Reply


class Wireless:
    """A connection to nobody, that keeps what was written."""

    def __init__(self) -> None:
        self.written = b""
        self.transport: Any = self
        self.flow: Any = None

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        pass

    def default_headers(self) -> bytes:
        return b""

    def on_response_complete(self) -> None:
        pass


def whole_answer() -> Reply:
    message = {"role": "assistant", "content": "hi"}
    return Reply(json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode())


async def plain(client: HttpClient, _: float) -> None:
    client.reply(whole_answer())


async def translated(client: HttpClient, _: float) -> None:
    client.voice = translator = MessageTranslator(client, "m", "id")
    translator.reply(whole_answer())


@pytest.mark.parametrize("answer", [plain, translated])
def test_a_request_leaves_no_circle_of_references(answer: Any) -> None:
    handle = guarded(Endpoint.MESSAGES, None, answer)  # type: ignore[arg-type]
    connection = Wireless()

    async def one() -> None:
        client = HttpClient(connection, b"/", {}, True, False)
        await handle(client)

    asyncio.run(one())  # what is made once
    gc.collect()
    gc.disable()
    try:
        exchanges = sum(isinstance(one, HttpClient) for one in gc.get_objects())
        loop = asyncio.new_event_loop()
        loop.run_until_complete(one())
        loop.close()
        assert sum(isinstance(one, HttpClient) for one in gc.get_objects()) == exchanges
    finally:
        gc.enable()
    assert connection.written.count(b"HTTP/1.1 ") == 2
