"""Stopping: what runs is finished, what waits for more is closed, what is new is refused, and the exit code is 0."""

import contextlib
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from fakes import FakeHandle
from gateways import GatewayHandle, config, start_gateway
from peers import Answer, Peer, chat_request, get

LARGE = {"tokens": 3000, "token_bytes": 10_000}
"""More than sockets hold: streamed, it runs until its client reads."""
LARGE_BYTES = 30_000_000


@pytest.fixture
def own(fake: FakeHandle) -> Iterator[GatewayHandle]:
    """A gateway to stop."""
    with start_gateway(config(fake.url)) as handle:
        yield handle


@pytest.fixture
def peers(own: GatewayHandle) -> Iterator[list[Peer]]:
    """Four clients of it."""
    with ExitStack() as stack:
        yield [stack.enter_context(Peer(own.port, receive_bytes=65_536)) for _ in range(4)]


def exits(gateway: GatewayHandle) -> int:
    return gateway.process.wait(60)


def drain(gateway: GatewayHandle, sig: int = signal.SIGTERM) -> None:
    """Returns when it has begun: nobody new is let in."""
    gateway.process.send_signal(sig)
    end_s = time.monotonic() + 60
    with contextlib.suppress(ConnectionError):
        while time.monotonic() < end_s:
            Peer(gateway.port).close()
        raise AssertionError("it still takes connections")


def is_large(answer: Answer) -> bool:
    """Whether it is LARGE, streamed, to its last byte."""
    return (answer.is_whole, answer.events[-1], len(answer.text) >= LARGE_BYTES) == (True, "[DONE]", True)


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_what_runs_is_finished_and_the_rest_is_closed(
    own: GatewayHandle, peers: list[Peer], fake: FakeHandle, sig: int
) -> None:
    idle, silent, stream, plain = peers
    assert idle.send(get("/health")).answer().status == 200
    plain.chat({"ttft_s": 1, "tokens": ["late"]})
    stream.chat(LARGE, stream=True).wait_for(b'"content"')
    fake.wait(lambda stats: stats["active"] == 2)
    drain(own, sig)
    assert (idle.ending(), silent.ending()) == ("closed", "closed")
    assert plain.answer().text == "late"
    assert is_large(stream.answer())
    assert (stream.ending(), plain.ending()) == ("closed", "closed")
    assert exits(own) == 0
    assert fake.stats()["aborted"] == 0
    assert [line["outcome"] for line in own.access_lines()] == ["ok", "ok"]
    assert "Traceback" not in own.log()


def test_an_idle_gateway_stops_at_once(own: GatewayHandle) -> None:
    own.process.terminate()
    assert exits(own) == 0
    assert "Traceback" not in own.log()


def test_a_request_in_the_door_is_refused_with_a_reason(own: GatewayHandle) -> None:
    """Its head came before the signal, its body after: a retry elsewhere is the client's best chance."""
    with Peer(own.port, receive_bytes=65_536) as running, Peer(own.port) as late:
        running.chat(LARGE, stream=True).wait_for(b'"content"')
        request = chat_request()
        late.send(request[:-5])
        assert own.get("/health")[0] == 200  # so the head has been read
        drain(own)
        answer = late.send(request[-5:]).answer()
        assert (answer.status, answer.error["code"]) == (503, "draining")
        assert answer.headers["retry-after"]
        assert answer.headers["connection"] == "close"
        assert late.ending() == "closed"
        assert is_large(running.answer())
    assert exits(own) == 0


def test_pipelined_requests_that_wait_are_refused_in_their_turn(own: GatewayHandle, fake: FakeHandle) -> None:
    with Peer(own.port, receive_bytes=65_536) as peer:
        peer.send(chat_request(LARGE, stream=True) + chat_request()).wait_for(b'"content"')
        drain(own)
        assert is_large(peer.answer())
        assert peer.answer().error["code"] == "draining"
        assert peer.ending() == "closed"
    assert exits(own) == 0
    assert fake.stats()["requests"] == 2  # its first token, and the one that ran


def test_a_second_sigterm_is_patient_and_a_second_sigint_is_not(own: GatewayHandle, fake: FakeHandle) -> None:
    with Peer(own.port) as peer:
        peer.chat({"hang": 2}, stream=True).wait_for(b'"content"')
        own.process.terminate()
        time.sleep(0.3)
        own.process.terminate()
        time.sleep(0.3)
        assert own.process.poll() is None
        own.process.send_signal(signal.SIGINT)
        assert exits(own) == 0
        answer = peer.answer()
        assert answer.error["code"] == "draining"
        assert answer.is_whole
    fake.wait(lambda stats: stats["active"] == 0)
    assert "Traceback" not in own.log()


def test_streams_that_outlast_the_drain_are_cut_with_an_error_event(fake: FakeHandle) -> None:
    settings = config(fake.url, server={"port": 0, "drain_timeout_s": 1})
    with start_gateway(settings) as gateway, Peer(gateway.port) as stream, Peer(gateway.port) as plain:
        stream.chat({"hang": 2}, stream=True).wait_for(b'"content"')
        plain.chat({"hang": "before_headers"})
        fake.wait(lambda stats: stats["active"] == 2)
        gateway.process.terminate()
        cut, refused = stream.answer(), plain.answer()
        assert (cut.events[-1], cut.error["code"], cut.is_whole) == ("[DONE]", "draining", True)
        assert (refused.status, refused.error["code"]) == (503, "draining")
        assert exits(gateway) == 0
        fake.wait(lambda stats: stats["aborted"] == 2)
        assert sorted(line["outcome"] for line in gateway.access_lines()) == ["client_closed"] * 2
        assert "Traceback" not in gateway.log()


def test_a_client_that_does_not_read_holds_nobody_up_beyond_the_drain(fake: FakeHandle) -> None:
    settings = config(fake.url, server={"port": 0, "drain_timeout_s": 1})
    with start_gateway(settings) as gateway, Peer(gateway.port, receive_bytes=4096) as peer:
        peer.chat({"flood": True, "token_bytes": 1000}, stream=True)
        fake.wait(lambda stats: stats["bytes_sent"] > 1_000_000)
        gateway.process.terminate()
        assert exits(gateway) == 0
        fake.wait(lambda stats: stats["aborted"] == 1)


def test_ready_says_draining_while_health_says_alive(own: GatewayHandle) -> None:
    """Over a connection that is busy: new ones are refused, so that a balancer sees it either way."""
    with Peer(own.port, receive_bytes=65_536) as peer:
        peer.send(chat_request(LARGE, stream=True) + get("/ready")).wait_for(b'"content"')
        drain(own)
        assert is_large(peer.answer())
        answer = peer.answer()
        assert (answer.status, answer.json["status"]) == (503, "draining")
    assert exits(own) == 0
