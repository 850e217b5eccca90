"""Engines that die, hang or babble, and clients that leave or do not read: one clear end for each request.

Before the first event another replica may answer; after it there is one error event, then [DONE], and never
half an event. Nothing is left behind: no slot, no connection, no file descriptor.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fakes import FakeHandle, start_fake
from gateway.backends.base import Patience
from gateway.backends.openai_http import OpenAIHTTP
from gateway.core.call import Call, Endpoint, Reply
from gateway.core.errors import PenstockError
from gateway.core.replica import Replica, ReplicaState
from gateway.routing.deployment import Deployment
from gateway.routing.policies.least_request import LeastRequest
from gateway.routing.router import Model, Router
from gateway.serving.serve import Service
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.record import Telemetry
from gateways import LISTENING, GatewayHandle, config, start_gateway
from peers import Answer, Peer

Fakes = tuple[FakeHandle, FakeHandle]
MODEL = {"model": "m"}


@pytest.fixture(scope="module")
def hasty(fakes: Fakes) -> Iterator[GatewayHandle]:
    """In front of the first engine only, with little patience."""
    deployment = {"first_token_timeout_s": 0.5, "idle_timeout_s": 0.5, "deadline_s": 1.6, "queue_timeout_s": 0.5}
    with start_gateway(config(fakes[0].url, deployment=deployment)) as handle:
        yield handle


@pytest.fixture(scope="module")
def hasty_pair(fakes: Fakes) -> Iterator[GatewayHandle]:
    deployment = {"first_token_timeout_s": 0.5, "idle_timeout_s": 0.5}
    with start_gateway(config(*(fake.url for fake in fakes), deployment=deployment)) as handle:
        yield handle


@pytest.fixture(scope="module")
def narrow(fakes: Fakes) -> Iterator[GatewayHandle]:
    """One slot, two places in the queue, where one waits as long as it takes."""
    one = {"replicas": {"r0": {"url": fakes[0].url, "max_in_flight": 1}}, "max_waiting": 2, "queue_timeout_s": 600}
    with start_gateway(config(deployment=one)) as handle:
        yield handle


@pytest.fixture(scope="module")
def babbled() -> Iterator["tuple[Babbler, GatewayHandle]"]:
    """A gateway in front of something that says what it is told."""
    deployment = {"engine": "openai", "warm_up": "none", "first_token_timeout_s": 1}
    with Babbler() as babbler, start_gateway(config(babbler.url, deployment=deployment)) as handle:
        yield babbler, handle


def ask(gateway: GatewayHandle, fake: dict[str, Any] | None = None, **fields: Any) -> Answer:
    with Peer(gateway.port) as peer:
        return peer.chat(fake, **fields).answer()


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "it never came true"
        time.sleep(0.02)


def in_flight(gateway: GatewayHandle) -> float:
    return gateway.metric("penstock_requests_in_flight", **MODEL)


def waiting(gateway: GatewayHandle) -> float:
    return gateway.metric("penstock_requests_waiting", **MODEL)


def attempts(gateway: GatewayHandle, **labels: str) -> float:
    return gateway.metric("penstock_attempts_total", **MODEL, **labels)


def broke_off(answer: Answer, contents: int) -> dict[str, Any]:
    """The error of a stream that ended in one error event and [DONE] after `contents` chunks, whole on the wire."""
    assert (answer.status, answer.is_whole) == (200, True)
    *before, error, done = answer.events
    assert done == "[DONE]"
    assert all("error" not in event for event in before)
    assert sum(bool(event["choices"] and event["choices"][0]["delta"].get("content")) for event in before) == contents
    found: dict[str, Any] = error["error"]
    assert found.keys() == {"message", "type", "param", "code"}
    return found


# ---- engines that die ----


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("half_event", [False, True])
@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("at", ["before_headers", "after_headers"])
def test_a_death_before_the_first_event_is_another_replicas_turn(
    pair: GatewayHandle, fakes: Fakes, fake: FakeHandle, at: str, how: str, half_event: bool, stream: bool
) -> None:
    fake.script({"die": {"at": at, "how": how, "half_event": half_event and at == "after_headers"}})
    errors, tries = attempts(pair, outcome="upstream_error"), attempts(pair)
    answers = [ask(pair, stream=stream) for _ in range(2)]  # equals take turns: one of them meets the dying one
    assert [answer.status for answer in answers] == [200, 200]
    assert all(answer.text for answer in answers)
    assert fake.stats()["died"] in (1, 2)  # 2: on a connection that was idle it could not know whose fault it was
    assert fakes[1].stats()["completed"] == 2
    assert attempts(pair) - tries == 3
    assert attempts(pair, outcome="upstream_error") - errors == 1


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_plain_answer_cut_in_its_middle_is_never_relayed(
    pair: GatewayHandle, fakes: Fakes, fake: FakeHandle, how: str
) -> None:
    fake.script({"die": {"at": 3, "how": how, "half_event": True}, "token_bytes": 1000})
    answers = [ask(pair) for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 200]
    assert fakes[1].stats()["completed"] == 2


@pytest.mark.parametrize("framing", ["chunked", "close"])
@pytest.mark.parametrize("half_event", [False, True])
@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("at", [1, 3])
def test_a_death_in_midstream_is_one_error_event_and_no_second_try(
    pair: GatewayHandle, fakes: Fakes, fake: FakeHandle, at: int, how: str, half_event: bool, framing: str
) -> None:
    del fake
    death = {"die": {"at": at, "how": how, "half_event": half_event}, "framing": framing, "itl_s": 0.01}
    error = broke_off(ask(pair, death, stream=True), at)
    assert (error["type"], error["code"]) == ("server_error", "engine_failed")
    assert sum(engine.stats()["requests"] for engine in fakes) == 1


def test_a_death_after_done_is_no_death(pair: GatewayHandle, fake: FakeHandle) -> None:
    del fake
    answer = ask(pair, {"tokens": 3, "close_after": "silent", "framing": "close"}, stream=True)
    assert answer.events[-1] == "[DONE]"
    assert all("error" not in event for event in answer.events)


def test_an_engine_that_says_no_done_gets_one(pair: GatewayHandle, fake: FakeHandle) -> None:
    del fake
    answer = ask(pair, {"tokens": 3, "done": False}, stream=True)
    assert answer.events.count("[DONE]") == 1
    assert answer.events[-1] == "[DONE]"


def test_a_stream_without_finish_reason_and_done_broke_off(pair: GatewayHandle, fake: FakeHandle) -> None:
    del fake
    silent = {"tokens": 3, "done": False, "finish_chunk": "none", "usage_chunk": "never"}
    broke_off(ask(pair, silent, stream=True), 3)


def test_a_first_event_that_is_kept_from_the_client_is_no_end(gateway: GatewayHandle, fake: FakeHandle) -> None:
    """The usage event alone, in a read of its own: written as a chunk of nothing it would end the body."""
    only_usage = {"tokens": 0, "role_chunk": "none", "finish_chunk": "none", "write_bytes": 1, "write_pause_s": 0}
    fake.script(only_usage)
    with Peer(gateway.port) as peer:
        answer = peer.chat(stream=True).answer()
        assert (answer.is_whole, answer.events) == (True, ["[DONE]"])
        fake.reset_script()
        assert peer.chat().answer().text


def test_a_process_that_dies_is_out_at_once_and_back_after_a_token() -> None:
    with ExitStack() as stack:
        a, b = (stack.enter_context(start_fake("--model", "m")) for _ in range(2))
        with start_gateway(config(a.url, b.url)) as gateway:
            a.script({"die": {"at": 2, "how": "exit"}})
            streams = [ask(gateway, stream=True) for _ in range(2)]
            assert sorted("error" in event for event in (s.events[-2] for s in streams)) == [False, True]
            assert [ask(gateway, stream=stream).status for stream in (False, True) * 4] == [200] * 8
            assert b.stats()["completed"] >= 9
            wait_until(lambda: gateway.metric("penstock_replica_ready", replica="r0") == 0)
            with start_fake("--model", "m", port=a.port) as again:
                wait_until(lambda: gateway.metric("penstock_replica_ready", replica="r0") == 1)
                warm_up = again.stats()["last_requests"]
                assert [seen["body"].get("max_tokens") for seen in warm_up if isinstance(seen["body"], dict)] == [1]
                assert [ask(gateway).status for _ in range(4)] == [200] * 4
                assert again.stats()["completed"] == 3  # its first token, and every second request


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_restart_under_idle_connections_is_not_seen_by_clients(how: str) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(start_fake("--model", "m"))
        unwatched = {"probe_interval_s": 60}  # a probe in the middle of the restart would see that it is down: it is
        gateway = stack.enter_context(start_gateway(config(first.url, deployment=unwatched)))
        peers = [stack.enter_context(Peer(gateway.port)).chat({"ttft_s": 0.2}) for _ in range(8)]
        assert [peer.answer().status for peer in peers] == [200] * 8  # eight connections to the engine, idle now
        getattr(first, how)()
        stack.enter_context(start_fake("--model", "m", port=first.port))
        for stream in (False, True):
            assert [peer.chat(stream=stream).answer().status for peer in peers] == [200] * 8


def test_an_engine_that_closes_idle_connections_silently_costs_nobody_an_error() -> None:
    with ExitStack() as stack:
        fake = stack.enter_context(start_fake("--model", "m", "--script", '{"close_after": "silent", "tokens": 1}'))
        gateway = stack.enter_context(start_gateway(config(fake.url)))
        peer = stack.enter_context(Peer(gateway.port))
        assert [peer.chat().answer().status for _ in range(50)] == [200] * 50


# ---- engines that hang ----


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("at", ["before_headers", "after_headers"])
def test_an_engine_that_hangs_before_its_first_token_is_a_504(
    hasty: GatewayHandle, fake: FakeHandle, at: str, stream: bool
) -> None:
    answer = ask(hasty, {"hang": at}, stream=stream)
    assert (answer.status, answer.error["code"]) == (504, "engine_timeout")
    fake.wait(lambda stats: stats["aborted"] == 1)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("at", ["before_headers", "after_headers"])
def test_a_hanging_engine_is_another_replicas_turn(
    hasty_pair: GatewayHandle, fake: FakeHandle, at: str, stream: bool
) -> None:
    fake.script({"hang": at})
    assert all(ask(hasty_pair, stream=stream).text for _ in range(2))
    fake.wait(lambda stats: stats["aborted"] == 1)


def test_an_engine_that_hangs_in_midstream_is_one_error_event(hasty_pair: GatewayHandle, fakes: Fakes) -> None:
    for engine in fakes:
        engine.reset_stats()
    error = broke_off(ask(hasty_pair, {"hang": 2}, stream=True), 2)
    assert error["code"] == "engine_timeout"
    assert sum(engine.stats()["requests"] for engine in fakes) == 1
    assert ask(hasty_pair).status == 200


def test_comments_are_no_sign_of_tokens() -> None:
    with start_fake("--model", "m", "--script", '{"keep_alive_s": 0.05}') as pinging:
        deployment = {"first_token_timeout_s": 0.6, "idle_timeout_s": 0.6, "warm_up": "none"}
        with start_gateway(config(pinging.url, deployment=deployment)) as gateway:
            answer = ask(gateway, {"hang": "after_headers"}, stream=True)
            assert answer.error["code"] == "engine_timeout"


def test_a_slow_stream_that_moves_is_not_idle(fakes: Fakes, fake: FakeHandle) -> None:
    del fake
    deployment = {"first_token_timeout_s": 1.5, "idle_timeout_s": 1.5, "queue_timeout_s": 1.5}
    with start_gateway(config(fakes[0].url, deployment=deployment)) as gateway:
        answer = ask(gateway, {"itl_s": 0.2, "tokens": ["x"] * 10}, stream=True)  # longer than any timeout of it
    assert answer.text == "x" * 10


def test_the_deadline_of_a_request_ends_it_whatever_it_does(hasty: GatewayHandle, fake: FakeHandle) -> None:
    answer = ask(hasty, {"itl_s": 0.1, "tokens": 1000}, stream=True)
    assert answer.error["code"] == "deadline_exceeded"
    assert answer.events[-1] == "[DONE]"
    fake.wait(lambda stats: stats["aborted"] == 1)


# ---- engines that say so ----


def test_an_error_event_before_any_content_is_an_http_error(pair: GatewayHandle, fake: FakeHandle) -> None:
    del fake
    for code, status in ((500, 500), (400, 400), (None, 500)):
        answer = ask(pair, {"error_event": {"after_chunks": 0, "code": code, "message": "oh"}}, stream=True)
        assert (answer.status, answer.error["message"]) == (status, "oh")


@pytest.mark.parametrize("done", [True, False])
def test_an_error_event_after_content_is_one_error_event(pair: GatewayHandle, fakes: Fakes, done: bool) -> None:
    for engine in fakes:
        engine.reset_stats()
    fault = {"after_chunks": 2, "message": "oh", "done": done}
    for itl_s in (0.0, 0.02):  # in one read with what comes before, and by itself
        error = broke_off(ask(pair, {"error_event": fault, "itl_s": itl_s}, stream=True), 2)
        assert error["message"] == "oh"
    assert sum(engine.stats()["requests"] for engine in fakes) == 2


@pytest.mark.parametrize(
    ("status", "tries", "seen"),
    [
        (400, 1, 400),
        (404, 1, 404),
        (422, 1, 400),
        (499, 1, 400),
        (500, 1, 500),
        (429, 2, 503),
        (502, 2, 502),
        (503, 2, 503),
        (599, 2, 502),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_only_an_overloaded_engine_is_worth_another_try(
    pair: GatewayHandle, fakes: Fakes, fake: FakeHandle, status: int, tries: int, seen: int, stream: bool
) -> None:
    del fake
    before = attempts(pair)
    answer = ask(pair, {"error": {"status": status, "message": "no", "retry_after": 7}}, stream=stream)
    assert (answer.status, answer.error["message"]) == (seen, "no")
    assert ("retry-after" in answer.headers) == (seen == 503)
    assert attempts(pair) - before == tries
    assert sum(engine.stats()["requests"] for engine in fakes) == tries


def test_a_replica_without_overload_answers_in_its_place(pair: GatewayHandle, fakes: Fakes, fake: FakeHandle) -> None:
    fake.script({"error": {"status": 503}})
    assert [ask(pair, stream=stream).status for stream in (False, True, False, True)] == [200] * 4
    assert fake.stats()["failed"] == 2
    assert fakes[1].stats()["completed"] == 4


@pytest.mark.parametrize("max_attempts", [1, 3])
def test_there_are_no_more_attempts_than_configured(max_attempts: int) -> None:
    engines = [start_fake("--model", "m") for _ in range(4)]
    try:
        urls = [engine.url for engine in engines]
        with start_gateway(config(*urls, max_attempts=max_attempts, deployment={"warm_up": "none"})) as gateway:
            wait_until(lambda: gateway.metric("penstock_replica_ready", **MODEL) == 4)
            assert ask(gateway, {"die": {"at": "after_headers"}}).status == 502
            assert sum(engine.stats()["requests"] for engine in engines) == max_attempts
            assert attempts(gateway) == max_attempts
            assert gateway.metric("penstock_requests_total", **MODEL) == 1
    finally:
        for engine in engines:
            engine.stop()


# ---- engines that babble ----

JUNK = [
    "not_http", "bad_status_line", "length_too_long", "length_too_short", "two_lengths", "both_lengths",
    "huge_headers", "bad_chunk", "not_json", "bad_utf8", "empty",
]  # fmt: skip
HARMLESS = {"length_too_short"}  # what is left over is dropped, and cut JSON is no JSON


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("junk", JUNK)
def test_junk_is_a_502_and_the_next_request_works(
    hasty: GatewayHandle, fake: FakeHandle, junk: str, stream: bool
) -> None:
    fake.script({"junk": junk})
    with Peer(hasty.port) as peer:
        answer = peer.chat(stream=stream).answer()
        if junk in HARMLESS and answer.status == 200:
            assert answer.is_whole
            assert answer.text
        else:
            assert answer.status in (502, 504)  # 504: it announced more than it sent, and kept the connection
            assert answer.error["type"] == "server_error"
        fake.reset_script()
        assert peer.chat(stream=stream).answer().text  # nothing of the junk is left in a pooled connection


@pytest.mark.parametrize(
    ("answer", "is_fine"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nnull", False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]", False),
        (b'HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\n{"choices": 1}', False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 300\r\n\r\n" + b'{"x":' * 60, False),
        (b'HTTP/1.1 200 OK\r\ncontent-length: 400000\r\n\r\n{"x":' + b"[" * 399_995, False),
        (b'HTTP/1.1 200 OK\r\n\r\n{"choices": [', False),
        (b"HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n", False),
        (b"HTTP/1.1 599 What\r\ncontent-length: 0\r\n\r\n", False),
        (b"HTTP/1.1 204 No Content\r\n\r\n", False),
        (b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nx-endless: " + b"h" * 5_000_000, False),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 1000 + b"\r\n", False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", False),
    ],
)
def test_an_engine_may_say_anything(babbled: "tuple[Babbler, GatewayHandle]", answer: bytes, is_fine: bool) -> None:
    babbler, gateway = babbled
    babbler.answer = answer
    for _ in range(2):
        found = ask(gateway)
        assert found.is_whole
        if is_fine:
            assert (found.status, found.body) == (200, b"{}")
        else:
            assert found.status in (502, 504)
            assert found.error["type"] == "server_error"


class Babbler:
    """Something on a port that is no engine: lists model m to a probe, and to a POST says `answer`."""

    def __init__(self) -> None:
        self.answer = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> "Babbler":
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _serve(self) -> None:
        models = b'{"data": [{"id": "m"}]}'
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock:
                try:
                    sock.settimeout(10)
                    asked = sock.recv(65_536)
                    sock.settimeout(0.3)
                    if asked.startswith(b"GET"):
                        sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(models), models))
                    elif asked:
                        sock.sendall(self.answer)
                        if b"content-length" in self.answer:
                            sock.recv(1)
                except OSError:
                    pass


def test_a_head_that_never_ends_fills_no_memory(babbled: "tuple[Babbler, GatewayHandle]") -> None:
    babbler, gateway = babbled
    before = resident_bytes(gateway)
    babbler.answer = b"HTTP/1.1 200 OK\r\nx-endless: " + b"h" * 200_000_000
    answer = ask(gateway)
    assert (answer.status, answer.error["code"]) == (502, "engine_failed")
    assert "head" in answer.error["message"]
    assert resident_bytes(gateway) - before < 20_000_000


def test_a_replica_with_another_model_is_not_ready_and_says_why() -> None:
    with start_fake("--model", "other") as fake, start_gateway(config(fake.url), ready=False) as gateway:
        wait_until(lambda: "does not serve 'm', but other" in str(gateway.get("/ready")[1]))
        status, page = gateway.get("/ready")
        assert (status, page["models"]["m"]["ready"]) == (503, False)
        answer = ask(gateway)
        assert (answer.status, answer.error["code"]) == (503, "no_ready_replica")
        assert "does not serve 'm'" in answer.error["message"]
        assert answer.headers["retry-after"]


def test_a_replica_whose_first_token_fails_is_not_ready() -> None:
    with ExitStack() as stack:
        fake = stack.enter_context(start_fake("--model", "m"))
        fake.script({"error": {"status": 500, "message": "out of memory"}})
        gateway = stack.enter_context(start_gateway(config(fake.url), ready=False))
        wait_until(lambda: "out of memory" in str(gateway.get("/ready")[1]))
        assert ask(gateway).status == 503
        fake.reset_script()
        assert ask(gateway.wait_ready()).status == 200


def test_with_all_replicas_down_the_answer_says_why_and_when(fakes: Fakes) -> None:
    del fakes
    with start_fake("--model", "m") as fake, start_gateway(config(fake.url)) as gateway:
        fake.health(500)
        wait_until(lambda: gateway.get("/ready")[0] == 503)
        answer = ask(gateway, stream=True)
        assert (answer.status, answer.error["code"]) == (503, "no_ready_replica")
        assert "HTTP 500" in answer.error["message"]
        assert 1 <= int(answer.headers["retry-after"]) <= 120
        fake.health(200)
        gateway.wait_ready()
        fake.kill()
        assert ask(gateway).status in (502, 503)
        wait_until(lambda: ask(gateway).status == 503)
        assert "cannot be reached" in ask(gateway).error["message"]


# ---- clients that leave ----


@pytest.mark.parametrize(
    ("script", "fields"),
    [
        ({"hang": "before_headers"}, {"stream": False}),
        ({"ttft_s": 0.1, "itl_s": 0.1, "tokens": 100}, {"stream": False}),
        ({"hang": "before_headers"}, {"stream": True}),
        ({"hang": "after_headers"}, {"stream": True}),
        ({"itl_s": 0.05, "tokens": 1000}, {"stream": True}),
        ({"hang": 3}, {"stream": True}),
    ],
)
@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_client_that_leaves_aborts_the_engines_work(
    gateway: GatewayHandle, fake: FakeHandle, script: dict[str, Any], fields: dict[str, Any], how: str
) -> None:
    closed = gateway.metric("penstock_requests_total", outcome="client_closed")
    with Peer(gateway.port) as peer:
        peer.chat(script, **fields)
        fake.wait(lambda stats: stats["active"] == 1)
        if how == "reset":
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    fake.wait(lambda stats: stats["aborted"] == 1)  # left to itself, the engine would go on or hang
    wait_until(lambda: in_flight(gateway) == 0)
    assert gateway.metric("penstock_requests_total", outcome="client_closed") == closed + 1


def test_the_tokens_of_a_client_that_left_are_counted(gateway: GatewayHandle, fake: FakeHandle) -> None:
    before = gateway.metric("penstock_output_tokens_total", **MODEL)
    with Peer(gateway.port) as peer:
        tokens = [f"t{number}" for number in range(20)]
        peer.chat({"hang": 7, "tokens": tokens}, headers="x-request-id: left-early\r\n", stream=True)
        peer.wait_for(b"t6")
    fake.wait(lambda stats: stats["aborted"] == 1)
    wait_until(lambda: any(line["request_id"] == "left-early" for line in gateway.access_lines()))
    line = next(line for line in gateway.access_lines() if line["request_id"] == "left-early")
    assert (line["outcome"], line["status"], line["output_tokens"]) == ("client_closed", 499, 7)
    assert gateway.metric("penstock_output_tokens_total", **MODEL) == before + 7


def test_a_client_that_leaves_the_queue_frees_its_place(narrow: GatewayHandle, fake: FakeHandle) -> None:
    with Peer(narrow.port) as running:
        running.chat({"hang": "before_headers"})
        fake.wait(lambda stats: stats["active"] == 1)
        others = [Peer(narrow.port).chat() for _ in range(2)]
        wait_until(lambda: waiting(narrow) == 2)
        for peer in others:
            peer.close()
        wait_until(lambda: waiting(narrow) == 0)
        assert in_flight(narrow) == 1
    wait_until(lambda: in_flight(narrow) == 0)
    assert fake.stats()["requests"] == 1
    assert ask(narrow).status == 200


def test_a_thousand_clients_that_leave_at_once_leave_nothing_behind(gateway: GatewayHandle, fake: FakeHandle) -> None:
    assert ask(gateway).status == 200
    before, closed = fds(gateway), gateway.metric("penstock_requests_total", outcome="client_closed")
    peers = [Peer(gateway.port) for _ in range(1000)]
    fake.reset_stats()
    kinds: list[dict[str, Any]] = [{"hang": "before_headers"}, {"hang": 2}, {"itl_s": 0.1, "tokens": 1000}]
    for number, peer in enumerate(peers):
        peer.chat(kinds[number % 3], stream=number % 2 == 0)
    fake.wait(lambda stats: stats["active"] == 1000)
    for peer in peers:
        peer.close()
    assert ask(gateway, stream=True).text
    stats = fake.wait(lambda stats: stats["active"] == 0)
    assert stats["aborted"] == 1000
    wait_until(lambda: in_flight(gateway) == 0)
    wait_until(lambda: fds(gateway) <= before + 1)
    assert gateway.metric("penstock_requests_total", outcome="client_closed") - closed == 1000
    assert ask(gateway).status == 200


def fds(gateway: GatewayHandle) -> int:
    return len(list(Path(f"/proc/{gateway.process.pid}/fd").iterdir()))


def resident_bytes(gateway: GatewayHandle) -> int:
    pages = Path(f"/proc/{gateway.process.pid}/statm").read_text().split()[1]
    return int(pages) * 4096


# ---- clients that do not read ----


def test_a_slow_client_holds_the_engine_up_and_fills_no_memory(gateway: GatewayHandle, fake: FakeHandle) -> None:
    before = resident_bytes(gateway)
    with Peer(gateway.port, receive_bytes=16_384) as peer:
        peer.chat({"flood": True, "token_bytes": 1000, "tokens": 1_000_000}, stream=True)
        sent = settled(lambda: int(fake.stats()["bytes_sent"]))
        assert sent < 40_000_000  # of 1 GB: the rest waits in the engine
        assert resident_bytes(gateway) - before < 20_000_000
        for _ in range(200):
            peer.sock.recv(65_536)
        fake.wait(lambda stats: stats["bytes_sent"] > sent)  # and goes on when the client does
    fake.wait(lambda stats: stats["aborted"] == 1)
    wait_until(lambda: in_flight(gateway) == 0)


def settled(value: Callable[[], int]) -> int:
    """What `value` comes to rest at."""
    last = -1
    while abs((now := value()) - last) > 50_000:  # probes go on
        last = now
        time.sleep(0.4)
    return last


def test_a_client_that_never_reads_its_stream_is_cut(fakes: Fakes, fake: FakeHandle) -> None:
    settings = config(fakes[0].url, server={"port": 0, "send_timeout_s": 0.5})
    with start_gateway(settings) as gateway, Peer(gateway.port, receive_bytes=4096) as peer:
        peer.chat({"flood": True, "token_bytes": 1000, "tokens": 1_000_000}, stream=True)
        fake.wait(lambda stats: stats["aborted"] == 1)
        wait_until(lambda: in_flight(gateway) == 0)
        assert gateway.metric("penstock_requests_total", outcome="client_closed") == 1
        assert ask(gateway).status == 200


def test_a_client_that_reads_late_gets_every_byte(gateway: GatewayHandle, fake: FakeHandle) -> None:
    with Peer(gateway.port, receive_bytes=65_536) as peer:
        peer.chat({"token_bytes": 1000, "tokens": 5_000}, stream=True)
        settled(lambda: int(fake.stats()["bytes_sent"]))
        answer = peer.answer()
        assert answer.is_whole
        assert len(answer.text) >= 5_000 * 1000
        assert answer.events[-1] == "[DONE]"


# ---- the queue ----


def test_who_waits_for_a_slot_is_served_in_order(narrow: GatewayHandle, fake: FakeHandle) -> None:
    with Peer(narrow.port) as first, Peer(narrow.port) as second, Peer(narrow.port) as third:
        first.chat({"hang": "before_headers"}, user="1")
        fake.wait(lambda stats: stats["active"] == 1)
        for number, peer in enumerate((second, third), 2):
            peer.chat(user=str(number), stream=number == 3)
            wait_until(lambda number=number: waiting(narrow) == number - 1)  # type: ignore[misc]
        first.close()  # its slot is free
        assert [peer.answer().status for peer in (second, third)] == [200] * 2
    assert [seen["body"]["user"] for seen in fake.stats()["last_requests"] if seen["method"] == "POST"] == [
        "1",
        "2",
        "3",
    ]


def test_a_full_queue_is_a_429(narrow: GatewayHandle, fake: FakeHandle) -> None:
    with Peer(narrow.port) as running, Peer(narrow.port) as second, Peer(narrow.port) as third:
        running.chat({"hang": "before_headers"})
        fake.wait(lambda stats: stats["active"] == 1)
        for peer in (second, third):
            peer.chat()
        wait_until(lambda: waiting(narrow) == 2)
        answer = ask(narrow)
        assert_comes_back_later(answer)
        assert "2 requests wait already" in answer.error["message"]
    wait_until(lambda: in_flight(narrow) == 0)
    assert ask(narrow).status == 200


def test_a_long_wait_is_a_429(fakes: Fakes, fake: FakeHandle) -> None:
    one = {"replicas": {"r0": {"url": fakes[0].url, "max_in_flight": 1}}, "queue_timeout_s": 0.3}
    with start_gateway(config(deployment=one)) as gateway, Peer(gateway.port) as running:
        running.chat({"hang": "before_headers"})
        fake.wait(lambda stats: stats["active"] == 1)
        assert_comes_back_later(ask(gateway))


def assert_comes_back_later(answer: Answer) -> None:
    assert (answer.status, answer.error["code"]) == (429, "queue_full")
    assert answer.error["type"] == "rate_limit_exceeded"
    assert 1 <= int(answer.headers["retry-after"]) <= 120


def test_who_waited_for_a_replica_that_went_down_is_told_so(fakes: Fakes, fake: FakeHandle) -> None:
    one = {"replicas": {"r0": {"url": fakes[0].url, "max_in_flight": 1}}, "queue_timeout_s": 2.5}
    with start_gateway(config(deployment=one)) as gateway, Peer(gateway.port) as running, Peer(gateway.port) as late:
        running.chat({"hang": "before_headers"})
        fake.wait(lambda stats: stats["active"] == 1)
        late.chat()
        wait_until(lambda: waiting(gateway) == 1)
        fake.health(500)  # seen long before the queue's time is over
        answer = late.answer()
        assert (answer.status, answer.error["code"]) == (503, "no_ready_replica")
        assert "HTTP 500" in answer.error["message"]


def test_a_slot_comes_back_however_its_request_ended(narrow: GatewayHandle, fake: FakeHandle) -> None:
    ends: list[dict[str, Any]] = [
        {"die": {"at": "before_headers"}},
        {"die": {"at": 2, "how": "reset"}},
        {"error": {"status": 500}},
        {"error": {"status": 400}},
        {"error_event": {"after_chunks": 1}},
        {"tokens": 0},
    ]
    for end in ends:
        for stream in (False, True):
            ask(narrow, end, stream=stream)
            wait_until(lambda: in_flight(narrow) == 0)
    assert ask(narrow).status == 200
    del fake


# ---- logs that cannot be written ----


def test_a_full_disk_under_the_access_log_costs_lines_not_requests(fakes: Fakes, fake: FakeHandle) -> None:
    del fake
    with start_gateway(config(fakes[0].url, telemetry={"access_log_path": "/dev/full"})) as gateway:
        assert [ask(gateway, stream=stream).status for stream in (False, True) * 5] == [200] * 10
        wait_until(lambda: gateway.metric("penstock_log_lines_lost_total") == 10)


def test_a_closed_stdout_costs_lines_not_requests(fakes: Fakes, fake: FakeHandle) -> None:
    del fake
    read, write = os.pipe()
    with start_gateway(config(fakes[0].url), stdout=write) as gateway:
        os.close(read)
        os.close(write)
        assert [ask(gateway).status for _ in range(5)] == [200] * 5
        wait_until(lambda: gateway.metric("penstock_log_lines_lost_total") == 5)


def test_a_gateway_started_without_stdout_serves(fakes: Fakes, tmp_path: Path) -> None:
    file, log = tmp_path / "gateway.yaml", tmp_path / "log"
    file.write_text(json.dumps(config(fakes[0].url)))
    command = ["sh", "-c", 'exec "$0" -m gateway serve --config "$1" >&- 2>"$2"', sys.executable, str(file), str(log)]
    process = subprocess.Popen(command)
    try:
        wait_until(lambda: LISTENING in (log.read_text() if log.exists() else ""))
        port = int(log.read_text().partition(LISTENING)[2].split()[0].rpartition(":")[2])
        gateway = GatewayHandle(process, f"http://127.0.0.1:{port}", log).wait_ready()
        assert ask(gateway).status == 200
        wait_until(lambda: gateway.metric("penstock_log_lines_lost_total") == 1)
    finally:
        process.kill()
        process.wait()


def test_an_access_log_that_cannot_be_opened_is_said_in_one_line(fakes: Fakes) -> None:
    with pytest.raises(RuntimeError, match="access_log_path") as caught:
        start_gateway(config(fakes[0].url, telemetry={"access_log_path": "/nowhere/at/all.log"}))
    assert "Traceback" not in str(caught.value)


# ---- faults of our own ----


class Crashing(OpenAIHTTP):
    """A plugged-in backend with a bug."""

    async def complete(self, replica: Replica, call: Call) -> Reply:
        raise ZeroDivisionError


async def test_a_crash_is_counted_as_one_and_gives_its_slot_back() -> None:
    metrics = Metrics()
    replica = Replica("r0", "http://127.0.0.1:9", "m", 1, state=ReplicaState.READY)
    deployment = Deployment(
        "main", "m", Crashing(Patience()), LeastRequest(), [replica], metrics.new_series("m", "main"), ready=[replica]
    )
    service = Service(
        Router({"m": Model("m", [deployment], 0)}), {}, Telemetry(metrics, None), max_attempts=2, send_timeout_s=1
    )
    call = Call(Endpoint.CHAT, "m", b"{}", {}, stream=False, wants_usage=False, request_id="x", received_s=0.0)
    with pytest.raises(ZeroDivisionError):
        await service.serve(call, Nobody())
    assert deployment.series.requests == {(Endpoint.CHAT, "internal_error"): 1}
    assert (replica.in_flight, deployment.series.in_flight) == (0, 0)


class Nobody:
    """A client that must not be told anything: the door does that for what nobody foresaw."""

    started = paused = False

    def reply(self, reply: Reply) -> None:
        raise AssertionError

    def open_stream(self, first: bytes) -> None:
        raise AssertionError

    def send(self, data: bytes) -> None:
        raise AssertionError

    def close_stream(self, last: bytes = b"") -> None:
        raise AssertionError

    def fail(self, error: PenstockError) -> None:
        raise AssertionError

    async def drained(self) -> None:
        raise AssertionError
