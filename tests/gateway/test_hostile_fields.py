"""Valid JSON that no client means: every door that reads inside its fields refuses it by name, and never fails."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from fakes import FakeHandle
from gateways import GatewayHandle, config, start_gateway

HI = [{"role": "user", "content": "hi"}]
RESPONSES = {"model": "m", "input": "hi"}
MESSAGES = {"model": "m", "messages": HI, "max_tokens": 5}
TOO_LARGE = "1e999"
"""A number that a scan of the JSON lets by and no decoder takes; in the cases below as a string."""


@pytest.fixture(scope="module")
def gateway(fakes: tuple[FakeHandle, FakeHandle]) -> Iterator[GatewayHandle]:
    """Its engine has neither Responses nor Messages: both are translated."""
    with start_gateway(config(fakes[0].url, deployment={"engine": "openvino"})) as handle:
        yield handle


@pytest.fixture(scope="module")
def small(fakes: tuple[FakeHandle, FakeHandle]) -> Iterator[GatewayHandle]:
    with start_gateway(config(fakes[0].url, server={"port": 0, "body_limit_bytes": 5000})) as handle:
        yield handle


def post(gateway: GatewayHandle, path: str, body: dict[str, Any]) -> httpx.Response:
    content = json.dumps(body).replace(f'"{TOO_LARGE}"', TOO_LARGE)
    return httpx.post(f"{gateway.url}{path}", content=content, timeout=60)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input", [{"role": "user", "content": [{"type": []}]}]),
        ("input", [{"role": "user", "content": TOO_LARGE}]),
        ("text", {"format": "json"}),
        ("text", {"format": {"type": []}}),
        ("reasoning", {"effort": ["high"]}),
        ("tools", [{"type": []}]),
        ("tool_choice", {"type": {}}),
        ("chat_template_kwargs", {"a": TOO_LARGE}),
        ("conversation", TOO_LARGE),
    ],
)
def test_responses_refuses_what_is_not_meant(gateway: GatewayHandle, fake: FakeHandle, field: str, value: Any) -> None:
    answer = post(gateway, "/v1/responses", RESPONSES | {field: value})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith(field)
    assert fake.stats()["requests"] == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("messages", [{"role": "user", "content": []}]),
        ("messages", [{"role": "user", "content": [{"type": "image"}]}]),
        ("messages", [{"role": "user", "content": [{"type": "image", "source": "x"}]}]),
        ("messages", [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [{}]}]}]),
        ("tool_choice", {"type": []}),
        ("thinking", {"type": 5}),
        ("output_config", {"format": "json"}),
        ("output_config", {"effort": {}}),
        ("metadata", {"user_id": TOO_LARGE}),
        ("mcp_servers", [TOO_LARGE]),
    ],
)
def test_messages_refuses_what_is_not_meant(gateway: GatewayHandle, fake: FakeHandle, field: str, value: Any) -> None:
    answer = post(gateway, "/v1/messages", MESSAGES | {field: value})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error"), answer.text
    assert field in answer.json()["error"]["message"]
    assert fake.stats()["requests"] == 0


def test_an_image_beside_a_number_without_end_is_refused(gateway: GatewayHandle, fake: FakeHandle) -> None:
    part = {"type": "image_url", "image_url": {"url": "data:,"}, "size": TOO_LARGE}
    answer = post(gateway, "/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": [part]}]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")


@pytest.mark.parametrize(
    ("method", "path", "size", "status"),
    [
        ("POST", "/v1/messages", 10_000, 413),
        ("POST", "/v2/models/m/infer", 10_000, 413),
        ("POST", "/v1/chat/completions", 10_000, 413),
        ("GET", "/v1/messages", 0, 405),
        ("POST", "/v1/messages/batches", 0, 404),
    ],
)
def test_what_no_door_has_seen_is_refused_in_the_paths_own_words(
    small: GatewayHandle, method: str, path: str, size: int, status: int
) -> None:
    answer = httpx.request(method, small.url + path, content=b"x" * size)
    said = answer.json()
    assert answer.status_code == status
    if path.startswith("/v2/"):
        assert isinstance(said["error"], str)
    elif path.startswith("/v1/messages"):
        assert (said["type"], set(said["error"])) == ("error", {"type", "message"})
        assert said["request_id"] == answer.headers["x-request-id"]
    else:
        assert said["error"]["code"] == "request_too_large"
