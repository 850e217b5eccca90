"""KServe v2 over HTTP: infer, generate and generate_stream, with Triton's shapes of answers and errors."""

import json
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from fakes import FakeHandle
from gateways import KEY, KEY_SHA256, GatewayHandle, config, start_gateway
from peers import Peer

INFER_SIZE = "inference-header-content-length"


@pytest.fixture(scope="module")
def door(fakes: tuple[FakeHandle, FakeHandle]) -> Iterator[GatewayHandle]:
    """Its second model's name has a slash, and its engine is the plain one."""
    settings = config(fakes[0].url)
    plain = config(fakes[0].url, model="org/plain", deployment={"engine": "openai", "model": "m"})["models"]
    with start_gateway(settings | {"models": settings["models"] | plain}) as handle:
        yield handle


@pytest.fixture
def http(door: GatewayHandle, fake: FakeHandle) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{door.url}/v2", timeout=60) as client:
        yield client


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.text.endswith("\n\n")
    return [json.loads(block.removeprefix("data: ")) for block in answer.text.split("\n\n")[:-1]]


def generate(http: httpx.Client, verb: str = "generate", model: str = "m", **body: Any) -> httpx.Response:
    return http.post(f"/models/{model}/{verb}", json={"text_input": "hello there"} | body)


def test_health_and_readiness_are_statuses(http: httpx.Client) -> None:
    paths = (
        "/health/live",
        "/health/ready",
        "/models/m/ready",
        "/models/m/versions/1/ready",
        "/models/org/plain/ready",
    )
    assert [http.get(path).status_code for path in paths] == [200] * 5
    assert [http.get(path).status_code for path in ("/models/x/ready", "/models/m/versions/2/ready")] == [400, 400]
    assert http.get("/health/live").content == b""


def test_the_server_and_its_models_are_described(http: httpx.Client) -> None:
    assert httpx.get(str(http.base_url).rstrip("/")).json()["name"] == "penstock"
    for path in ("/models/m", "/models/m/versions/1"):
        metadata = http.get(path).json()
        assert (metadata["name"], metadata["versions"]) == ("m", ["1"])
        assert {"name": "max_tokens", "datatype": "INT32", "shape": [1]} in metadata["inputs"]
    assert http.get("/models/m/config").json()["model_transaction_policy"] == {"decoupled": True}
    index = http.post("/repository/index", json={}).json()
    assert index == [{"name": name, "version": "1", "state": "READY"} for name in ("m", "org/plain")]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/models/nobody", 404),
        ("GET", "/models/m/versions/9", 404),
        ("GET", "/nothing/here", 404),
        ("GET", "/models/m/generate", 404),
        ("POST", "/models/m/predict", 404),
        ("POST", "/models/generate", 404),
        ("POST", "/models/nobody/generate", 404),
        ("POST", "/models/m/versions/9/generate", 404),
    ],
)
def test_an_error_is_one_text(http: httpx.Client, method: str, path: str, status: int) -> None:
    answer = http.request(method, path, json={"text_input": "x"})
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert isinstance(answer.json()["error"], str)


def test_generate_answers_with_a_key_for_each_output(http: httpx.Client, fake: FakeHandle) -> None:
    fake.script({"tokens": ["one", " two"]})
    answer = generate(http, id="q7", parameters={"max_tokens": 9, "exclude_input_in_output": True}, stop_words="")
    assert answer.json() == {
        "id": "q7", "model_name": "m", "model_version": "1", "text_output": "one two", "finish_reason": "stop",
    }  # fmt: skip
    body = fake.stats()["last_requests"][-1]["body"]
    assert body == {"model": "m", "prompt": "hello there", "max_tokens": 9, "temperature": 0}
    echoed = generate(http, return_num_output_tokens=True).json()
    assert (echoed["text_output"], echoed["num_output_tokens"]) == ("hello thereone two", 2)


def test_a_models_name_may_hold_slashes_and_escapes(http: httpx.Client, fake: FakeHandle) -> None:
    for name in ("org/plain", "org%2Fplain", "org/plain/versions/1"):
        answer = generate(http, model=name).json()
        assert (answer["model_name"], answer["finish_reason"]) == ("org/plain", "stop")


def test_generate_stream_brings_pieces_and_no_done(http: httpx.Client, fake: FakeHandle) -> None:
    fake.script({"tokens": ["a", "b", "c"], "itl_s": 0.02})
    answer = generate(http, "generate_stream", id="s", return_num_output_tokens=True)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    found = events(answer)
    assert "".join(event["text_output"] for event in found) == "abc"
    assert [event.get("finish_reason") for event in found] == [None] * (len(found) - 1) + ["stop"]
    assert found[-1]["num_output_tokens"] == 3
    assert {event["id"] for event in found} == {"s"}


def test_generate_stream_may_be_asked_for_one_answer(http: httpx.Client, fake: FakeHandle) -> None:
    fake.script({"tokens": ["a", "b"]})
    [event] = events(generate(http, "generate_stream", stream=False))
    assert event["text_output"] == "hello thereab"


def test_a_late_failure_is_the_last_event(http: httpx.Client, fake: FakeHandle) -> None:
    fake.script({"tokens": 5, "itl_s": 0.02, "error_event": {"after_chunks": 2, "message": "out of luck"}})
    answer = generate(http, "generate_stream")
    assert answer.status_code == 200
    *pieces, error = events(answer)
    assert pieces
    assert error == {"error": "out of luck"}


@pytest.mark.parametrize("verb", ["generate", "generate_stream", "infer"])
def test_an_early_failure_is_a_status(http: httpx.Client, fake: FakeHandle, verb: str) -> None:
    fake.script({"error": {"status": 503, "message": "busy"}})
    body = {"inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [1], "data": ["x"]}]}
    answer = http.post(f"/models/m/{verb}", json=body if verb == "infer" else {"text_input": "x"})
    assert (answer.status_code, answer.json()) == (503, {"error": "busy"})
    assert answer.headers["retry-after"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not a JSON object"),
        (b"[]", "not a JSON object"),
        (b'{"text_input": "\xff"}', "not a JSON object"),
        (b"{}", "needs the input 'text_input'"),
        (b'{"text_input": 1}', "'text_input' must have values of the datatype BYTES"),
        (b'{"text_input": ["a", "b"]}', "'text_input' must have the shape"),
        (b'{"text_input": "x", "max_tokens": "5"}', "'max_tokens' must have values of the datatype INT32"),
        (b'{"text_input": "x", "max_tokens": true}', "'max_tokens' must have values of the datatype INT32"),
        (b'{"text_input": "x", "max_tokens": 2.5}', "'max_tokens' must have values of the datatype INT32"),
        (b'{"text_input": "x", "prompt": "y"}', "Unexpected input 'prompt'"),
        (b'{"text_input": "x", "seed": 1, "parameters": {"seed": 2}}', "'seed' stands at the top and in 'parameters'"),
        (b'{"text_input": "x", "parameters": []}', "'parameters' must be an object"),
        (b'{"text_input": "x", "stream": true}', "'stream' needs ModelStreamInfer, or generate_stream"),
        (b'{"text_input": "x", "temperature": 3}', "Invalid 'temperature'"),
    ],
)
def test_a_wrong_body_is_told_by_its_key(http: httpx.Client, fake: FakeHandle, body: bytes, words: str) -> None:
    answer = http.post("/models/m/generate", content=body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]
    assert fake.stats()["requests"] == 0


def test_what_the_engine_does_not_take_is_refused_in_the_tensors_name(http: httpx.Client, fake: FakeHandle) -> None:
    answer = generate(http, model="org/plain", bad_words=["no"])
    assert (answer.status_code, "'bad_words' is not supported" in answer.json()["error"]) == (400, True)
    constrained = generate(http, model="org/plain", guided_decoding_guide_type="regex", guided_decoding_guide="a")
    assert "'guided_decoding_guide' is not supported" in constrained.json()["error"]
    assert fake.stats()["requests"] == 0


def test_infer_takes_and_gives_tensors_as_json(http: httpx.Client, fake: FakeHandle) -> None:
    fake.script({"tokens": ["one"]})
    inputs = [
        {"name": "text_input", "datatype": "BYTES", "shape": [1, 1], "data": [["hi"]]},
        {"name": "exclude_input_in_output", "datatype": "BOOL", "shape": [1, 1], "data": [[True]]},
    ]
    answer = http.post("/models/m/infer", json={"id": "7", "inputs": inputs, "outputs": [{"name": "text_output"}]})
    text = {"name": "text_output", "datatype": "BYTES", "shape": [1, 1], "data": ["one"]}
    assert answer.json() == {"id": "7", "model_name": "m", "model_version": "1", "outputs": [text]}


def test_infer_takes_and_gives_tensors_as_bytes(http: httpx.Client, fake: FakeHandle) -> None:
    """As tritonclient's HTTP client does unless it is told otherwise."""
    fake.script({"tokens": ["né"]})
    tail = struct.pack("<I2s", 2, b"hi") + b"\x01" + struct.pack("<f", 0.5)
    inputs = [
        {"name": name, "datatype": kind, "shape": [1], "parameters": {"binary_data_size": size}}
        for name, kind, size in (
            ("text_input", "BYTES", 6), ("return_num_output_tokens", "BOOL", 1), ("temperature", "FP32", 4),
        )
    ]  # fmt: skip
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    answer = http.post("/models/m/infer", content=head + tail, headers={INFER_SIZE: str(len(head))})
    size = int(answer.headers[INFER_SIZE])
    told, raw = json.loads(answer.content[:size]), answer.content[size:]
    assert [output["name"] for output in told["outputs"]] == ["text_output", "finish_reason", "num_output_tokens"]
    assert raw == struct.pack("<I5s", 5, "hiné".encode()) + struct.pack("<I4s", 4, b"stop") + struct.pack("<i", 1)
    assert fake.stats()["last_requests"][-1]["body"]["temperature"] == 0.5


@pytest.mark.parametrize(
    ("size", "given", "words"),
    [
        ("9999", 4, "Inference-Header-Content-Length is not within the body"),
        ("x", 4, "Inference-Header-Content-Length is not within the body"),
        (None, 99, "'binary_data_size' of 'text_input' is not within the body"),
        (None, 3, "end in the middle of an element"),
        (None, 6, "belong to no input"),
    ],
)
def test_bytes_that_do_not_add_up_are_refused(http: httpx.Client, size: str | None, given: int, words: str) -> None:
    tail = struct.pack("<I2s", 2, b"hi") + (b"more" if given == 6 else b"")
    tensor = {"name": "text_input", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": given}}
    head = json.dumps({"inputs": [tensor]}).encode()
    answer = http.post("/models/m/infer", content=head + tail, headers={INFER_SIZE: size or str(len(head))})
    assert answer.status_code == 400
    assert words in answer.json()["error"]


def test_a_key_is_needed_where_there_are_keys_but_not_for_health(fake: FakeHandle) -> None:
    settings = config(fake.url, auth={"keys": {"alice": {"sha256": KEY_SHA256}}})
    with start_gateway(settings) as gateway, httpx.Client(base_url=f"{gateway.url}/v2", timeout=60) as http:
        assert http.get("/health/ready").status_code == 200
        assert http.get("/models/m").status_code == 401
        refused = generate(http)
        assert (refused.status_code, list(refused.json())) == (401, ["error"])
        http.headers["authorization"] = f"Bearer {KEY}"
        assert http.get("/models/m").status_code == 200
        assert generate(http).status_code == 200


def test_a_client_that_leaves_stops_the_engine(door: GatewayHandle, fake: FakeHandle) -> None:
    fake.script({"hang": 2})
    body = b'{"text_input": "x"}'
    for verb, seen in (("generate_stream", b"text_output"), ("generate", b"")):
        with Peer(door.port) as peer:
            head = f"POST /v2/models/m/{verb} HTTP/1.1\r\nhost: t\r\ncontent-length: {len(body)}\r\n\r\n"
            peer.send(head.encode() + body).wait_for(seen)
            fake.wait(lambda stats: stats["active"] == 1)
        fake.wait(lambda stats: stats["active"] == 0)
    assert fake.stats()["aborted"] == 2


def test_a_request_is_counted_under_its_door(http: httpx.Client, door: GatewayHandle) -> None:
    def counted(outcome: str) -> float:
        return door.metric("penstock_requests_total", endpoint="kserve", outcome=outcome)

    before = counted("ok"), counted("client_error")
    generate(http)
    http.post("/models/m/explain")
    assert (counted("ok"), counted("client_error")) == (before[0] + 1, before[1] + 1)


def test_a_number_that_fp32_does_not_hold_is_refused_by_its_tensor(http: httpx.Client, fake: FakeHandle) -> None:
    text = {"name": "text_input", "datatype": "BYTES", "shape": [1], "data": ["x"]}
    raw = {"name": "temperature", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}
    head = json.dumps({"inputs": [text, raw]}).encode()
    answers = [
        http.post("/models/m/infer", content=head + struct.pack("<f", value), headers={INFER_SIZE: str(len(head))})
        for value in (float("nan"), float("-inf"))
    ]
    answers += [generate(http, temperature=1e300), generate(http, temperature=-(10**40))]
    assert [answer.status_code for answer in answers] == [400] * 4
    assert {answer.json()["error"] for answer in answers} == {
        "The input 'temperature' must be a finite number of 32 bits."
    }
    assert fake.stats()["requests"] == 0


def test_a_size_of_thousands_of_digits_is_not_within_the_body(http: httpx.Client) -> None:
    answer = http.post("/models/m/infer", content=b"{}", headers={INFER_SIZE: "9" * 5000})
    assert (answer.status_code, "within the body" in answer.json()["error"]) == (400, True)
