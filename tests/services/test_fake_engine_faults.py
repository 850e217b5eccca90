"""Every scripted fault really happens on the wire: seen from bare sockets, byte by byte."""

import json
import time
from typing import Any

import httpx
import openai
import pytest

from fakes import FakeHandle, start_fake
from wire import CHAT, chat, dechunk, dial, events, exchange, receive, send

QUIET_S = 0.3
"""Long enough to see that nothing comes; no claim rests on something being faster."""


# ---- errors ----


@pytest.mark.parametrize(
    ("shape", "body"),
    [
        ("openai", {"error": {"message": "no", "type": "rate_limit_exceeded", "param": None, "code": None}}),
        ("vllm", {"error": {"message": "no", "type": "RateLimitError", "param": None, "code": 429}}),
        ("sglang", {"object": "error", "message": "no", "type": "RateLimitError", "param": None, "code": 429}),
        ("string", {"error": "no"}),
        ("lightllm", {"message": "no"}),
        ("fastapi", {"detail": [{"type": "value_error", "loc": ["body", "model"], "msg": "no", "input": None}]}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_error_before_the_answer_has_the_scripted_shape(
    fake: FakeHandle, shape: str, body: Any, stream: bool
) -> None:
    error = {"status": 429, "message": "no", "shape": shape, "retry_after": 7}
    answer = httpx.post(fake.url + CHAT, json=chat({"error": error}, stream=stream))
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
    assert answer.json() == body
    assert fake.stats()["failed"] == 1


def test_an_error_can_be_text_or_nothing_at_all(fake: FakeHandle) -> None:
    text = httpx.post(fake.url + CHAT, json=chat({"error": {"shape": "text", "message": "<html>"}}))
    assert (text.status_code, text.text, text.headers["content-type"]) == (500, "<html>", "text/plain; charset=utf-8")
    assert httpx.post(fake.url + CHAT, json=chat({"error": {"shape": "empty", "status": 417}})).content == b""


def test_an_error_event_ends_a_stream_in_the_middle(fake: FakeHandle) -> None:
    script = {"error_event": {"after_chunks": 2, "message": "lost", "code": "gone"}}
    role, one, two, error, done = events(exchange(fake.port, chat(script, stream=True)).body)
    assert [c["choices"][0]["delta"].get("content") for c in (role, one, two)] == ["", "Water", " runs"]
    assert error["error"] == {"message": "lost", "type": "InternalServerError", "param": None, "code": "gone"}
    assert done == "[DONE]"
    script["error_event"]["done"] = False
    assert "[DONE]" not in events(exchange(fake.port, chat(script, stream=True)).body)
    whole = exchange(fake.port, chat(script))
    assert (whole.status, json.loads(whole.body)["error"]["message"]) == (500, "lost")


def test_the_openai_client_raises_on_the_error_event(fake: FakeHandle) -> None:
    with openai.OpenAI(base_url=f"{fake.url}/v1", api_key="none", max_retries=0) as client:
        body = chat({"error_event": {"after_chunks": 1, "message": "lost"}}, stream=True)
        with client.chat.completions.create(**body) as stream, pytest.raises(openai.APIError, match="lost"):
            list(stream)


def test_an_early_error_comes_while_the_body_is_still_on_its_way(fake: FakeHandle) -> None:
    fake.script({"error": {"status": 413, "before_body": True}, "times": 1})
    with dial(fake.port) as sock:
        sock.sendall(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\nsome".encode())
        answer = receive(sock)
        assert (answer.status, answer.ending) == (413, "closed")
        sock.sendall(b"more")
    assert fake.stats()["failed"] == 1


# ---- hanging ----


@pytest.mark.parametrize("stream", [False, True])
def test_a_hang_before_the_headers_sends_nothing(fake: FakeHandle, stream: bool) -> None:
    with dial(fake.port) as sock:
        send(sock, chat({"hang": "before_headers"}, stream=stream))
        assert receive(sock, for_s=QUIET_S) == (b"", "open")
    assert fake.wait(lambda stats: stats["active"] == 0)["aborted"] == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_hang_after_the_headers_sends_only_them(fake: FakeHandle, stream: bool) -> None:
    with dial(fake.port) as sock:
        send(sock, chat({"hang": "after_headers"}, stream=stream))
        answer = receive(sock, quiet_s=QUIET_S)
    assert (answer.status, answer.body, answer.ending) == (200, b"", "open")


def test_a_hang_in_the_middle_sends_so_many_chunks(fake: FakeHandle) -> None:
    with dial(fake.port) as sock:
        send(sock, chat({"hang": 3}, stream=True))
        answer = receive(sock, quiet_s=QUIET_S)
    assert answer.ending == "open"
    assert [c["choices"][0]["delta"].get("content") for c in events(answer.body)] == ["", "Water", " runs", " through"]
    assert fake.wait(lambda stats: stats["active"] == 0)["generated_tokens"] == 3


def test_a_hanging_stream_may_still_send_comments(fake: FakeHandle) -> None:
    with dial(fake.port) as sock:
        send(sock, chat({"hang": 1, "keep_alive_s": 0.02}, stream=True))
        answer = receive(sock, until=b": keep-alive")
    blocks = events(answer.body)
    assert blocks[1]["choices"][0]["delta"]["content"] == "Water"
    assert ": keep-alive" in blocks[2:]


def test_comments_come_before_a_late_first_token(fake: FakeHandle) -> None:
    blocks = events(exchange(fake.port, chat({"ttft_s": 0.1, "keep_alive_s": 0.03}, stream=True)).body)
    assert blocks[:3] == [": keep-alive"] * 3
    assert blocks[3]["choices"][0]["delta"]["role"] == "assistant"


# ---- dying ----


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_death_before_the_first_byte(fake: FakeHandle, how: str, stream: bool) -> None:
    answer = exchange(fake.port, chat({"die": {"how": how}}, stream=stream))
    assert answer == (b"", "closed" if how == "close" else "reset")
    assert (fake.stats()["died"], fake.stats()["aborted"]) == (1, 0)


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_death_after_the_headers(fake: FakeHandle, how: str, stream: bool) -> None:
    answer = exchange(fake.port, chat({"die": {"at": "after_headers", "how": how}}, stream=stream))
    assert (answer.status, answer.body, answer.ending) == (200, b"", "closed" if how == "close" else "reset")


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_death_in_the_middle_of_a_stream(fake: FakeHandle, how: str) -> None:
    answer = exchange(fake.port, chat({"die": {"at": 2, "how": how}}, stream=True))
    content, is_complete = dechunk(answer.body)
    assert content.count(b"data: ") == 3
    assert not is_complete
    assert answer.ending == ("closed" if how == "close" else "reset")


def test_a_death_in_the_middle_of_an_event(fake: FakeHandle) -> None:
    answer = exchange(fake.port, chat({"die": {"at": 1, "half_event": True}}, stream=True))
    content, is_complete = dechunk(answer.body)
    *whole, half = content.split(b"\n\n")
    assert len(whole) == 2
    assert half.startswith(b'data: {"id"')
    assert not half.endswith(b"}")
    assert not is_complete


def test_a_death_in_the_middle_of_a_whole_body(fake: FakeHandle) -> None:
    answer = exchange(fake.port, chat({"die": {"at": 1, "half_event": True}}))
    length = int(answer.head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    assert len(answer.body) == length // 2


def test_the_whole_process_can_exit() -> None:
    with start_fake() as fake:
        answer = exchange(fake.port, chat({"die": {"at": 1, "how": "exit"}}, stream=True))
        assert b"Water" in answer.data
        assert fake.process.wait(60) == 1
    with start_fake(port=fake.port) as again:
        httpx.post(f"{again.url}/_fake/exit")
        assert again.process.wait(60) == 1


# ---- reading ----


def test_a_slow_reader_takes_its_time_for_the_body(fake: FakeHandle) -> None:
    fake.script({"read_bytes_per_s": 2000, "times": 1})
    started_s = time.monotonic()
    assert exchange(fake.port, chat(text="w " * 300)).status == 200
    assert time.monotonic() - started_s >= 0.25


def test_a_reader_that_never_reads_fills_the_senders_buffers(fake: FakeHandle) -> None:
    fake.script({"read_bytes_per_s": 0, "times": 1})
    with dial(fake.port) as sock:
        sock.settimeout(QUIET_S)
        with pytest.raises(TimeoutError):
            send(sock, b" " * 64 * 2**20)
        assert receive(sock, for_s=QUIET_S).data == b""
    assert exchange(fake.port, chat()).status == 200


# ---- writing ----


def test_writes_can_be_split_anywhere_even_inside_a_character(fake: FakeHandle) -> None:
    script = {"tokens": ["水🌊" * 10], "write_bytes": 1, "write_pause_s": 0.001, "role_chunk": "none"}
    pieces: list[bytes] = []
    with dial(fake.port) as sock:
        send(sock, chat(script, stream=True))
        while not b"".join(pieces).endswith(b"0\r\n\r\n"):
            pieces.append(sock.recv(65_536))
    content = events(b"".join(pieces).partition(b"\r\n\r\n")[2])[0]
    assert content["choices"][0]["delta"]["content"] == "水🌊" * 10
    assert any(0x80 <= piece[0] < 0xC0 for piece in pieces), "no piece began inside a UTF-8 sequence"


@pytest.mark.parametrize(("newline", "end"), [("lf", b"\n\n"), ("crlf", b"\r\n\r\n"), ("cr", b"\r\r")])
def test_events_may_end_as_the_standard_allows(fake: FakeHandle, newline: str, end: bytes) -> None:
    body = exchange(fake.port, chat({"newline": newline, "data_space": False}, stream=True)).body
    content, _ = dechunk(body)
    assert content.endswith(b"data:[DONE]" + end)
    assert len([block for block in content.split(end) if block]) == 9


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
@pytest.mark.parametrize("stream", [False, True])
def test_the_framing_of_http_is_scripted(fake: FakeHandle, framing: str, stream: bool) -> None:
    with dial(fake.port) as sock:
        send(sock, chat({"framing": framing}, stream=stream))
        answer = receive(sock, quiet_s=QUIET_S)
    has_length = framing == "length" and not stream
    assert (b"content-length" in answer.head) == has_length
    assert (b"transfer-encoding" in answer.head) == (framing != "close" and not has_length)
    assert answer.ending == ("closed" if framing == "close" else "open")


def test_http_1_0_gets_a_stream_without_chunks(fake: FakeHandle) -> None:
    body = json.dumps(chat(stream=True)).encode()
    with dial(fake.port) as sock:
        sock.sendall(b"POST %b HTTP/1.0\r\ncontent-length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body))
        answer = receive(sock)
    assert b"transfer-encoding" not in answer.head
    assert answer.body.startswith(b"data: {")
    assert answer.ending == "closed"


def test_expect_100_and_early_hints_come_before_the_answer(fake: FakeHandle) -> None:
    body = json.dumps(chat({"early_hints": True})).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {len(body)}\r\n\r\n"
    with dial(fake.port) as sock:
        sock.sendall(head.encode())
        assert receive(sock, until=b"\r\n\r\n").data == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        answer = receive(sock, until=b"penstock")
    assert answer.data.startswith(b"HTTP/1.1 103 Early Hints")
    assert b"HTTP/1.1 200 OK" in answer.data


@pytest.mark.parametrize("how", ["announced", "silent"])
def test_the_connection_closes_after_the_answer_with_or_without_a_word(fake: FakeHandle, how: str) -> None:
    with dial(fake.port) as sock:
        send(sock, chat({"close_after": how}))
        answer = receive(sock)
    assert answer.ending == "closed"
    assert (b"connection: close" in answer.head) == (how == "announced")


def test_headers_can_come_long_before_the_first_token(fake: FakeHandle) -> None:
    with dial(fake.port) as sock:
        send(sock, chat({"early_headers": True, "ttft_s": 30, "headers": {"x-a": "b"}}, stream=True))
        answer = receive(sock, quiet_s=QUIET_S)
    assert (answer.status, answer.body) == (200, b"")
    assert b"\r\nx-a: b" in answer.head


def test_idle_connections_can_be_closed() -> None:
    with start_fake("--idle-timeout-s", "0.5") as fake, dial(fake.port) as sock:
        send(sock, chat())
        answer = receive(sock)
        assert (answer.status, answer.ending) == (200, "closed")


# ---- nonsense ----


@pytest.mark.parametrize(
    ("junk", "sign", "ending"),
    [
        ("not_http", b"\x16\x03\x01", "closed"),
        ("bad_status_line", b"HTTP/1.1 two hundred", "closed"),
        ("length_too_long", b"content-length", "closed"),
        ("length_too_short", b"content-length", "open"),
        ("two_lengths", b"content-length", "closed"),
        ("both_lengths", b"transfer-encoding: chunked", "closed"),
        ("huge_headers", b"x-huge: hhhh", "open"),
        ("bad_chunk", b"\r\n\r\nzz\r\n", "closed"),
        ("not_json", b'{"choices": [', "open"),
        ("bad_utf8", b"\xff\xfe\x80", "open"),
        ("empty", b"content-length: 0\r\n\r\n", "open"),
    ],
)
def test_junk_is_what_it_says(fake: FakeHandle, junk: str, sign: bytes, ending: str) -> None:
    with dial(fake.port) as sock:
        send(sock, chat({"junk": junk}))
        answer = receive(sock, quiet_s=QUIET_S)
    assert sign in answer.data
    assert answer.ending == ending
    lengths = [int(part.split(b"\r\n")[0]) for part in answer.head.split(b"content-length: ")[1:]]
    if junk == "length_too_long":
        assert lengths[0] > len(answer.body)
    if junk == "length_too_short":
        assert lengths[0] < len(answer.body)
    if junk == "two_lengths":
        assert lengths[0] != lengths[1]


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x00\x00", b"GET / HTTP/9.9\r\n\r\n", b"POST / HTTP/1.1\r\na\x00b: c\r\n\r\n"]
)
def test_bytes_that_are_no_request_get_400_and_a_closed_connection(fake: FakeHandle, data: bytes) -> None:
    with dial(fake.port) as sock:
        sock.sendall(data)
        answer = receive(sock)
    assert (answer.status, answer.ending) == (400, "closed")
