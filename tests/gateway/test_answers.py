"""What clients get: the engine's bytes, and around them only what must differ."""

import json
import re
from typing import Any

import httpx
import pytest

from fakes import FakeHandle
from gateways import GatewayHandle

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def chat(gateway: GatewayHandle, **fields: object) -> httpx.Response:
    return httpx.post(f"{gateway.url}/v1/chat/completions", json=CHAT | fields, timeout=60)


def test_a_plain_answer_is_the_engines_own_bytes(gateway: GatewayHandle, fake: FakeHandle) -> None:
    ours = chat(gateway)
    theirs = httpx.post(f"{fake.url}/v1/chat/completions", json=CHAT)
    assert ours.status_code == 200
    assert ours.headers["content-type"] == "application/json"
    drop = ("id", "created")
    assert {k: v for k, v in ours.json().items() if k not in drop} == {
        k: v for k, v in theirs.json().items() if k not in drop
    }


def test_a_plain_request_goes_upstream_byte_for_byte(gateway: GatewayHandle, fake: FakeHandle) -> None:
    body = b'{ "model":"m" , "messages":[{"role":"user","content":"h\\u00e9 \xc3\xa9"}],"temperature":0.50 }'
    fake.script({"echo": "raw"})  # answers with what it was sent
    answer = httpx.post(f"{gateway.url}/v1/chat/completions", content=body).json()
    assert answer["choices"][0]["message"]["content"].encode() == body


def test_a_stream_is_the_engines_own_bytes(gateway: GatewayHandle, fake: FakeHandle) -> None:
    fields = {
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": '{"fake": {"tokens": ["a", "é", "\\n", "\\"model\\":\\"m\\""]}}'}],
    }
    ours = chat(gateway, **fields)
    theirs = httpx.post(f"{fake.url}/v1/chat/completions", json=CHAT | fields)
    assert ours.headers["content-type"].startswith("text/event-stream")
    assert events(ours.text) == events(theirs.text)
    assert ours.text.endswith("data: [DONE]\n\n")


def events(text: str) -> list[object]:
    found: list[object] = []
    for line in text.splitlines():
        if line.startswith("data: {"):
            event = json.loads(line[6:])
            found.append({key: value for key, value in event.items() if key not in ("id", "created")})
        elif line:
            found.append(line)
    return found


def test_usage_is_asked_of_the_engine_but_kept_from_a_client_who_did_not_ask(
    gateway: GatewayHandle, fake: FakeHandle
) -> None:
    before = gateway.metric("penstock_output_tokens_total", model="m")
    answer = chat(gateway, stream=True)
    assert fake.stats()["last_requests"][-1]["body"]["stream_options"] == {"include_usage": True}
    assert all(event.get("choices") for event in events(answer.text) if isinstance(event, dict))
    assert gateway.metric("penstock_output_tokens_total", model="m") > before


@pytest.mark.parametrize("newline", ["lf", "crlf", "cr"])
@pytest.mark.parametrize("write_bytes", [None, 1, 7])
def test_events_in_pieces_reach_the_client_whole(
    gateway: GatewayHandle, fake: FakeHandle, newline: str, write_bytes: int | None
) -> None:
    fake.script(
        {"tokens": ["héllo", " 世界", "!"], "newline": newline, "write_bytes": write_bytes, "write_pause_s": 0.0}
    )
    answer = chat(gateway, stream=True)
    text = "".join(
        choice["delta"].get("content") or ""
        for event in events(answer.text)
        if isinstance(event, dict)
        for choice in event["choices"]
    )
    assert text == "héllo 世界!"
    assert answer.text.rstrip().endswith("data: [DONE]")


def test_a_stream_without_done_gets_one(gateway: GatewayHandle, fake: FakeHandle) -> None:
    fake.script({"done": False})
    assert chat(gateway, stream=True).text.count("[DONE]") == 1


def test_keep_alive_comments_are_relayed_and_count_as_nothing(gateway: GatewayHandle, fake: FakeHandle) -> None:
    before = gateway.metric("penstock_request_ttft_seconds_count", model="m")
    itl = gateway.metric("penstock_request_itl_seconds_count", model="m")
    fake.script({"tokens": ["a", "b"], "itl_s": 0.15, "keep_alive_s": 0.05})
    assert "\n:" in "\n" + chat(gateway, stream=True).text
    assert gateway.metric("penstock_request_ttft_seconds_count", model="m") == before + 1
    assert gateway.metric("penstock_request_itl_seconds_count", model="m") == itl + 1


def test_an_unknown_model_is_404_model_not_found(gateway: GatewayHandle) -> None:
    answer = chat(gateway, model="gpt-99")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


def test_a_field_no_engine_takes_is_refused_by_name(gateway: GatewayHandle) -> None:
    answer = chat(gateway, guided_json={})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "guided_json")


def test_the_callers_name_is_taken_everywhere(gateway: GatewayHandle) -> None:
    assert chat(gateway, user="u-1", safety_identifier="s-1").status_code == 200


def test_the_request_id_is_echoed_and_sent_upstream(gateway: GatewayHandle, fake: FakeHandle) -> None:
    answer = httpx.post(f"{gateway.url}/v1/chat/completions", json=CHAT, headers={"x-request-id": "abc-1"})
    assert answer.headers["x-request-id"] == "abc-1"
    assert fake.stats()["last_requests"][-1]["headers"]["x-request-id"] == "abc-1"


@pytest.mark.parametrize("given", [None, "a b", "x" * 129, "\\r\\n"])
def test_every_answer_has_a_request_id(gateway: GatewayHandle, fake: FakeHandle, given: str | None) -> None:
    headers = {"x-request-id": given} if given else {}
    for path in ("/v1/chat/completions", "/v1/nothing", "/health"):
        answer = httpx.post(f"{gateway.url}{path}", json=CHAT, headers=headers)
        assert len(answer.headers["x-request-id"]) == 32


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/chat", "/v1/files", "/v3/health/ready", "/v1/chat/completions/x"])
def test_an_unknown_path_is_404_in_openais_shape(gateway: GatewayHandle, path: str) -> None:
    answer = httpx.get(gateway.url + path)
    assert answer.status_code == 404
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/health", "/v1/models"])
def test_a_wrong_method_is_405_in_openais_shape(gateway: GatewayHandle, path: str) -> None:
    answer = httpx.delete(gateway.url + path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")


@pytest.mark.parametrize("shape", ["openai", "vllm", "sglang", "string", "fastapi", "lightllm", "text", "empty"])
@pytest.mark.parametrize("stream", [True, False])
def test_every_shape_of_engine_error_becomes_openais(
    gateway: GatewayHandle, fake: FakeHandle, shape: str, stream: bool
) -> None:
    fake.script({"error": {"status": 400, "message": "too hot", "shape": shape}})
    answer = chat(gateway, stream=stream)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["code"] is None or isinstance(error["code"], str)
    assert shape == "empty" or "too hot" in error["message"]


def test_an_engine_that_refuses_our_key_is_our_fault_not_the_clients(gateway: GatewayHandle, fake: FakeHandle) -> None:
    fake.script({"error": {"status": 401}})
    assert chat(gateway).status_code == 502


def test_an_overloaded_engine_is_503_with_retry_after(gateway: GatewayHandle, fake: FakeHandle) -> None:
    fake.script({"error": {"status": 503, "retry_after": 7}})
    answer = chat(gateway)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")


def test_models_lists_what_can_be_asked_for(gateway: GatewayHandle) -> None:
    listed = httpx.get(f"{gateway.url}/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["m"]
    assert listed["data"][0]["max_model_len"] > 0
    assert httpx.get(f"{gateway.url}/v1/models/m").json() == listed["data"][0]
    assert httpx.get(f"{gateway.url}/v1/models/org/none").json()["error"]["code"] == "model_not_found"


def test_embeddings_are_relayed(gateway: GatewayHandle, fake: FakeHandle) -> None:
    body = {"model": "m", "input": ["a", "b"], "encoding_format": "base64"}
    answer = httpx.post(f"{gateway.url}/v1/embeddings", json=body).json()
    assert [item["index"] for item in answer["data"]] == [0, 1]
    assert isinstance(answer["data"][0]["embedding"], str)


def test_the_description_names_every_route_and_field(gateway: GatewayHandle) -> None:
    document = httpx.get(f"{gateway.url}/openapi.json").json()
    assert {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/ready"} <= set(
        document["paths"]
    )
    schema = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"messages", "tools", "structured_outputs"} <= set(schema["properties"])
    assert schema["example"]["model"] == "m"


def test_the_page_of_the_description_needs_nothing_from_elsewhere(gateway: GatewayHandle) -> None:
    page = httpx.get(f"{gateway.url}/docs").text
    assets = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert assets
    for asset in assets:
        assert asset.startswith("/")
        assert httpx.get(gateway.url + asset).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "param"),
    [
        ("GET", "/v1/responses/resp_x/input_items?limit=0", None, "limit"),
        ("POST", "/admin/adapters", {"name": "a", "model": "m"}, "path"),
        ("POST", "/admin/adapters", [], None),
    ],
)
def test_what_the_framework_refuses_is_told_without_our_files(
    gateway: GatewayHandle, method: str, path: str, body: Any, param: str | None
) -> None:
    answer = httpx.request(method, gateway.url + path, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, "invalid_value")
    assert ".py" not in error["message"]
