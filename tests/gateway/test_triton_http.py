"""The HTTP fallback against answers that the real server only gives on a bad day: canned, over a real socket."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from fake_triton_models import MODELS
from gateways import GatewayHandle, config, start_gateway
from tritons import CHECKPOINT, HELLO, chat, content, events, post

OK = [{"text_output": " one", "num_output_tokens": 1}, {"text_output": " one two", "num_output_tokens": 1}]


class Canned(ThreadingHTTPServer):
    """`events` are what generate_stream says, `status` under which; `cut`: the body ends without its end."""

    events: list[Any] = OK
    status = 200
    cut = False
    endless = False
    left = threading.Event()  # the gateway closed the connection of an endless stream
    asked: dict[str, Any] = {}  # noqa: RUF012 (replaced, never changed)
    daemon_threads = True


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Canned

    def do_GET(self) -> None:
        inputs, outputs, parameters = MODELS["bls"]
        listed = [
            [{"name": name, "datatype": kind, "shape": shape} for name, (kind, shape) in tensors.items()]
            for tensors in (inputs, outputs)
        ]
        pages = {
            "/v2/models/model/ready": b"",
            "/v2/models/model": json.dumps({"name": "model", "inputs": listed[0], "outputs": listed[1]}).encode(),
            "/v2/models/model/config": json.dumps(
                {
                    "model_transaction_policy": {"decoupled": True},
                    "parameters": {name: {"string_value": value} for name, value in parameters.items()},
                }
            ).encode(),
        }
        self._answer(200, pages[self.path])

    def do_POST(self) -> None:
        assert self.path == "/v2/models/model/generate_stream"
        server = self.server
        server.asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if server.endless:
            self._go_on_forever()
            return
        body = b"".join(
            b"data: " + (event if isinstance(event, bytes) else json.dumps(event).encode()) + b"\n\n"
            for event in server.events
        )
        self._answer(server.status, body, kind="text/event-stream; charset=utf-8", cut=server.cut)

    def _go_on_forever(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        self.close_connection = True
        try:
            while True:
                self.wfile.write(b'data: {"text_output": " one", "num_output_tokens": 1}\n\n')
                time.sleep(0.01)
        except OSError:
            self.server.left.set()

    def _answer(self, status: int, body: bytes, kind: str = "application/json", *, cut: bool = False) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body) + cut))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = cut

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Canned, GatewayHandle]]:
    with Canned(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings = {"engine": "triton", "model": "model", "checkpoint": str(CHECKPOINT)}
        with start_gateway(config(f"http://127.0.0.1:{server.server_port}", deployment=settings)) as gateway:
            yield server, gateway
        server.shutdown()


@pytest.fixture
def triton(shared: tuple[Canned, GatewayHandle]) -> Iterator[Canned]:
    server, gateway = shared
    server.events, server.status, server.cut = OK, 200, False
    yield server
    server.events, server.status, server.cut = OK, 200, False
    assert content(events(gateway)) == " one two"  # the next request works


@pytest.fixture
def gateway(shared: tuple[Canned, GatewayHandle]) -> GatewayHandle:
    return shared[1]


def test_scalars_are_scalars_and_lists_lists(triton: Canned, gateway: GatewayHandle) -> None:
    triton.events = [{"text_output": " one two", "num_output_tokens": 2}]
    whole = chat(gateway, temperature=0.5, max_tokens=7, stop=["x", "yz"])
    assert whole["usage"]["completion_tokens"] == 3
    asked = triton.asked
    assert (asked["max_tokens"], asked["temperature"], asked["stop_words"]) == (7, 0.5, ["x", "yz"])
    assert asked["exclude_input_in_output"] is True


def test_an_error_under_200_is_an_error(triton: Canned, gateway: GatewayHandle) -> None:
    triton.events = [{"error": "generate expects model to produce exactly 1 response"}]
    for stream in (True, False):
        answer = post(gateway, stream=stream)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "engine_error")
        assert "exactly 1 response" in answer.json()["error"]["message"]
    triton.events = [OK[0], {"error": "it went wrong"}]
    assert '"error":{"message":"it went wrong"' in post(gateway, stream=True).text


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [(400, "bad shape", 400), (503, "Exceeds maximum queue size", 503), (500, "CUDA", 500), (404, "no model", 502)],
)
def test_an_error_status_keeps_its_meaning(
    triton: Canned, gateway: GatewayHandle, status: int, error: str, expected: int
) -> None:
    triton.status, triton.events = status, [{"error": error}]
    answer = post(gateway)
    assert answer.status_code == expected
    assert error in answer.json()["error"]["message"]


def test_a_client_that_leaves_closes_the_connection(triton: Canned, gateway: GatewayHandle) -> None:
    triton.endless = True
    body = {"model": "m", "messages": HELLO, "stream": True}
    with httpx.stream("POST", f"{gateway.url}/v1/chat/completions", json=body, timeout=60) as answer:
        next(answer.iter_bytes())
    triton.endless = False
    assert triton.left.wait(60)


def test_a_body_that_breaks_off_or_is_nonsense_is_an_error(triton: Canned, gateway: GatewayHandle) -> None:
    triton.cut = True
    assert '"code":"engine_failed"' in post(gateway, stream=True).text
    assert post(gateway).status_code == 502
    triton.cut, triton.events = False, [b"not json"]
    assert post(gateway, stream=True).status_code == 502
    triton.events = [b"[1]"]
    assert post(gateway, stream=True).status_code == 502
