"""What may come in by the socket: bytes that are not HTTP, or too many, too slow, in an odd order, or ambiguous.

Every claim ends in an answer in OpenAI's shape or a clean end, and the next request works.
"""

import gzip
import json
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes import FakeHandle
from gateways import KEY, KEY_SHA256, GatewayHandle, config, start_gateway
from peers import CHAT, Answer, Peer, chat_body, chat_request, get, post

OK = json.dumps(chat_body()).encode()


@pytest.fixture(scope="module")
def hasty(fakes: tuple[FakeHandle, FakeHandle]) -> Iterator[GatewayHandle]:
    """A gateway that waits for nobody."""
    server = {"port": 0, "receive_timeout_s": 1, "keep_alive_s": 1, "send_timeout_s": 1}
    with start_gateway(config(fakes[0].url, server=server)) as handle:
        yield handle


@pytest.fixture(scope="module")
def strict(fakes: tuple[FakeHandle, FakeHandle]) -> Iterator[GatewayHandle]:
    """A gateway that takes 64 KiB of body, and wants a key."""
    server = {"port": 0, "body_limit_bytes": 65_536}
    keys = {"keys": {"alice": {"sha256": KEY_SHA256}}}
    with start_gateway(config(fakes[0].url, server=server, auth=keys)) as handle:
        yield handle


@pytest.fixture(autouse=True)
def the_next_request_works(gateway: GatewayHandle, fake: FakeHandle) -> Iterator[None]:
    yield
    with Peer(gateway.port) as peer:
        assert peer.chat().answer().status == 200


def ask(gateway: GatewayHandle, data: bytes) -> Answer:
    with Peer(gateway.port) as peer:
        return peer.send(data).answer()


def refused(gateway: GatewayHandle, data: bytes) -> Answer:
    """The answer to `data`, after which the connection must end cleanly although not all of it was read."""
    with Peer(gateway.port) as peer:
        answer = peer.send(data).answer()
        assert answer.headers["connection"] == "close"
        assert answer.headers["x-request-id"]
        assert answer.error["type"] == "invalid_request_error"
        assert peer.ending() == "closed"
        return answer


# ---- what is not HTTP ----


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # TLS
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x00" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"FROB /health HTTP/1.1\r\n\r\n",
        b"get /health HTTP/1.1\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        b"GET /caf\xc3\xa9 HTTP/1.1\r\nhost: t\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: \x00\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost : t\r\n\r\n",
        b"GET /health HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /health HTTP/1.1\r\nx: a\r\n folded\r\n\r\n",
        b"GET /health HTTP/1.1\nhost: t\n\n",
    ],
)
def test_what_is_not_http_gets_a_400(gateway: GatewayHandle, data: bytes) -> None:
    answer = refused(gateway, data)
    assert (answer.status, answer.error["code"]) == (400, "invalid_http")


@pytest.mark.parametrize(
    "framing",
    [
        "content-length: 5\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 5",
        "content-length: 5\r\ncontent-length: 6",
        "content-length: 5\r\ncontent-length: 5",
        "content-length: 5, 5",
        "content-length: -5",
        "content-length: +5",
        "content-length: 0x5",
        "content-length: 99999999999999999999999",
        "transfer-encoding: xchunked",
        "transfer-encoding: chunked, identity",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity",
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/models"])
def test_a_body_of_two_possible_lengths_is_refused(gateway: GatewayHandle, framing: str, path: str) -> None:
    """Else a proxy in front could be made to see other requests than we do."""
    body = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: t\r\n\r\n"
    with Peer(gateway.port) as peer:
        answer = peer.send(f"POST {path} HTTP/1.1\r\nhost: t\r\n{framing}\r\n\r\n".encode() + body).answer()
        assert answer.status in (400, 405)  # 405: the framework's answer does not wait for the body
        assert answer.error
        assert peer.ending() == "closed"


@pytest.mark.parametrize("chunk", [b"zz\r\n", b"-1\r\n", b"2\nhi\r\n", b"ffffffffffffffffff\r\n", b"2\r\nhiX"])
def test_a_broken_chunk_is_refused(gateway: GatewayHandle, chunk: bytes) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    assert refused(gateway, head + chunk).status == 400


# ---- limits ----


def test_headers_just_under_the_limit_pass(gateway: GatewayHandle) -> None:
    assert ask(gateway, chat_request(headers=f"x-long: {'h' * 65_000}\r\n")).status == 200
    assert ask(gateway, chat_request(headers="".join(f"x-{i}: {'h' * 20}\r\n" for i in range(2000)))).status == 200
    assert ask(gateway, get("/health", headers=f"x-long: {'h' * 65_000}\r\n")).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        f"x-long: {'h' * 70_000}\r\n",
        f"x-long: {'h' * 2_000_000}",  # one line that never ends
        f"{'n' * 400_000}",  # a name that never ends
        "".join(f"x-{i}: h\r\n" for i in range(20_000)),
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/health"])
def test_larger_headers_get_a_431(gateway: GatewayHandle, headers: str, path: str) -> None:
    answer = refused(gateway, f"POST {path} HTTP/1.1\r\nhost: t\r\n{headers}".encode())
    assert (answer.status, answer.error["code"]) == (431, "headers_too_large")


def test_a_huge_url_gets_a_431(gateway: GatewayHandle) -> None:
    assert refused(gateway, get("/" + "u" * 300_000)).status == 431
    assert ask(gateway, get("/" + "u" * 60_000)).status == 404


def test_trailers_and_chunk_headers_count_as_headers(gateway: GatewayHandle) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    trailers = b"".join(b"x-%d: t\r\n" % number for number in range(20_000))
    assert refused(gateway, head + b"2\r\n{}\r\n0\r\n" + trailers).status == 431
    assert refused(gateway, head + b"1;" + b"e" * 300_000).status == 431
    assert refused(gateway, head + (b"1;" + b"e" * 2_000 + b"\r\n \r\n") * 200).status == 431


def test_a_body_that_is_announced_too_large_gets_a_413_at_once(gateway: GatewayHandle) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nhost: t\r\ncontent-length: {64 * 2**20}\r\n\r\n".encode()
    answer = refused(gateway, head)
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")


@pytest.mark.parametrize("is_chunked", [False, True])
def test_the_413_reaches_a_client_that_sends_on(gateway: GatewayHandle, is_chunked: bool) -> None:
    size = 64 * 2**20
    framing = "transfer-encoding: chunked" if is_chunked else f"content-length: {size}"
    with Peer(gateway.port) as peer:
        peer.send(f"POST {CHAT} HTTP/1.1\r\nhost: t\r\n{framing}\r\n\r\n".encode())
        piece = b'{"a": [' + b"[" * (2**20 - 7)
        if is_chunked:
            piece = b"%x\r\n%b\r\n" % (len(piece), piece)
        for _ in range(64):
            peer.send(piece)  # a reset would raise here
        assert peer.answer().error["code"] == "request_too_large"
        assert peer.ending() == "closed"


def test_the_limit_itself_is_allowed(strict: GatewayHandle) -> None:
    body = OK[:-1] + b" " * (65_536 - len(OK)) + b"}"
    headers = f"authorization: Bearer {KEY}\r\n"
    assert ask(strict, post(body, headers=headers)).status == 200
    assert ask(strict, post(body + b" ", headers=headers)).status == 413


# ---- forms of a request that are right ----


def test_bodies_may_come_in_chunks_and_in_tiny_writes(gateway: GatewayHandle) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in OK) + b"0\r\nx-trailer: fine\r\n\r\n"
    with Peer(gateway.port) as peer:
        assert peer.send(head + chunks).answer().status == 200
        for byte in post(OK):
            peer.send(bytes([byte]))
        assert peer.answer().status == 200


def test_a_large_body_reaches_the_engine_whole(gateway: GatewayHandle, fake: FakeHandle) -> None:
    body = json.dumps(chat_body() | {"user": "u" * 20_000_000}).encode()
    assert ask(gateway, post(body)).status == 200
    assert fake.stats()["last_requests"][-1]["bytes"] == len(body)


def test_100_continue_is_said_when_the_body_is_wanted(gateway: GatewayHandle) -> None:
    with Peer(gateway.port) as peer:
        peer.send(
            f"POST {CHAT} HTTP/1.1\r\nhost: t\r\nexpect: 100-continue\r\ncontent-length: {len(OK)}\r\n\r\n".encode()
        )
        assert peer.answer().status == 100
        assert peer.send(OK).answer().status == 200
        peer.send(
            f"POST {CHAT} HTTP/1.1\r\nhost: t\r\nexpect: 100-continue\r\ncontent-length: {2**40}\r\n\r\n".encode()
        )
        assert peer.answer().status == 413


def test_100_continue_waits_for_its_turn(gateway: GatewayHandle) -> None:
    late = f"POST {CHAT} HTTP/1.1\r\nhost: t\r\nexpect: 100-continue\r\ncontent-length: {len(OK)}\r\n\r\n".encode()
    with Peer(gateway.port) as peer:
        peer.send(chat_request({"ttft_s": 0.2}) + late)
        assert peer.answer().status == 200
        assert peer.answer().status == 100
        assert peer.send(OK).answer().status == 200


def test_http_1_0_gets_its_answer_and_the_end(gateway: GatewayHandle) -> None:
    stream = json.dumps(chat_body(stream=True)).encode()
    for body in (OK, stream):
        with Peer(gateway.port) as peer:
            answer = peer.send(post(body, version="1.0", headers="expect: 100-continue\r\n")).answer()
            assert answer.status == 200
            assert "transfer-encoding" not in answer.headers
            assert answer.headers["connection"] == "close"
            assert answer.text
            assert peer.ending() == "closed"
    assert answer.events[-1] == "[DONE]"


def test_connection_close_is_obeyed(gateway: GatewayHandle) -> None:
    for stream in (False, True):
        with Peer(gateway.port) as peer:
            answer = peer.chat(headers="connection: close\r\n", stream=stream).answer()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert peer.ending() == "closed"


@pytest.mark.parametrize(
    "target",
    [
        f"{CHAT}?api-version=2026-01-01",
        f"{CHAT}?",
        f"http://penstock.example{CHAT}",
        f"HTTP://u@penstock.example:80{CHAT}?a=b",
        "/v1/ch%61t/completions",
    ],
)
def test_a_hot_route_has_many_spellings(gateway: GatewayHandle, target: str) -> None:
    answer = ask(gateway, post(OK, target))
    assert (answer.status, bool(answer.text)) == (200, True)


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://penstock.example/health", 200),
        ("http://penstock.example/v1/models?x=1", 200),
        ("http://penstock.example", 404),
        ("/health?probe=1", 200),
        ("/%68ealth", 200),
        ("/v1/models/m%2Fslash", 404),
        ("//health", 404),
        ("/v1/chat/completions/", 404),
        ("/v1/../health", 404),
        ("*", 404),
        ("/%00", 404),
        ("/%ff", 404),
    ],
)
def test_other_targets_are_routed_or_not_found(gateway: GatewayHandle, target: str, status: int) -> None:
    answer = ask(gateway, get(target))
    assert answer.status == status
    assert answer.headers["x-request-id"]
    assert status == 200 or answer.error["type"] == "invalid_request_error"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
@pytest.mark.parametrize("path", [CHAT, "/health"])
def test_a_wrong_method_gets_a_405_and_the_right_one(gateway: GatewayHandle, method: str, path: str) -> None:
    if (path, method) == ("/health", "GET"):
        return
    with Peer(gateway.port) as peer:
        answer = peer.send(get(path, method=method)).answer(to=method)
        assert answer.status == 405
        assert answer.headers["allow"] == ("POST" if path == CHAT else "GET")
        assert method == "HEAD" or answer.error["code"] == "method_not_allowed"
        assert peer.send(get("/health")).answer().status == 200  # nothing was left on the connection


def test_options_for_all_and_connect_are_answered(gateway: GatewayHandle) -> None:
    assert ask(gateway, get("*", method="OPTIONS")).status == 404
    assert refused(gateway, get("example.org:443", method="CONNECT")).status == 405


@pytest.mark.parametrize("offer", ["h2c", "websocket", "TLS/1.2"])
def test_an_offer_to_upgrade_is_declined_and_the_request_answered(gateway: GatewayHandle, offer: str) -> None:
    """Java's HTTP client offers h2c with its first request, a POST with a body too."""
    headers = f"upgrade: {offer}\r\nconnection: Upgrade, HTTP2-Settings\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n"
    with Peer(gateway.port) as peer:
        assert peer.chat(headers=headers).answer().text
        chunked = f"POST {CHAT} HTTP/1.1\r\n{headers}transfer-encoding: chunked\r\n\r\n{len(OK):x}\r\n".encode()
        peer.send(chunked)
        assert peer.send(OK + b"\r\n0\r\n\r\n").answer().text
        peer.send(get("/health", headers=headers) + get("/v1/models", headers=headers) + chat_request(headers=headers))
        assert peer.answer().json == {"status": "ok"}
        assert peer.answer().json["object"] == "list"
        assert peer.answer().text


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "zstd", "GZIP"])
def test_a_compressed_body_is_refused_not_passed_on(gateway: GatewayHandle, fake: FakeHandle, encoding: str) -> None:
    answer = refused(gateway, post(gzip.compress(OK), headers=f"content-encoding: {encoding}\r\n"))
    assert (answer.status, answer.error["code"]) == (415, "unsupported_content_encoding")
    assert fake.stats()["requests"] == 0
    assert ask(gateway, post(OK, headers="content-encoding: identity\r\n")).status == 200


# ---- one connection, many requests ----


def test_a_connection_is_used_again_also_after_errors(gateway: GatewayHandle) -> None:
    with Peer(gateway.port) as peer:
        assert peer.chat().answer().status == 200
        assert peer.send(post(b"{")).answer().status == 400
        assert peer.chat(model="nobody").answer().status == 404
        assert peer.chat(stream=True).answer().events[-1] == "[DONE]"
        assert peer.send(get("/nowhere")).answer().status == 404
        assert peer.chat({"error": {"status": 500}}).answer().status == 500
        assert peer.chat({"error_event": {"after_chunks": 2}}, stream=True).answer().error["message"]
        assert peer.send(post(b"", "/health")).answer().status == 405
        assert peer.send(b"\r\n" + chat_request()).answer().status == 200


def test_pipelined_requests_are_answered_in_order(gateway: GatewayHandle) -> None:
    """Hot behind hot, cold behind hot, hot behind cold; the first ones take the longest."""
    slow = chat_request({"ttft_s": 0.2, "tokens": ["slow"]})
    stream = chat_request({"ttft_s": 0.1, "itl_s": 0.01, "tokens": ["s"] * 5}, stream=True)
    fast = chat_request({"tokens": ["fast"]})
    with Peer(gateway.port) as peer:
        peer.send(slow + fast + get("/health") + stream + get("/v1/models") + get("/nowhere") + fast)
        assert peer.answer().text == "slow"
        assert peer.answer().text == "fast"
        assert peer.answer().json == {"status": "ok"}
        assert peer.answer().text == "sssss"
        assert peer.answer().json["object"] == "list"
        assert peer.answer().status == 404
        assert peer.answer().text == "fast"


def test_hundreds_of_pipelined_requests_are_answered(gateway: GatewayHandle) -> None:
    with Peer(gateway.port) as peer:
        peer.send(chat_request({"tokens": 1}) * 300 + get("/health") * 100)
        assert [peer.answer().status for _ in range(400)] == [200] * 400


@pytest.mark.parametrize("first", [chat_request({"tokens": ["x"] * 5, "itl_s": 0.05}, stream=True), get("/health")])
@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (b"\x00garbage\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nx-long: " + b"h" * 100_000, 431),
        (post(b"", headers="content-encoding: gzip\r\n"), 415),
        (f"POST {CHAT} HTTP/1.1\r\nhost: t\r\ncontent-length: {2**40}\r\n\r\n".encode(), 413),
    ],
)
def test_a_bad_request_waits_for_the_answers_before_it(
    gateway: GatewayHandle, first: bytes, bad: bytes, status: int
) -> None:
    with Peer(gateway.port) as peer:
        peer.send(first + chat_request() + bad + chat_request())
        before, between = peer.answer(), peer.answer()
        assert before.is_whole
        assert (before.status, between.status) == (200, 200)
        answer = peer.answer()
        assert (answer.status, answer.headers["connection"]) == (status, "close")
        assert answer.error
        assert peer.ending() == "closed"


def test_a_client_that_leaves_with_a_request_in_waiting_aborts_the_running_one(
    gateway: GatewayHandle, fake: FakeHandle
) -> None:
    with Peer(gateway.port) as peer:
        peer.send(chat_request({"hang": 2}, stream=True) + chat_request())
        peer.wait_for(b"data: ")
    fake.wait(lambda stats: stats["aborted"] == 1)
    assert fake.stats()["requests"] == 1


def test_a_half_closed_client_has_left(gateway: GatewayHandle, fake: FakeHandle) -> None:
    """A FIN is how a client that goes looks, and most of those that send one are gone (as nginx sees it)."""
    with Peer(gateway.port) as peer:
        peer.chat({"hang": 2}, stream=True).wait_for(b"data: ")
        peer.sock.shutdown(socket.SHUT_WR)
        fake.wait(lambda stats: stats["aborted"] == 1)


# ---- time ----


PARTS = [
    b"G",
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\ncontent-length: 10\r\n\r\n{",
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n",
]


def test_a_request_that_does_not_end_gets_a_408(hasty: GatewayHandle) -> None:
    peers = [Peer(hasty.port).send(part) for part in PARTS]
    for peer in peers:
        with peer:
            answer = peer.answer()
            assert (answer.status, answer.error["code"]) == (408, "request_timeout")
            assert peer.ending() == "closed"


def test_a_dripping_request_gets_a_408_too(hasty: GatewayHandle) -> None:
    with Peer(hasty.port) as peer:
        peer.send(b"GET /health HTTP/1.1\r\nx-slow: ")
        while not select.select([peer.sock], [], [], 0.05)[0]:
            peer.send(b".")
        assert peer.answer().status == 408


def test_connections_that_say_nothing_are_closed(hasty: GatewayHandle) -> None:
    with Peer(hasty.port) as silent, Peer(hasty.port) as idle, Peer(hasty.port) as early:
        assert idle.send(get("/health")).answer().status == 200
        early.send(b"POST /health HTTP/1.1\r\ncontent-length: 4\r\n\r\n")
        assert early.answer().status == 405  # before its body is here
        early.send(b"body")
        assert [peer.ending() for peer in (silent, idle, early)] == ["closed"] * 3


def test_a_pipelined_request_may_take_as_long_as_the_one_before_it(hasty: GatewayHandle) -> None:
    """Whose part that is still to come we may not even be reading."""
    late = post(OK)
    with Peer(hasty.port) as peer:
        peer.send(chat_request({"itl_s": 0.3, "tokens": ["x"] * 8}, stream=True) + late[:50])
        assert peer.answer().text == "x" * 8
        assert peer.send(late[50:]).answer().status == 200


def test_a_client_that_never_reads_a_plain_answer_is_cut(hasty: GatewayHandle, fake: FakeHandle) -> None:
    fake.script({"token_bytes": 1000, "tokens": 20_000})
    fds = open_connections(hasty)
    with Peer(hasty.port, receive_bytes=4096) as peer:
        peer.chat()
        fake.wait(lambda stats: stats["completed"] == 1)
        wait_until(lambda: open_connections(hasty) <= fds)


def test_who_pipelines_without_reading_fills_no_memory(hasty: GatewayHandle) -> None:
    """Answers are small, but requests are smaller: no next one starts while the client does not read."""
    wrong = post(b"{}")
    before = hasty.metric("penstock_requests_total", outcome="client_error")
    with Peer(hasty.port, receive_bytes=4096) as peer:
        peer.sock.settimeout(1)
        sent = 0
        try:
            while sent < 100_000_000:
                sent += peer.sock.send(wrong * 500)
        except (TimeoutError, ConnectionError):
            pass
        assert sent < 50_000_000
        asked = sent / len(wrong)
        answered = hasty.metric("penstock_requests_total", outcome="client_error") - before
        assert 0 < answered < asked


def open_connections(gateway: GatewayHandle) -> int:
    return len(list(Path(f"/proc/{gateway.process.pid}/fd").iterdir()))


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "it never came true"
        time.sleep(0.05)


# ---- JSON ----


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"42",
        b"{}{}",
        OK + b" x",
        b"\xef\xbb\xbf" + OK,
        OK.decode().encode("utf-16"),
        OK[:-1] + b',"temperature":NaN}',
        OK[:-1] + b',"temperature":Infinity}',
        OK[:-1] + b',"user":"\xff\xfe"}',
        OK[:-1] + b',"user":"\xed\xa0\x80"}',  # a surrogate in UTF-8
        OK[:-1] + b',"user":"\\ud800"}',
        OK[:-1] + b',"\\udfff":1}',
        OK[:-1] + b',"user":"\x00"}',
        OK[:-1] + b",}",
        OK.replace(b'"', b"'"),
        gzip.compress(OK),
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/embeddings"])
def test_a_body_that_is_not_a_json_object_gets_a_400(
    gateway: GatewayHandle, fake: FakeHandle, body: bytes, path: str
) -> None:
    answer = ask(gateway, post(body, path))
    assert answer.status == 400
    assert answer.error["code"] in ("invalid_json", "invalid_utf8")
    assert fake.stats()["requests"] == 0


def test_deep_json_gets_a_400(gateway: GatewayHandle) -> None:
    for opening, closing in (b"[]", b'{"a":'), (b"[", b"]"):
        deep = opening[:1] * 200_000 if closing == b"]" else b'{"a":' * 200_000
        answer = ask(gateway, post(OK[:-1] + b',"documents":' + deep))
        assert (answer.status, answer.error["code"]) == (400, "json_too_deep")
    nested = b"[" * 200_000 + b"]" * 200_000
    assert ask(gateway, post(b'{"messages":' + nested + b"}")).error["code"] == "json_too_deep"
    fine = OK[:-1] + b',"documents":' + b"[" * 100 + b"]" * 100 + b"}"
    assert ask(gateway, post(fine)).status == 200
    brackets_in_text = json.dumps(chat_body() | {"user": '[{\\"' * 10_000}).encode()
    assert ask(gateway, post(brackets_in_text)).status == 200


@pytest.mark.parametrize(
    "tail",
    [
        b'"' + b'\\"' * 1_000_000,  # a string without an end, each quote of which may be a start
        b"[]," * 1_000_000,
        b'"",' * 1_000_000,
        b'"' + b"\\" * 1_000_001,
    ],
)
def test_no_json_holds_up_the_others(gateway: GatewayHandle, tail: bytes) -> None:
    """It would take hours where the scan is not linear."""
    assert ask(gateway, post(b'{"messages":[' + b"[]," * 200 + tail)).status == 400


def test_the_last_of_two_equal_keys_counts_as_it_does_for_the_engine(gateway: GatewayHandle) -> None:
    assert ask(gateway, post(b'{"model":"nobody",' + OK[1:])).status == 200
    assert ask(gateway, post(OK[:-1] + b',"model":"nobody"}')).status == 404
    assert ask(gateway, post(OK[:-1] + b',"stream":true,"stream":false}')).text


def test_long_words_of_a_client_come_back_short(gateway: GatewayHandle) -> None:
    for body in (b'{"' + b"k" * 1_000_000 + b'": 1}', json.dumps(chat_body(model="m" * 500)).encode()):
        answer = ask(gateway, post(body))
        assert answer.error["code"] in ("unknown_parameter", "model_not_found")
        assert len(answer.body) < 1_000


WRONG: dict[str, list[Any]] = {
    "model": [None, 1, "", ["m"], {}, "m" * 513],
    "messages": [None, "hi", [], ["hi"], [None], {}],
    "stream": ["true", 1, 0, []],
    "stream_options": [True, [], "x", {"include_usage": 1}, {"unknown": True}, {"include_usage": True}],
    "max_tokens": [0, -1, 1.5, "1", True, []],
    "max_completion_tokens": [0, -1, 1.5, "1"],
    "temperature": [-0.1, 2.1, "1", True, []],
    "top_p": [0, -1, 1.1, "1"],
    "frequency_penalty": [-2.1, 2.1, "0"],
    "presence_penalty": [-2.1, 2.1, {}],
    "n": [0, -1, 129, 1.5, "1"],
    "stop": [1, ["a", 1], {}, ["x"] * 17],
    "seed": ["1", 1.5, True],
    "logit_bias": [[], {"1": 101}, {"1": "x"}, "x"],
    "user": [1, [], {}],
    "logprobs": [1, "true"],
    "top_logprobs": [-1, 21, "1", 5],  # 5: without logprobs
    "response_format": ["json", {}, {"type": 1}, {"type": "json_schema", "json_schema": {"name": 1}}],
    "tools": ["x", {}, [1], [{"type": "function", "function": {}}], [{"type": "function", "function": {"name": ""}}]],
    "tool_choice": [1, []],
    "parallel_tool_calls": ["yes", 1],
    "reasoning_effort": [1, []],
    "top_k": [-2, "1", 1.5],
    "min_p": [-0.1, 1.1],
    "repetition_penalty": [0, -1, "1"],
    "min_tokens": [-1, "1"],
    "stop_token_ids": [1, ["x"], [1.5]],
    "structured_outputs": ["x", []],
    "chat_template_kwargs": ["x", []],
    "guided_json": [{}],  # gone from vLLM, where it is silently ignored
    "frobnicate": [1],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_refused_by_the_name_of_its_field(gateway: GatewayHandle, fake: FakeHandle, name: str) -> None:
    with Peer(gateway.port) as peer:
        for value in WRONG[name]:
            answer = peer.send(post(json.dumps(chat_body() | {name: value}).encode())).answer()
            assert answer.status == 400, value
            assert answer.error["param"] == name, value
    assert fake.stats()["requests"] == 0


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"model": "m"}, "prompt"),
        ("/v1/completions", {"model": "m", "prompt": None}, "prompt"),
        ("/v1/completions", {"model": "m", "prompt": []}, "prompt"),
        ("/v1/completions", {"model": "m", "prompt": 1}, "prompt"),
        ("/v1/completions", {"model": "m", "prompt": "p", "max_tokens": -1}, "max_tokens"),
        ("/v1/completions", {"model": "m", "prompt": "p", "logprobs": 6}, "logprobs"),
        ("/v1/completions", {"model": "m", "prompt": "p", "echo": "yes"}, "echo"),
        ("/v1/completions", {"model": "m", "prompt": "p", "messages": []}, "messages"),
        ("/v1/embeddings", {"model": "m"}, "input"),
        ("/v1/embeddings", {"model": "m", "input": []}, "input"),
        ("/v1/embeddings", {"model": "m", "input": "i", "encoding_format": "int8"}, "encoding_format"),
        ("/v1/embeddings", {"model": "m", "input": "i", "dimensions": 0}, "dimensions"),
        ("/v1/embeddings", {"model": "m", "input": "i", "stream": True}, "stream"),
        (CHAT, {"messages": [{}]}, "model"),
        (CHAT, {"model": "m"}, "messages"),
    ],
)
def test_a_missing_or_wrong_field_is_named(
    gateway: GatewayHandle, path: str, body: dict[str, object], param: str
) -> None:
    answer = ask(gateway, post(json.dumps(body).encode(), path))
    assert (answer.status, answer.error["param"]) == (400, param)


# ---- keys ----


@pytest.mark.parametrize(
    "header",
    [
        "",
        "authorization: \r\n",
        "authorization: Bearer\r\n",
        "authorization: Bearer \r\n",
        "authorization: Bearer wrong\r\n",
        f"authorization: Bearer {KEY}x\r\n",
        f"authorization: Bearer {KEY} x\r\n",
        f"authorization: Basic {KEY}\r\n",
        f"authorization: {KEY}\r\n",
        f"authorization: Bearer{KEY}\r\n",
        f"x-api-key: {KEY}\r\n",
        f"authorization: Bearer {KEY_SHA256}\r\n",
        "authorization: Bearer \xff\xfe\r\n",
        f"authorization: Bearer {'k' * 50_000}\r\n",
    ],
)
@pytest.mark.parametrize("request_of", [lambda h: post(OK, headers=h), lambda h: get("/v1/models", headers=h),
                                        lambda h: get("/v1/models/m", headers=h)])  # fmt: skip
def test_without_a_known_key_there_is_a_401(
    strict: GatewayHandle, header: str, request_of: Callable[[str], bytes]
) -> None:
    answer = ask(strict, request_of(header))
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_a_known_key_is_let_in_whatever_the_case_of_the_scheme(strict: GatewayHandle, scheme: str) -> None:
    header = f"authorization: {scheme} {KEY}\r\n"
    assert ask(strict, post(OK, headers=header)).status == 200
    assert ask(strict, get("/v1/models", headers=header)).status == 200


def test_health_and_metrics_are_open(strict: GatewayHandle) -> None:
    for path in ("/health", "/ready", "/metrics"):
        assert ask(strict, get(path)).status == 200


def test_the_access_log_names_the_key_and_tells_no_secret(strict: GatewayHandle) -> None:
    secret = "my-secret-prompt"
    body = json.dumps(chat_body() | {"user": secret, "messages": [{"role": "user", "content": secret}]}).encode()
    headers = f"authorization: Bearer {KEY}\r\nx-private: {secret}\r\nx-request-id: who-was-it\r\n"
    answer = ask(strict, post(body, headers=headers))
    assert answer.headers["x-request-id"] == "who-was-it"
    wait_until(lambda: any(line["request_id"] == "who-was-it" for line in strict.access_lines()))
    line = next(line for line in strict.access_lines() if line["request_id"] == "who-was-it")
    assert line["key"] == "alice"
    assert KEY not in strict.log()
    assert secret not in strict.log()


@pytest.mark.parametrize("given", ["x" * 129, "a b", "<script>", "é", "a\tb"])
def test_a_request_id_that_is_not_sane_is_replaced(gateway: GatewayHandle, given: str) -> None:
    for request in (
        chat_request(headers=f"x-request-id: {given}\r\n"),
        get("/health", headers=f"x-request-id: {given}\r\n"),
    ):
        found = ask(gateway, request).headers["x-request-id"]
        assert len(found) == 32
        assert found != given


def test_an_open_gateway_for_everybody_does_not_start(fakes: tuple[FakeHandle, FakeHandle]) -> None:
    with pytest.raises(RuntimeError, match=r"auth.keys is empty"):
        start_gateway(config(fakes[0].url, server={"host": "0.0.0.0", "port": 0}))
    keys = {"keys": {"alice": {"sha256": KEY_SHA256}}}
    with start_gateway(config(fakes[0].url, server={"host": "0.0.0.0", "port": 0}, auth=keys), ready=False) as handle:
        assert handle.port
