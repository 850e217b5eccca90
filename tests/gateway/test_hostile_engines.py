"""Engines that answer nonsense: each is one clear error of the engine's, and spoils nothing after.

Apart from test_faults.py, whose engines break off and fall silent: these answer in time, in whole, and wrongly.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import msgspec
import pytest

from gateway.backends.base import LoadsAdapters, Patience
from gateway.backends.capabilities import Adapters
from gateway.backends.registry import make_backend
from gateway.core.call import Call, Chunk, Endpoint
from gateway.core.errors import InvalidRequest, PenstockError, UpstreamError
from gateway.core.replica import Replica, ReplicaState

HI = b'[{"role":"user","content":"hi"}]'
NONSENSE: dict[str, bytes] = {
    "nothing": b"",
    "text": b"hello",
    "half": b'{"choices": [',
    "null": b"null",
    "a list": b"[]",
    "a list of lists": b"[[[]]]",
    "too deep": b'{"choices":' + b"[" * 100_000,
    "no utf-8": b'{"choices":[{"message":{"content":"\xff"}}],"data":"\xff"}',
    "half a surrogate": b'{"choices":[{"message":{"content":"\\ud800"}}]}',
    "choices null": b'{"choices":null}',
    "content a number": b'{"choices":[{"message":{"content":5},"delta":{"content":5}}]}',
    "usage negative": b'{"choices":[{"message":{"content":"x"}}],"usage":{"prompt_tokens":-5}}',
    "usage endless": b'{"choices":[{"message":{"content":"x"}}],"usage":{"prompt_tokens":1%b}}' % (b"0" * 400),
    "usage text": b'[{"score":1,"index":0,"meta_info":{"prompt_tokens":"7"}}]',
    "models wrong": b'{"data":[{"id":["a"],"root":5}]}',
    "success text": b'{"success":"yes"}',
}


@asynccontextmanager
async def engine(body: bytes, kind: bytes = b"application/json") -> AsyncIterator[str]:
    """Answers every request with 200 and `body`; gives its URL."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length or 0))
            writer.write(
                b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n"
                % (kind, len(body))
                + body
            )
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


class Listener:
    """A client that notes what it is told."""

    paused = False

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []

    def push(self, chunk: Chunk) -> bool:
        self.chunks.append(chunk)
        return False

    def push_content(self, data: bytes, at_s: float) -> bool:
        return self.push(Chunk(data, at_s, contents=1))

    async def drained(self) -> None: ...


def call(endpoint: Endpoint, *, stream: bool = False) -> Call:
    body = b'{"model":"m","messages":%b,"query":"q","documents":["d"]}' % HI
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    return Call(endpoint, "m", body, fields, stream=stream, wants_usage=False, request_id="r", received_s=0.0,
                deadline_s=float("inf"))  # fmt: skip


KINDS = ("openai", "vllm", "sglang", "trtllm", "lightllm", "mnn", "openvino")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", NONSENSE)
async def test_nonsense_is_an_error_of_the_engines_and_nothing_else(kind: str, what: str) -> None:
    backend: Any = make_backend(kind, Patience(probe_timeout_s=60, first_token_timeout_s=60))
    async with engine(NONSENSE[what]) as url:
        replica = Replica("a", url, "m", 8)
        steps: list[Callable[[], Awaitable[object]]] = [
            partial(backend.probe, replica),
            partial(backend.warm_up, replica, Endpoint.CHAT),
            partial(backend.stream, replica, call(Endpoint.CHAT, stream=True), Listener()),
        ]
        steps += [
            partial(backend.complete, replica, call(endpoint))
            for endpoint in (Endpoint.CHAT, Endpoint.EMBEDDINGS, Endpoint.RERANK, Endpoint.SCORE, Endpoint.RESPONSES)
            if endpoint in backend.fields
        ]
        if backend.capabilities.adapters is Adapters.DYNAMIC:
            assert isinstance(backend, LoadsAdapters)
            steps += [partial(backend.load_adapter, replica, "x", "/x"), partial(backend.unload_adapter, replica, "x")]
        statuses: set[int] = set()
        for step in steps:
            try:
                await step()
            except PenstockError as error:
                statuses.add(error.status)
    await backend.aclose()
    assert statuses <= {400, 502}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", NONSENSE)
async def test_nonsense_in_a_stream_is_an_error_too(kind: str, what: str) -> None:
    backend = make_backend(kind, Patience(first_token_timeout_s=60))
    async with engine(b"data: %b\n\n" % NONSENSE[what], b"text/event-stream") as url:
        with pytest.raises(UpstreamError):
            await backend.stream(Replica("a", url, "m", 8), call(Endpoint.CHAT, stream=True), Listener())
    await backend.aclose()


@pytest.mark.parametrize("count", [b"-5", b"1" + b"0" * 400, b"2.5", b"null"])
async def test_a_count_that_is_none_never_reaches_the_metrics(count: bytes) -> None:
    """A counter that once went back, or to infinity, is spoilt until the gateway is started again."""
    backend = make_backend("vllm", Patience(first_token_timeout_s=60))
    body = b'{"choices":[{"message":{"content":"x"}}],"usage":{"prompt_tokens":%b}}' % count
    async with engine(body) as url:
        with pytest.raises(UpstreamError, match="usage"):
            await backend.complete(Replica("a", url, "m", 8), call(Endpoint.CHAT))
    await backend.aclose()


@pytest.mark.parametrize(
    ("asked", "told"), [(10**400, 1.0), (20, 1.0), (0, 0.5), (-4, 0.3), (-(10**400), 0.0)], ids="abcde"
)
def test_a_priority_beyond_all_bounds_is_the_most_there_is(asked: int, told: float) -> None:
    backend: Any = make_backend("trtllm", Patience())
    wanted = call(Endpoint.CHAT)
    wanted.fields["priority"] = msgspec.Raw(str(asked).encode())
    sent = backend.dialect(wanted, wanted.fields)
    assert msgspec.json.decode(sent["priority"]) == told


async def test_one_slow_probe_of_sglang_does_not_take_seeds_away() -> None:
    backend: Any = make_backend("sglang", Patience())
    wanted = call(Endpoint.CHAT)
    wanted.fields["seed"] = msgspec.Raw(b"7")
    async with engine(b'{"enable_deterministic_inference":true,"data":[]}') as url:
        replica = Replica("a", url, "m", 8, state=ReplicaState.READY)
        assert (await backend.probe(replica)).up
    assert not (await backend.probe(replica)).up
    assert "seed" in backend.dialect(wanted, wanted.fields)
    replica.state = ReplicaState.DOWN
    assert not (await backend.probe(replica)).up
    with pytest.raises(InvalidRequest, match="seed"):
        backend.dialect(wanted, wanted.fields)
    await backend.aclose()
