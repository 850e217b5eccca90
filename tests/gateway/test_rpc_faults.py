"""What goes wrong over gRPC: keys, limits, deadlines, clients that leave or do not read, engines that fail, the end."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_status import rpc_status

from fakes import FakeHandle
from gateway.protos.penstock.v1 import chat_pb2 as pb
from gateway.protos.penstock.v1.chat_pb2_grpc import ChatServiceStub
from gateways import KEY, KEY_SHA256, GatewayHandle, config, start_gateway
from rpc import PATIENCE_S, Refused, TritonPeer, channel_to, chat_stub, details, reason, rpc_address

CODE = grpc.StatusCode
KEYED = (("authorization", f"Bearer {KEY}"),)
LARGE = {"tokens": 3000, "token_bytes": 10_000}
"""More than everybody on the way holds: it runs until its client reads."""
LARGE_BYTES = 30_000_000


@pytest.fixture(scope="module")
def door(fakes: tuple[FakeHandle, FakeHandle]) -> Iterator[GatewayHandle]:
    with start_gateway(config(fakes[0].url, rpc={"port": 0})) as handle:
        yield handle


@pytest.fixture(scope="module")
def stub(door: GatewayHandle) -> Iterator[ChatServiceStub]:
    with chat_stub(door) as stub:
        yield stub


def chat(script: dict[str, Any] | None = None, text: str = "hello", model: str = "m") -> pb.ChatRequest:
    prompt = text if script is None else json.dumps({"fake": script}, separators=(",", ":")) + " " + text
    return pb.ChatRequest(model=model, messages=[pb.Message(role=pb.ROLE_USER, content=prompt)])


def whole(stub: ChatServiceStub, request: pb.ChatRequest, **options: Any) -> str:
    return str(stub.Complete(pb.CompleteRequest(chat=request), **options).choices[0].message.content)


def stream(stub: ChatServiceStub, request: pb.ChatRequest, **options: Any) -> Any:
    return stub.Stream(pb.StreamRequest(chat=request), **options)


def text_of(messages: Any) -> str:
    return "".join(delta.content for message in messages for delta in message.deltas)


def failure(call: Callable[[], Any]) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value


def own_gateway(fake: FakeHandle, **server: Any) -> GatewayHandle:
    return start_gateway(config(fake.url, rpc={"port": 0}, server={"port": 0, **server}))


def lines_of(gateway: GatewayHandle, count: int, **wanted: Any) -> list[dict[str, Any]]:
    """The access lines that say so, once there are `count`."""
    deadline_s = time.monotonic() + 60
    while True:
        lines = [line for line in gateway.access_lines() if wanted.items() <= line.items()]
        if len(lines) >= count or time.monotonic() > deadline_s:
            return lines
        time.sleep(0.05)


# ---- the engine's failures ----


@pytest.mark.parametrize(
    ("script", "code", "why"),
    [
        ({"error": {"status": 400, "message": "no"}}, CODE.INVALID_ARGUMENT, "INVALID_REQUEST_ERROR"),
        ({"error": {"status": 401}}, CODE.UNAVAILABLE, "ENGINE_UNAUTHORIZED"),
        ({"error": {"status": 404}}, CODE.NOT_FOUND, "INVALID_REQUEST_ERROR"),
        ({"error": {"status": 429}}, CODE.UNAVAILABLE, "ENGINE_OVERLOADED"),
        ({"error": {"status": 500}}, CODE.INTERNAL, "ENGINE_ERROR"),
        ({"error": {"status": 501}}, CODE.UNIMPLEMENTED, "ENGINE_ERROR"),
        ({"error": {"status": 503}}, CODE.UNAVAILABLE, "ENGINE_OVERLOADED"),
        ({"die": {"at": "before_headers"}}, CODE.UNAVAILABLE, "ENGINE_FAILED"),
        ({"junk": "not_json"}, CODE.UNAVAILABLE, "ENGINE_FAILED"),
    ],
)
def test_each_failure_of_the_engine_has_its_status(
    stub: ChatServiceStub, fake: FakeHandle, script: dict[str, Any], code: grpc.StatusCode, why: str
) -> None:
    fake.script(script)
    error = failure(lambda: whole(stub, chat()))
    assert error.code() is code
    if code is not CODE.INVALID_ARGUMENT and code is not CODE.NOT_FOUND:
        assert reason(error) == why
    assert whole_again(stub, fake)


def whole_again(stub: ChatServiceStub, fake: FakeHandle) -> bool:
    """The next request works."""
    fake.script({"tokens": ["fine"]})
    return whole(stub, chat()) == "fine"


def test_a_late_failure_ends_the_stream_with_a_status_after_the_pieces(stub: ChatServiceStub, fake: FakeHandle) -> None:
    fake.script({"tokens": 5, "itl_s": 0.02, "error_event": {"after_chunks": 2, "message": "out of luck"}})
    call = stream(stub, chat())
    received = []
    error = failure(lambda: received.extend(call))
    assert text_of(received)
    assert (error.code(), error.details()) == (CODE.INTERNAL, "out of luck")
    assert whole_again(stub, fake)


def test_a_broken_stream_is_unavailable_never_a_short_answer(stub: ChatServiceStub, fake: FakeHandle) -> None:
    fake.script({"tokens": 5, "itl_s": 0.02, "die": {"at": 2, "how": "reset"}})
    assert failure(lambda: list(stream(stub, chat()))).code() is CODE.UNAVAILABLE


def test_another_replica_is_tried_before_the_client_hears_of_a_failure(
    fake: FakeHandle, fakes: tuple[FakeHandle, FakeHandle]
) -> None:
    settings = config(*(engine.url for engine in fakes), rpc={"port": 0}, deployment={"policy": "round_robin"})
    with start_gateway(settings) as gateway, chat_stub(gateway) as stub:
        deadline_s = time.monotonic() + 60
        while gateway.metric("penstock_replica_ready") < 2:
            assert time.monotonic() < deadline_s, gateway.log()
            time.sleep(0.05)
        fake.script({"die": {"at": "before_headers"}})
        assert [bool(whole(stub, chat())) for _ in range(4)] == [True] * 4
        assert [bool(text_of(stream(stub, chat()))) for _ in range(4)] == [True] * 4
        assert fake.stats()["died"] > 0


def test_who_should_come_back_is_told_when(fake: FakeHandle) -> None:
    settings = config(fake.url, rpc={"port": 0}, deployment={"max_waiting": 0})
    settings["models"]["m"]["deployments"]["main"]["replicas"]["r0"]["max_in_flight"] = 1
    with start_gateway(settings) as gateway, chat_stub(gateway) as stub:
        running = stream(stub, chat({"hang": 1}))
        next(running)
        error = failure(lambda: whole(stub, chat()))
        assert (error.code(), reason(error)) == (CODE.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        retry: Any = details(error)["RetryInfo"]
        assert retry.retry_delay.seconds >= 1
        running.cancel()


# ---- who asks ----


def test_a_key_is_needed_where_there_are_keys_but_not_for_probes(fake: FakeHandle) -> None:
    settings = config(fake.url, rpc={"port": 0}, auth={"keys": {"alice": {"sha256": KEY_SHA256}}})
    with start_gateway(settings) as gateway, channel_to(gateway) as channel:
        stub = ChatServiceStub(channel)
        for metadata in ((), (("authorization", "Bearer wrong"),), (("authorization", "Basic x"),)):
            calls: list[Callable[..., Any]] = [
                lambda m: whole(stub, chat(), metadata=m),
                lambda m: list(stream(stub, chat(), metadata=m)),
                lambda m: stub.ListModels(pb.ListModelsRequest(), metadata=m),
            ]
            for call in calls:
                error = failure(lambda call=call, metadata=metadata: call(metadata))  # type: ignore[misc]
                assert (error.code(), reason(error)) == (CODE.UNAUTHENTICATED, "INVALID_API_KEY")
        assert fake.stats()["requests"] == 1  # its first token
        assert HealthStub(channel).Check(HealthCheckRequest()).status == HealthCheckResponse.SERVING
        assert whole(stub, chat(), metadata=KEYED)
        [line] = lines_of(gateway, 1, key="alice")
        assert line["endpoint"] == "grpc/chat"
        with TritonPeer(rpc_address(gateway)) as triton:
            assert triton.do("is_server_ready") is True
            for method in ("is_model_ready", "get_model_metadata"):
                with pytest.raises(Refused) as caught:
                    triton.do(method, model_name="m")
                assert caught.value.status == "UNAUTHENTICATED"
            with pytest.raises(Refused):
                triton.infer("m", text_input="x")
            done = threading.Event()
            idle = failure(lambda: list(infer_stream(channel)(held_open(done))))  # says nothing, and is not let in
            done.set()
            assert (idle.code(), reason(idle)) == (CODE.UNAUTHENTICATED, "INVALID_API_KEY")
            headers = {"authorization": f"Bearer {KEY}"}
            assert triton.infer("m", text_input="x", options={"headers": headers})["finish_reason"]


def infer_stream(channel: grpc.Channel) -> Any:
    """ModelStreamInfer, of bytes."""
    return channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")


def held_open(done: threading.Event) -> Iterator[bytes]:
    done.wait(PATIENCE_S)
    yield from ()


def test_bytes_that_are_no_message_end_their_stream_and_no_other(
    stub: ChatServiceStub, fake: FakeHandle, door: GatewayHandle
) -> None:
    with channel_to(door) as channel:
        error = failure(lambda: list(infer_stream(channel)(iter([b"\xff\xff"]), timeout=PATIENCE_S)))
        assert (error.code(), reason(error)) == (CODE.INVALID_ARGUMENT, "INVALID_PROTOBUF")
    assert "Traceback" not in door.log()
    assert whole(stub, chat())


# ---- limits ----


def test_a_message_larger_than_the_limit_is_refused_and_says_so(fake: FakeHandle) -> None:
    with own_gateway(fake, body_limit_bytes=20_000) as gateway, chat_stub(gateway) as stub:
        error = failure(lambda: whole(stub, chat(text="x" * 30_000)))
        assert error.code() is CODE.RESOURCE_EXHAUSTED
        assert "20000" in error.details()
        assert whole(stub, chat(text="x" * 10_000))


def test_metadata_larger_than_the_limit_is_refused(fake: FakeHandle) -> None:
    with own_gateway(fake, header_limit_bytes=2048) as gateway, chat_stub(gateway) as stub:
        error = failure(lambda: whole(stub, chat(), metadata=(("x-big", "x" * 5000),)))
        assert error.code() is CODE.RESOURCE_EXHAUSTED
        assert whole(stub, chat())


def test_fifty_streams_at_once_each_get_their_own_words(stub: ChatServiceStub, fake: FakeHandle) -> None:
    def ask(index: int) -> str:
        return text_of(stream(stub, chat({"tokens": [f"{index}."] * 20, "ttft_s": 1, "itl_s": 0.02}), timeout=60))

    with ThreadPoolExecutor(50) as pool:
        texts = list(pool.map(ask, range(50)))
    assert texts == [f"{index}." * 20 for index in range(50)]
    assert fake.stats()["peak_active"] > 25


# ---- who leaves ----


def test_a_client_that_cancels_stops_the_engine(stub: ChatServiceStub, fake: FakeHandle, door: GatewayHandle) -> None:
    call = stream(stub, chat({"hang": 2}), metadata=(("x-request-id", "left-1"),))
    next(call)
    call.cancel()
    fake.wait(lambda stats: stats["aborted"] == 1)
    waiting = stub.Complete.future(pb.CompleteRequest(chat=chat({"hang": "before_headers"})))
    fake.wait(lambda stats: stats["active"] == 1)
    waiting.cancel()
    fake.wait(lambda stats: stats["aborted"] == 2 and stats["active"] == 0)
    [line] = lines_of(door, 1, request_id="left-1")
    assert (line["status"], line["outcome"]) == (499, "client_closed")


def test_a_client_that_vanishes_stops_the_engine(door: GatewayHandle, fake: FakeHandle) -> None:
    with TritonPeer(rpc_address(door)) as triton:
        triton.do("start_stream")
        triton.ask("m", "a", text_input=json.dumps({"fake": {"hang": 1}}, separators=(",", ":")), stream=True)
        triton.next()
        triton.process.kill()
        fake.wait(lambda stats: stats["aborted"] == 1)


def test_the_clients_deadline_is_the_requests(stub: ChatServiceStub, fake: FakeHandle, door: GatewayHandle) -> None:
    """We say so ourselves, a little before: with the reason, and the engine stopped."""
    for call in (
        lambda: whole(stub, chat({"hang": "before_headers"}), timeout=1.25),
        lambda: list(stream(stub, chat({"hang": 1}), timeout=1.25)),
    ):
        for _ in range(5):  # on a machine that was busy with something else, the client itself was faster
            error = failure(call)
            assert error.code() is CODE.DEADLINE_EXCEEDED
            if rpc_status.from_call(error) is not None:
                break
        assert reason(error) == "DEADLINE_EXCEEDED"
    fake.wait(lambda stats: stats["aborted"] >= 2 and stats["active"] == 0)
    assert len(lines_of(door, 2, error_code="deadline_exceeded")) >= 2


def test_the_gateways_deadline_holds_where_the_client_has_none(fake: FakeHandle) -> None:
    settings = config(fake.url, rpc={"port": 0}, deployment={"deadline_s": 0.3})
    with start_gateway(settings) as gateway, chat_stub(gateway) as stub:
        error = failure(lambda: whole(stub, chat({"hang": "before_headers"})))
        assert (error.code(), reason(error)) == (CODE.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")


def test_a_slow_reader_slows_the_engine_down_and_loses_nothing(stub: ChatServiceStub, fake: FakeHandle) -> None:
    """What the engine has sent stops growing long before the answer is whole."""
    call = stream(stub, chat(LARGE), timeout=120)
    next(call)
    held = settled(lambda: int(fake.stats()["bytes_sent"]))
    assert held < 25_000_000, "the gateway held the whole answer"
    assert len(text_of(call)) > 0.9 * LARGE_BYTES
    assert fake.stats()["completed"] == 1


def settled(read: Callable[[], int]) -> int:
    """The value that grows no more, but for the probes' few bytes."""
    last, since_s = read(), time.monotonic()
    while time.monotonic() - since_s < 0.7:
        time.sleep(0.05)
        if (now := read()) > last + 10_000:
            last, since_s = now, time.monotonic()
    return last


def test_a_client_that_reads_nothing_is_cut_and_the_engine_stopped(fake: FakeHandle) -> None:
    with own_gateway(fake, send_timeout_s=0.5) as gateway, chat_stub(gateway) as stub:
        call = stream(stub, chat({"flood": True, "token_bytes": 1000}), timeout=60)
        next(call)
        fake.wait(lambda stats: stats["aborted"] == 1)
        error = failure(lambda: list(call))
        assert (error.code(), reason(error)) == (CODE.ABORTED, "CLIENT_TOO_SLOW")
        assert whole_again(stub, fake)


# ---- the end ----


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_what_runs_is_finished_and_new_rpcs_are_turned_away(fake: FakeHandle, sig: int) -> None:
    with own_gateway(fake) as gateway, channel_to(gateway) as channel:
        stub = ChatServiceStub(channel)
        watch = HealthStub(channel).Watch(HealthCheckRequest())
        assert next(watch).status == HealthCheckResponse.SERVING
        running = stream(stub, chat(LARGE))
        first = text_of([next(running)])
        gateway.process.send_signal(sig)
        assert next(watch).status == HealthCheckResponse.NOT_SERVING
        error = failure(lambda: whole(stub, chat()))
        assert error.code() is CODE.UNAVAILABLE
        assert len(first + text_of(running)) >= LARGE_BYTES
        assert gateway.process.wait(60) == 0
        assert "Traceback" not in gateway.log()


def test_a_stream_that_waits_for_requests_does_not_hold_up_the_end(fake: FakeHandle) -> None:
    """Triton's clients keep one open; what it had asked is answered first."""
    with own_gateway(fake) as gateway, TritonPeer(rpc_address(gateway)) as triton:
        triton.do("start_stream")
        script = json.dumps({"fake": {"itl_s": 0.1, "tokens": ["x"] * 10}}, separators=(",", ":"))
        triton.ask("m", "a", text_input=script, stream=True)
        events = [triton.next()]
        gateway.process.terminate()
        events += triton.until_final()
        assert "".join(event["outputs"].get("text_output", "") for event in events) == "x" * 10
        assert triton.next()["status"] == "StatusCode.UNAVAILABLE"
        assert gateway.process.wait(60) == 0
        assert "Traceback" not in gateway.log()


def test_streams_that_outlast_the_drain_are_cut_with_a_reason(fake: FakeHandle) -> None:
    with own_gateway(fake, drain_timeout_s=1) as gateway, chat_stub(gateway) as stub:
        call = stream(stub, chat({"hang": 2}))
        next(call)
        gateway.process.terminate()
        error = failure(lambda: list(call))
        assert (error.code(), reason(error)) == (CODE.UNAVAILABLE, "DRAINING")
        assert gateway.process.wait(60) == 0
        fake.wait(lambda stats: stats["aborted"] == 1)
        assert "Traceback" not in gateway.log()


def test_a_second_ctrl_c_does_not_wait(fake: FakeHandle) -> None:
    with own_gateway(fake) as gateway, chat_stub(gateway) as stub:
        call = stream(stub, chat({"hang": 2}))
        next(call)
        gateway.process.send_signal(signal.SIGINT)
        with channel_to(gateway) as channel:
            refused(channel)
        gateway.process.send_signal(signal.SIGINT)
        assert reason(failure(lambda: list(call))) == "DRAINING"
        assert gateway.process.wait(60) == 0
        assert "Traceback" not in gateway.log()


def refused(channel: grpc.Channel) -> None:
    """Until the server takes no new RPCs."""
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        try:
            HealthStub(channel).Check(HealthCheckRequest(), timeout=1)
        except grpc.RpcError:
            return
        time.sleep(0.02)
    raise AssertionError("it still answers")


def test_a_taken_port_is_told_in_one_line(fake: FakeHandle, door: GatewayHandle) -> None:
    port = int(rpc_address(door).rpartition(":")[2])
    with pytest.raises(RuntimeError) as caught:
        start_gateway(config(fake.url, rpc={"port": port}), ready=False)
    assert f"cannot listen for gRPC on 127.0.0.1:{port}" in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_a_crowd_that_leaves_leaves_nothing_behind(
    stub: ChatServiceStub, fake: FakeHandle, door: GatewayHandle
) -> None:
    calls = [stream(stub, chat({"hang": 1})) for _ in range(20)]
    for call in calls:
        next(call)
    threads = [threading.Thread(target=call.cancel) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fake.wait(lambda stats: stats["aborted"] == 20 and stats["active"] == 0)
    deadline_s = time.monotonic() + 60
    while door.metric("penstock_requests_in_flight"):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    assert "Traceback" not in door.log()
