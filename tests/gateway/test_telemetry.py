"""What the gateway counts is what happened: metrics, access lines and spans against a scripted engine."""

import gzip
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from fakes import FakeHandle
from gateways import GatewayHandle, config, start_gateway

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def ask(gateway: GatewayHandle, **fields: Any) -> httpx.Response:
    headers = fields.pop("headers", {})
    return httpx.post(f"{gateway.url}/v1/chat/completions", json=CHAT | fields, headers=headers, timeout=60)


class Counted:
    """The change of every metric over a `with` block."""

    def __init__(self, gateway: GatewayHandle) -> None:
        self._gateway = gateway
        self._before: dict[str, float] = {}

    def __call__(self, name: str, **labels: str) -> float:
        return self._gateway.metric(name, **labels) - self._before.get(name + str(labels), 0.0)

    def start(self, name: str, **labels: str) -> None:
        self._before[name + str(labels)] = self._gateway.metric(name, **labels)


@pytest.fixture
def counted(gateway: GatewayHandle, fake: FakeHandle) -> Counted:
    counted = Counted(gateway)
    for name in (
        "penstock_request_ttft_seconds_count", "penstock_request_itl_seconds_count", "penstock_input_tokens_total",
        "penstock_request_tpot_seconds_count", "penstock_output_tokens_total", "penstock_request_itl_seconds_sum",
        "penstock_request_ttft_seconds_sum",
    ):  # fmt: skip
        counted.start(name)
    return counted


def test_ttft_and_itl_are_counted_per_content_event(gateway: GatewayHandle, fake: FakeHandle, counted: Counted) -> None:
    fake.script({"tokens": 5, "ttft_s": 0.2, "itl_s": 0.1})
    assert ask(gateway, stream=True).status_code == 200
    assert counted("penstock_request_ttft_seconds_count") == 1
    assert counted("penstock_request_itl_seconds_count") == 4
    assert counted("penstock_request_tpot_seconds_count") == 1
    assert counted("penstock_request_ttft_seconds_sum") >= 0.2
    total_s = counted("penstock_request_ttft_seconds_sum") + counted("penstock_request_itl_seconds_sum")
    assert total_s >= 0.59  # their border is when we see the first token


@pytest.mark.parametrize("role_chunk", ["separate", "merged", "none"])
def test_role_finish_and_usage_events_are_no_tokens(
    gateway: GatewayHandle, fake: FakeHandle, counted: Counted, role_chunk: str
) -> None:
    fake.script({"tokens": 3, "role_chunk": role_chunk, "usage_chunk": "always"})
    ask(gateway, stream=True)
    assert counted("penstock_request_itl_seconds_count") == 2
    assert counted("penstock_output_tokens_total") == 3


def test_several_tokens_in_a_chunk_are_counted_by_the_engine_not_by_chunks(
    gateway: GatewayHandle, fake: FakeHandle, counted: Counted
) -> None:
    fake.script({"tokens": 12, "tokens_per_chunk": 4})
    ask(gateway, stream=True)
    assert counted("penstock_output_tokens_total") == 12
    assert counted("penstock_request_itl_seconds_count") == 2


def test_reasoning_and_tool_arguments_are_content(gateway: GatewayHandle, fake: FakeHandle, counted: Counted) -> None:
    fake.script({"reasoning": 2, "reasoning_field": "reasoning_content", "tokens": 1})
    ask(gateway, stream=True)
    assert counted("penstock_request_itl_seconds_count") == 2
    fake.script({"tokens": 0, "tool_calls": [{"name": "f", "arguments": ['{"a"', ": 1}"]}]})
    ask(gateway, stream=True)
    assert counted("penstock_request_ttft_seconds_count") == 2


def test_a_plain_answer_counts_its_usage(gateway: GatewayHandle, fake: FakeHandle, counted: Counted) -> None:
    fake.script({"tokens": 7})
    usage = ask(gateway).json()["usage"]
    assert counted("penstock_output_tokens_total") == usage["completion_tokens"] == 7
    assert counted("penstock_input_tokens_total") == usage["prompt_tokens"]


def test_models_clients_make_up_never_become_labels(gateway: GatewayHandle, fake: FakeHandle) -> None:
    ask(gateway, model="made-up-by-a-client")
    assert "made-up" not in gateway.get("/metrics")[1]
    assert gateway.metric("penstock_requests_total", model="other", outcome="client_error") >= 1


def test_what_the_wire_refuses_is_counted_by_its_code(gateway: GatewayHandle) -> None:
    before = gateway.metric("penstock_wire_refusals_total", code="headers_too_large")
    answer = httpx.post(f"{gateway.url}/v1/chat/completions", json=CHAT, headers={"x-large": "x" * 70_000})
    assert answer.status_code == 431
    assert gateway.metric("penstock_wire_refusals_total", code="headers_too_large") == before + 1


def test_every_request_is_one_access_line_with_the_facts(gateway: GatewayHandle, fake: FakeHandle) -> None:
    fake.script({"tokens": 4})
    ask(gateway, stream=True, headers={"x-request-id": "line-1"})
    line = wait_for_line(gateway, "line-1")
    expected = {
        "endpoint": "chat/completions", "model": "m", "deployment": "main", "replica": "r0", "status": 200,
        "outcome": "ok", "stream": True, "attempts": 1, "output_tokens": 4, "finish_reason": "stop",
    }  # fmt: skip
    assert expected.items() <= line.items()
    assert 0 < line["ttft_s"] <= line["duration_s"]


def wait_for_line(gateway: GatewayHandle, request_id: str) -> dict[str, Any]:
    deadline_s = time.monotonic() + 60
    while not (found := [line for line in gateway.access_lines() if line["request_id"] == request_id]):
        assert time.monotonic() < deadline_s, gateway.log()
        time.sleep(0.02)
    (line,) = found
    return line


class Collector:
    """A real OTLP/HTTP receiver on a free port; `spans()` is what has come, by name."""

    def __init__(self) -> None:
        received: list[ExportTraceServiceRequest] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                received.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._received = received
        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self._thread = threading.Thread(target=self.server.serve_forever)
        self._thread.start()

    def spans(self) -> dict[str, Any]:
        return {
            span.name: span
            for request in self._received
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        }

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def attributes(span: Any) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in span.attributes}


def test_a_request_is_a_server_span_with_a_client_span_per_attempt(fake: FakeHandle, collector: Collector) -> None:
    trace_id, parent_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with start_gateway(config(fake.url, telemetry={"otlp_endpoint": collector.url})) as gateway:
        fake.script({"tokens": 3})
        ask(gateway, stream=True, headers={"traceparent": f"00-{trace_id}-{parent_id}-01"})
        sent_on = fake.stats()["last_requests"][-1]["headers"]["traceparent"]
        assert gateway.stop() == 0  # what is buffered is sent before the end
    server, client = collector.spans()["POST /v1/chat/completions"], collector.spans()["chat m"]
    assert server.trace_id.hex() == client.trace_id.hex() == trace_id
    assert server.parent_span_id.hex() == parent_id
    assert client.parent_span_id == server.span_id
    assert sent_on == f"00-{trace_id}-{client.span_id.hex()}-01"
    expected = {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "vllm", "gen_ai.request.model": "m",
        "gen_ai.request.stream": True, "gen_ai.usage.output_tokens": 3, "server.port": fake.port,
    }  # fmt: skip
    assert expected.items() <= attributes(client).items()
    assert attributes(client)["gen_ai.response.time_to_first_chunk"] > 0


def test_a_failed_request_is_a_failed_span(fake: FakeHandle, collector: Collector) -> None:
    with start_gateway(config(fake.url, telemetry={"otlp_endpoint": collector.url})) as gateway:
        fake.script({"error": {"status": 500}})
        ask(gateway)
        gateway.stop()
    span = collector.spans()["POST /v1/chat/completions"]
    assert attributes(span)["error.type"] == "engine_error"
    assert attributes(span)["http.response.status_code"] == 500


def test_without_an_endpoint_the_clients_trace_goes_to_the_engine_untouched(
    gateway: GatewayHandle, fake: FakeHandle
) -> None:
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    ask(gateway, headers={"traceparent": traceparent})
    assert fake.stats()["last_requests"][-1]["headers"]["traceparent"] == traceparent
    assert json.dumps(fake.stats()["last_requests"][-1]).count("tracestate") == 0
