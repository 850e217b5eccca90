"""What the fake engine says about itself is true: scripts in force, aborts, queue, metrics, five hundred streams."""

import asyncio
import json
import time
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fake_engine.connection import Connection
from fake_engine.engine import Engine, Settings
from fake_engine.exchange import Exchange
from fakes import FakeHandle, start_fake
from wire import CHAT, chat, dial, exchange, receive, send

STREAMS = 500


def samples(fake: FakeHandle) -> dict[str, float]:
    """Metrics by name, and by name with the label that matters."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(httpx.get(f"{fake.url}/metrics").text):
        for name, labels, value, *_ in family.samples:
            kinds = [labels[key] for key in ("finished_reason", "reason", "le") if key in labels]
            found["/".join([name, *kinds])] = value
    return found


# ---- scripts ----


def test_a_global_script_ends_after_its_times(fake: FakeHandle) -> None:
    fake.script({"error": {"status": 503}, "times": 2})
    assert [exchange(fake.port, chat()).status for _ in range(4)] == [503, 503, 200, 200]


def test_a_list_of_scripts_is_played_in_order(fake: FakeHandle) -> None:
    fake.script([{"error": {"status": 500}}, {"error": {"status": 429}, "times": 2}, {}])
    assert [exchange(fake.port, chat()).status for _ in range(5)] == [500, 429, 429, 200, 200]


def test_a_prompts_script_is_laid_over_the_global_one(fake: FakeHandle) -> None:
    fake.script({"tokens": ["global"], "finish_reason": "content_filter"})
    choice = httpx.post(fake.url + CHAT, json=chat({"tokens": ["own"]})).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("own", "content_filter")
    fake.reset_script()
    assert "Water" in httpx.post(fake.url + CHAT, json=chat()).text


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ({"tokenz": 3}, "unknown field `tokenz`; fields: ttft_s"),
        ({"ttft_s": -1}, r"\$\.ttft_s"),
        ({"hang": "sometimes"}, r"\$\.hang"),
        ({"die": {"at": 1, "how": "softly"}}, r"\$\.die\.how"),
        ([1], "a script is a JSON object, not int"),
    ],
)
def test_a_wrong_script_is_refused_and_changes_nothing(fake: FakeHandle, script: Any, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        fake.script(script)
    assert exchange(fake.port, chat()).status == 200


def test_health_flips_and_flips_back(fake: FakeHandle) -> None:
    fake.health(503)
    assert [httpx.get(fake.url + path).status_code for path in ("/health", "/ping")] == [503, 503]
    fake.health(200)
    assert httpx.get(f"{fake.url}/health").status_code == 200
    assert httpx.post(f"{fake.url}/_fake/health", json={"status": "x"}).status_code == 400
    assert httpx.get(f"{fake.url}/_fake/nothing").status_code == 404


def test_it_can_come_up_late_and_be_healthy_later(server: FakeHandle) -> None:
    with start_fake("--healthy-after-s", "2") as fake:
        assert httpx.get(f"{fake.url}/health").status_code == 503
        deadline_s = time.monotonic() + 60
        while httpx.get(f"{fake.url}/health").status_code != 200:
            assert time.monotonic() < deadline_s
    with start_fake("--startup-delay-s", "30", port=fake.port, wait=False) as late:
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{late.url}/health")
        assert late.process.poll() is None


# ---- counters ----


def test_requests_end_in_exactly_one_counter(fake: FakeHandle) -> None:
    exchange(fake.port, chat())
    exchange(fake.port, chat(stream=True))
    exchange(fake.port, {"model": "fake", "input": "a"}, "/v1/embeddings")
    exchange(fake.port, chat({"error": {}}))
    exchange(fake.port, b"{")
    exchange(fake.port, chat({"die": {}}))
    with dial(fake.port) as sock:
        send(sock, chat({"hang": 1}, stream=True))
        receive(sock, until=b"Water")
        assert fake.stats()["active"] == 1
    stats = fake.wait(lambda stats: stats["active"] == 0)
    counters = {name: stats[name] for name in ("requests", "completed", "failed", "died", "aborted")}
    assert counters == {"requests": 7, "completed": 3, "failed": 2, "died": 1, "aborted": 1}
    assert stats["generated_tokens"] == 6 + 6 + 1


def test_requests_are_remembered_with_headers_and_body(fake: FakeHandle) -> None:
    body = chat(top_k=3)
    httpx.post(fake.url + CHAT, json=body, headers={"X-Request-Id": "r-1"})
    httpx.get(f"{fake.url}/health")
    (seen,) = fake.stats()["last_requests"]
    assert (seen["method"], seen["path"], seen["body"]) == ("POST", CHAT, body)
    assert seen["headers"]["x-request-id"] == "r-1"
    assert fake.stats()["paths"] == {f"POST {CHAT}": 1, "GET /health": 1}
    exchange(fake.port, b"[" * 100)
    exchange(fake.port, json.dumps(chat(text="w" * 100_000)).encode())
    *_, broken, large = fake.stats()["last_requests"]
    assert broken["body"] == "[" * 100
    assert large["body"]["size_bytes"] == large["bytes"] > 100_000


def test_the_tests_own_connections_are_not_counted(fake: FakeHandle) -> None:
    with httpx.Client() as client:
        for _ in range(3):
            client.get(f"{fake.url}/_fake/stats")
        with dial(fake.port) as sock:
            send(sock, chat())
            receive(sock, until=b"penstock")
            stats = client.get(f"{fake.url}/_fake/stats").json()
    assert (stats["connections_open"], stats["connections_total"]) == (1, 1)
    assert stats["bytes_sent"] > 300
    assert stats["bytes_received"] > 100
    assert fake.wait(lambda stats: stats["connections_open"] == 0)["connections_total"] == 1


# ---- clients that leave ----


@pytest.mark.parametrize(
    ("script", "stream"),
    [
        ({"ttft_s": 600}, False),
        ({"ttft_s": 600}, True),
        ({"itl_s": 600}, True),
        ({"tokens": 3, "itl_s": 600}, False),
        ({"hang": "before_headers"}, False),
        ({"hang": "after_headers"}, True),
        ({"flood": True}, True),
        ({"tokens": 200, "token_bytes": 200_000}, False),
    ],
)
def test_a_client_that_leaves_is_noticed(fake: FakeHandle, script: dict[str, Any], stream: bool) -> None:
    with dial(fake.port) as sock:
        send(sock, chat(script, stream=stream))
        fake.wait(lambda stats: stats["active"] == 1)
    stats = fake.wait(lambda stats: stats["active"] == 0)
    assert (stats["aborted"], stats["completed"]) == (1, 0)


def test_a_flood_stops_where_the_reader_stops(fake: FakeHandle) -> None:
    with dial(fake.port) as sock:
        send(sock, chat({"flood": True, "token_bytes": 10_000}, stream=True))
        fake.wait(lambda stats: stats["bytes_sent"] > 100_000)
        before = -1
        while before != (sent := fake.stats()["bytes_sent"]):
            before = sent
            time.sleep(0.1)
        assert receive(sock, for_s=0.2).data.count(b"data: ") > 10
        fake.wait(lambda stats: stats["bytes_sent"] > sent)


def test_a_large_answer_arrives_whole(fake: FakeHandle) -> None:
    with dial(fake.port) as sock:
        send(sock, chat({"tokens": 160, "token_bytes": 100_000}))
        fake.wait(lambda stats: stats["active"] == 1)
        data = receive(sock, until=b'"total_tokens"').body
    assert len(data) > 16_000_000
    assert fake.wait(lambda stats: stats["active"] == 0)["completed"] == 1


# ---- the queue, and metrics ----


def test_requests_wait_for_a_slot_and_too_many_are_refused() -> None:
    with start_fake("--max-running", "1", "--max-queued", "1") as fake:
        with dial(fake.port) as first, dial(fake.port) as second:
            send(first, chat({"hang": "after_headers"}, stream=True))
            receive(first, until=b"\r\n\r\n")
            send(second, chat())
            fake.wait(lambda stats: stats["active"] == 2)
            now = samples(fake)
            assert (now["vllm:num_requests_running"], now["vllm:num_requests_waiting"]) == (1, 1)
            refused = exchange(fake.port, chat())
            assert (refused.status, b"Service Unavailable" in refused.body) == (503, True)
            first.close()
            assert receive(second, until=b"penstock").status == 200
        now = samples(fake)
        assert (now["vllm:num_requests_running"], now["vllm:num_requests_waiting"]) == (0, 0)
        assert now["vllm:admission_rejections_total/queue_full"] == 1


def test_a_waiting_request_can_leave_and_three_hundred_can_follow() -> None:
    with start_fake("--max-running", "1") as fake, dial(fake.port) as first:
        send(first, chat({"hang": "before_headers"}))
        fake.wait(lambda stats: stats["active"] == 1)
        with dial(fake.port) as waiting:
            send(waiting, chat())
            fake.wait(lambda stats: stats["active"] == 2)
        fake.wait(lambda stats: stats["aborted"] == 1)
        others = [dial(fake.port) for _ in range(300)]
        try:
            for sock in others:
                send(sock, chat())
            fake.wait(lambda stats: stats["active"] == 301)
            first.close()
            fake.wait(lambda stats: stats["completed"] == 300)
        finally:
            for sock in others:
                sock.close()


def test_metrics_equal_what_was_done() -> None:
    with start_fake("--kv-tokens", "100") as fake:
        exchange(fake.port, chat({"tokens": 5, "itl_s": 0.03, "ttft_s": 0.3, "cached_tokens": 1}, stream=True))
        exchange(fake.port, chat({"tokens": 9}, max_tokens=4))
        exchange(fake.port, chat({"error": {}}))
        with dial(fake.port) as sock:
            send(sock, chat({"hang": 2}, text="a b c d e f g", stream=True))
            fake.wait(lambda stats: stats["generated_tokens"] == 11)
            during = samples(fake)
        fake.wait(lambda stats: stats["active"] == 0)
        after = samples(fake)
    assert during["vllm:num_requests_running"] == 1
    assert during["vllm:kv_cache_usage_perc"] == pytest.approx((8 + 2) / 100)
    prompts = 3 + 3 + 3 + 8  # the script in a prompt is a word of it
    assert after["vllm:prompt_tokens_total"] == after["vllm:prefix_cache_queries_total"] == prompts
    assert after["vllm:prefix_cache_hits_total"] == 1
    assert after["vllm:generation_tokens_total"] == 11
    outcomes = {
        reason: after[f"vllm:request_success_total/{reason}"] for reason in ("stop", "length", "abort", "error")
    }
    assert outcomes == {"stop": 1, "length": 1, "abort": 1, "error": 1}
    assert after["vllm:kv_cache_usage_perc"] == after["vllm:num_requests_running"] == 0
    assert after["vllm:time_to_first_token_seconds_count"] == 3
    assert after["vllm:time_to_first_token_seconds_bucket/0.25"] == 2
    assert after["vllm:inter_token_latency_seconds_count"] == 4 + 3 + 1
    assert after["vllm:inter_token_latency_seconds_bucket/+Inf"] == 8
    waited_s = after["vllm:time_to_first_token_seconds_sum"] + after["vllm:inter_token_latency_seconds_sum"]
    assert waited_s >= 0.3 + 4 * 0.03 - 0.001
    assert after["vllm:e2e_request_latency_seconds_count"] == 2
    assert after["vllm:request_generation_tokens_sum"] == 5 + 4


def test_metrics_of_sglang_have_the_names_of_sglang() -> None:
    with start_fake("--engine", "sglang") as fake:
        exchange(fake.port, chat())
        now = samples(fake)
    assert (now["sglang:num_requests_total"], now["sglang:generation_tokens_total"]) == (1, 6)
    assert now["sglang:num_running_reqs"] == now["sglang:num_queue_reqs"] == now["sglang:token_usage"] == 0


def test_tokenize_counts_words_and_version_says_vllm(fake: FakeHandle) -> None:
    answer = httpx.post(f"{fake.url}/tokenize", json={"model": "fake", "prompt": "a b a"}).json()
    assert answer["count"] == 3
    assert answer["tokens"][0] == answer["tokens"][2] != answer["tokens"][1]
    assert httpx.post(f"{fake.url}/tokenize", json={}).status_code == 400
    assert httpx.get(f"{fake.url}/version").json() == {"version": "0.33.0"}


# ---- the schedule ----


async def _chunk_times(port: int, script: dict[str, Any]) -> list[float]:
    """Seconds from sending to the sight of each content chunk, role left out."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps(chat(script, stream=True)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    sent_s = time.monotonic()
    writer.write(head.encode() + body)
    times = []
    while line := await reader.readline():
        if b'"content":"' in line and b'"role"' not in line:
            times.append(time.monotonic() - sent_s)
    writer.close()
    await writer.wait_closed()
    return times


async def test_no_chunk_comes_before_its_time(fake: FakeHandle) -> None:
    times = await _chunk_times(fake.port, {"tokens": 20, "ttft_s": 0.05, "itl_s": 0.01})
    assert len(times) == 20
    early = [k for k, at_s in enumerate(times) if at_s < 0.05 + k * 0.01 - 0.001]
    assert not early


class LateLoop(asyncio.SelectorEventLoop):
    """A loop whose timers are all 5 ms late, and counted."""

    timers = 0

    def call_later(self, delay: float, callback: Any, *args: Any, **more: Any) -> asyncio.TimerHandle:  # type: ignore[override]
        self.timers += isinstance(getattr(callback, "__self__", None), Exchange)
        return super().call_later(delay + 0.005, callback, *args, **more)


def test_lateness_does_not_add_up() -> None:
    """With timers 5 ms late and gaps of 2 ms an absolute schedule finds several chunks due each time it wakes.

    One that waits 2 ms after each chunk would need a timer for every one of them, however slow the machine.
    """

    async def play(loop: LateLoop) -> tuple[list[float], int]:
        engine = Engine(Settings(), {})
        server = await loop.create_server(lambda: Connection(engine), "127.0.0.1", 0)
        times = await _chunk_times(server.sockets[0].getsockname()[1], {"tokens": 90, "itl_s": 0.002})
        server.close()
        await server.wait_closed()
        return times, loop.timers

    with asyncio.Runner(loop_factory=LateLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, LateLoop)
        times, timers = runner.run(play(loop))
    assert len(times) == 90
    assert 0 < timers < 60


async def test_five_hundred_streams_at_once(fake: FakeHandle) -> None:
    script = {"tokens": 20, "itl_s": 0.05, "ttft_s": 1}
    times = await asyncio.gather(*(_chunk_times(fake.port, script) for _ in range(STREAMS)))
    assert {len(chunks) for chunks in times} == {20}
    stats = fake.wait(lambda stats: stats["active"] == 0)
    assert stats["peak_active"] > STREAMS / 2
    assert (stats["completed"], stats["generated_tokens"]) == (STREAMS, STREAMS * 20)


async def test_five_hundred_clients_that_leave_at_once(fake: FakeHandle) -> None:
    body = json.dumps(chat({"hang": 1}, stream=True)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    pairs = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", fake.port) for _ in range(STREAMS)))
    for reader, writer in pairs:
        writer.write(head + body)
        await reader.readuntil(b"Water")
    assert fake.stats()["active"] == STREAMS
    for _, writer in pairs:
        writer.close()
    await asyncio.gather(*(writer.wait_closed() for _, writer in pairs))
    stats = await asyncio.to_thread(fake.wait, lambda stats: stats["active"] == 0)
    assert (stats["aborted"], stats["connections_open"]) == (STREAMS, 0)
