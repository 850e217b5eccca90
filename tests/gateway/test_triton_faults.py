"""What a client hears when a Triton fails, dawdles, lies or dies; and that the next request works."""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gateways import GatewayHandle, config, start_gateway
from peers import Peer
from peers import post as http_post
from tritons import CHECKPOINT, FakeTriton, chat, content, events, post, start_triton

BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": True}


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[FakeTriton, GatewayHandle]]:
    with start_triton("core") as triton, start_gateway(triton.config()) as gateway:
        yield triton, gateway


@pytest.fixture(scope="module")
def hasty(shared: tuple[FakeTriton, GatewayHandle]) -> Iterator[GatewayHandle]:
    """Another gateway in front of the same, with little patience."""
    patience = {"first_token_timeout_s": 0.7, "idle_timeout_s": 0.7, "deadline_s": 2}
    with start_gateway(shared[0].config(**patience)) as gateway:
        yield gateway


@pytest.fixture
def triton(shared: tuple[FakeTriton, GatewayHandle]) -> Iterator[FakeTriton]:
    shared[0].script()
    yield shared[0]
    shared[0].script(answer=" fine")
    assert chat(shared[1])["choices"][0]["message"]["content"] == " fine"  # the next request works
    shared[0].wait(lambda stats: stats["active"] == 0)


@pytest.fixture
def gateway(shared: tuple[FakeTriton, GatewayHandle]) -> GatewayHandle:
    return shared[1]


def broken(gateway: GatewayHandle) -> tuple[str, dict[str, Any]]:
    """The content before a late failure, and the error event it ends with."""
    answer = httpx.post(f"{gateway.url}/v1/chat/completions", json=BODY, timeout=60)
    assert answer.status_code == 200
    got = [json.loads(block[6:]) for block in answer.text.split("\n\n") if block and block != "data: [DONE]"]
    return content([event for event in got if "choices" in event]), got[-1]["error"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("code", "message", "status", "expected"),
    [
        ("INVALID_ARGUMENT", "bad shape", 400, None),
        ("INVALID_ARGUMENT", "prompt exceeds maximum context length", 400, "context_length_exceeded"),
        ("UNAVAILABLE", "Exceeds maximum queue size", 503, "engine_overloaded"),
        ("RESOURCE_EXHAUSTED", "out of blocks", 503, "engine_overloaded"),
        ("NOT_FOUND", "Request for unknown model", 502, "engine_failed"),
        ("UNIMPLEMENTED", "no decoupled", 501, "engine_error"),
        ("INTERNAL", "CUDA error", 500, "engine_error"),
        ("UNKNOWN", "who knows", 502, "engine_failed"),
        ("CANCELLED", "by a stop request", 502, "engine_failed"),
        ("UNAUTHENTICATED", "who are you", 502, "engine_unauthorized"),
        (None, "Exceeds maximum queue size", 503, "engine_overloaded"),
        (None, "it went wrong", 500, "engine_error"),
    ],
)
def test_an_early_error_is_a_status(
    triton: FakeTriton, gateway: GatewayHandle, code: str | None, message: str, status: int, expected: str, stream: bool
) -> None:
    triton.script(fault="error", code=code, message=message)
    answer = post(gateway, stream=stream)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, expected)
    assert error.keys() == {"message", "type", "param", "code"}
    if expected != "engine_unauthorized":  # that is nobody's business
        assert message in error["message"]


@pytest.mark.parametrize("code", ["INTERNAL", None])
def test_a_late_error_becomes_one_event(triton: FakeTriton, gateway: GatewayHandle, code: str | None) -> None:
    triton.script(answer=" one two three", fault="error", code=code, after=2)
    text, error = broken(gateway)
    assert text == " one two"
    assert error["message"] == "it went wrong"


@pytest.mark.parametrize(("after", "status"), [(0, 502), (2, 200)])
def test_a_stream_that_ends_without_its_end_is_an_error(
    triton: FakeTriton, gateway: GatewayHandle, after: int, status: int
) -> None:
    triton.script(answer=" one two three", fault="break", after=after)
    if status != 200:
        assert post(gateway, stream=True).status_code == status
        return
    text, error = broken(gateway)
    assert (text, error["code"]) == (" one two", "engine_failed")


def test_silence_is_a_timeout_before_the_first_token_and_within(triton: FakeTriton, hasty: GatewayHandle) -> None:
    triton.script(answer=" one two three", fault="silence")
    for stream in (True, False):
        answer = post(hasty, stream=stream)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "engine_timeout")
        triton.wait(lambda stats: stats["active"] == 0)
    triton.script(answer=" one two three", fault="silence", after=2)
    text, error = broken(hasty)
    assert (text, error["code"]) == (" one two", "engine_timeout")
    assert triton.wait(lambda stats: stats["active"] == 0)["cancelled"] == 1  # its work was stopped


def test_a_deadline_ends_a_stream_that_still_speaks(triton: FakeTriton, hasty: GatewayHandle) -> None:
    triton.script(answer=" one" * 200, itl_s=0.1)
    text, error = broken(hasty)
    assert text
    assert error["code"] == "deadline_exceeded"
    triton.wait(lambda stats: stats["active"] == 0)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_cancels_exactly_its_request(
    triton: FakeTriton, gateway: GatewayHandle, stream: bool
) -> None:
    triton.script(answer=" one two three" * 9, itl_s=0.05)
    done: list[str] = []
    other = threading.Thread(target=lambda: done.append(content(events(gateway))))
    other.start()
    triton.wait(lambda stats: stats["active"] == 1)
    with Peer(gateway.port) as peer:
        peer.send(http_post(json.dumps(BODY if stream else BODY | {"stream": False, "stop": "never"}).encode()))
        triton.wait(lambda stats: len(stats["asked"]) == 2)
    assert triton.wait(lambda stats: stats["cancelled"] == 1)["finished"] in (0, 1)
    other.join()
    assert done == [" one two three" * 9]
    assert triton.stats()["cancelled"] == 1


def test_the_engine_is_not_read_while_its_client_does_not_read() -> None:
    """gRPC's flow control carries the client's pace to the engine: its side of the stream stays open."""
    word = " penstock" * 5000
    with start_triton("ensemble") as triton, start_gateway(triton.config(idle_timeout_s=1.5)) as gateway:
        triton.script(pieces=[word], repeat=400)
        with httpx.stream("POST", f"{gateway.url}/v1/chat/completions", json=BODY, timeout=60) as answer:
            chunks = answer.iter_bytes(65536)
            next(chunks)
            time.sleep(2.5)  # longer than the idle timeout: the client's silence is not the engine's
            assert triton.stats()["active"] == 1
            rest = sum(len(chunk) for chunk in chunks)
        assert rest > 399 * len(word)
        assert triton.wait(lambda stats: stats["active"] == 0)["finished"] == 1


def test_a_death_under_open_streams_breaks_them_and_the_next_one_serves() -> None:
    with start_triton() as first, start_gateway(first.config()) as gateway:
        first.script(answer=" one two three", fault="die", after=2, itl_s=0.01)
        text, error = broken(gateway)
        assert (text, error["code"]) == (" one two", "engine_failed")
        with start_triton(port=first.port) as second:
            second.script(answer=" again")
            while (answer := post(gateway)).status_code in (502, 503):  # until a probe finds it
                time.sleep(0.05)
            assert answer.json()["choices"][0]["message"]["content"] == " again"


def test_a_dead_replica_is_passed_over() -> None:
    with start_triton() as dead, start_triton() as alive:
        settings = {"engine": "triton", "model": "model", "checkpoint": str(CHECKPOINT), "policy": "round_robin",
                    "probe_interval_s": 30}  # fmt: skip
        with start_gateway(config(dead.url, alive.url, deployment=settings)) as gateway:
            deadline_s = time.monotonic() + 60
            while gateway.metric("penstock_replica_ready") < 2:
                assert time.monotonic() < deadline_s
                time.sleep(0.02)
            dead.kill()
            alive.script(answer=" here")
            texts = {chat(gateway)["choices"][0]["message"]["content"] for _ in range(4)}
            assert texts == {" here"}


def test_without_a_checkpoint_the_gateway_says_what_it_needs(tmp_path: Any) -> None:
    for folder, words in ((None, "checkpoint: is missing"), (str(tmp_path), "has no config.json")):
        settings = {"engine": "triton", "model": "model"} | ({"checkpoint": folder} if folder else {})
        with pytest.raises(RuntimeError, match=words):
            start_gateway(config("grpc://127.0.0.1:1", deployment=settings))
