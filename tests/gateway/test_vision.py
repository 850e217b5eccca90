"""Image parts: what reaches an engine, and what no client can make it fetch."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from fakes import FakeHandle
from gateway.api.images import _is_public, may_hold_media
from gateways import GatewayHandle, start_gateway

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
LIMIT_BYTES = 1000
PUBLIC = "8.8.8.8"  # an address is its own: nothing is looked up


def data_url(data: bytes = PNG, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


@pytest.fixture(scope="module")
def served(fakes: tuple[FakeHandle, FakeHandle]) -> Iterator[GatewayHandle]:
    """Model `v` reads images, `t` does not; both names of this machine are on the list of allowed hosts."""
    deployments = {
        name: {
            "deployments": {
                "main": {"engine": engine, "model": "m", "replicas": {"r0": {"url": fakes[0].url}},
                         "probe_interval_s": 0.2}
            }
        }
        for name, engine in (("v", "vllm"), ("t", "openvino"))
    }  # fmt: skip
    hosts = ["localhost", "127.0.0.1", "169.254.169.254", "::1", PUBLIC]
    vision = {"image_limit_bytes": LIMIT_BYTES, "images_per_request": 2, "allowed_hosts": hosts}
    with start_gateway({"server": {"port": 0}, "models": deployments, "vision": vision}) as handle:
        yield handle


def chat(*urls: Any, model: str = "v") -> tuple[str, dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    content = [{"type": "text", "text": "What is it?"}, *parts]
    messages = [{"role": "system", "content": "Look."}, {"role": "user", "content": content}]
    return "/v1/chat/completions", {"model": model, "messages": messages}


def response(url: Any, model: str = "v", **fields: Any) -> tuple[str, dict[str, Any]]:
    content = [{"type": "input_text", "text": "What is it?"}, {"type": "input_image", "image_url": url}]
    return "/v1/responses", {"model": model, "input": [{"role": "user", "content": content}], **fields}


def message(source: dict[str, Any], model: str = "v") -> tuple[str, dict[str, Any]]:
    content = [{"type": "text", "text": "What is it?"}, {"type": "image", "source": source}]
    return "/v1/messages", {"model": model, "max_tokens": 5, "messages": [{"role": "user", "content": content}]}


def base64_source(data: bytes = PNG, media_type: str = "image/png") -> dict[str, Any]:
    return {"type": "base64", "media_type": media_type, "data": base64.b64encode(data).decode()}


def post(served: GatewayHandle, asked: tuple[str, dict[str, Any]]) -> httpx.Response:
    path, body = asked
    return httpx.post(served.url + path, json=body, timeout=60)


def sent(fake: FakeHandle) -> dict[str, Any]:
    body: dict[str, Any] = fake.stats()["last_requests"][-1]["body"]
    return body


def generations(fake: FakeHandle) -> list[str]:
    return [path for path in fake.stats()["paths"] if path.startswith("POST")]


def test_a_data_url_reaches_the_engine_as_it_came(served: GatewayHandle, fake: FakeHandle) -> None:
    path, body = chat(data_url(), data_url(b"\xff\xd8\xff" + bytes(9), "image/jpeg"))
    assert post(served, (path, body)).status_code == 200
    assert sent(fake)["messages"] == body["messages"]


@pytest.mark.parametrize(
    "asked",
    [
        response(data_url()),
        message(base64_source()),
        message({"type": "url", "url": f"https://{PUBLIC}/a.png"}),
        chat(f"http://{PUBLIC}/a.png"),
    ],
)
def test_all_three_protocols_have_images(
    served: GatewayHandle, fake: FakeHandle, asked: tuple[str, dict[str, Any]]
) -> None:
    assert post(served, asked).status_code == 200


def test_translated_images_are_chats(served: GatewayHandle, fake: FakeHandle) -> None:
    assert post(served, response(data_url())).status_code == 200
    assert sent(fake)["messages"][0]["content"][1] == {"type": "image_url", "image_url": {"url": data_url()}}


@pytest.mark.parametrize("asked", [chat(data_url(), model="t"), response(data_url(), model="t"),
                                   message(base64_source(), model="t")])  # fmt: skip
def test_an_engine_that_reads_text_only_is_not_asked(
    served: GatewayHandle, fake: FakeHandle, asked: tuple[str, dict[str, Any]]
) -> None:
    answer = post(served, asked)
    assert answer.status_code == 400
    assert "reads text only" in answer.json()["error"]["message"]
    assert generations(fake) == []


REFUSED = [
    ("https://example.com/a.png", "example.com"),
    ("http://localhost/a.png", "not public"),
    ("http://127.0.0.1:8000/metrics", "not public"),
    ("http://169.254.169.254/latest/meta-data", "not public"),
    ("http://[::1]/a.png", "not public"),
    (f"http://user@{PUBLIC}/a.png", "credentials"),
    (f"http://127.0.0.1\\@{PUBLIC}/a.png", "backslashes"),
    (f"http://{PUBLIC}:nan/a.png", "cannot be read"),
    ("http://", "not one this gateway allows"),
    ("file:///etc/passwd", "only data: URLs"),
    ("ftp://localhost/a.png", "only data: URLs"),
    ("gopher://localhost/", "only data: URLs"),
    ("FILE:///etc/passwd", "only data: URLs"),
    ("/etc/passwd", "only data: URLs"),
    ("", "only data: URLs"),
    (None, "no URL"),
    (data_url(media_type="image/svg+xml"), "image/svg+xml"),
    (data_url(media_type="text/html"), "text/html"),
    (data_url(media_type="image/jpeg"), "not of the media type"),
    (data_url(b"RIFF0000WAVE" + bytes(20), "image/webp"), "not of the media type"),
    (data_url(PNG + bytes(LIMIT_BYTES)), f"larger than {LIMIT_BYTES} bytes"),
    ("data:image/png,rawbytes", "base64"),
    ("data:image/png;base64,!!!!", "not base64"),
    ("data:image/png;base64,", "not of the media type"),
]


@pytest.mark.parametrize(("url", "words"), REFUSED)
def test_no_door_lets_a_bad_image_through(served: GatewayHandle, fake: FakeHandle, url: Any, words: str) -> None:
    for path, body in (chat(url), response(url), response(url, store=False), message({"type": "url", "url": url})):
        answer = post(served, (path, body))
        assert answer.status_code == 400, (path, answer.text)
        said = answer.json()["error"]["message"]
        assert words in said
        assert "messages[" in said or "input[0].content[1]" in said
    assert generations(fake) == []


def test_the_message_says_which_part_it_is(served: GatewayHandle) -> None:
    error = post(served, chat(data_url(), "file:///x")).json()["error"]
    assert (error["param"], error["code"]) == ("messages[1].content[2]", "invalid_image")


def test_more_images_than_allowed_are_refused(served: GatewayHandle, fake: FakeHandle) -> None:
    answer = post(served, chat(data_url(), data_url(), data_url()))
    assert answer.status_code == 400
    assert "more than the 2" in answer.json()["error"]["message"]
    assert generations(fake) == []


def test_spelling_the_name_with_escapes_does_not_help(served: GatewayHandle, fake: FakeHandle) -> None:
    for path, body in (chat("http://127.0.0.1/x"), response("http://127.0.0.1/x", store=False)):
        for letter, escape in (("i", "\\u0069"), ("_", "\\u005f"), ("l", "\\u006C")):
            text = json.dumps(body).replace('"image_url":', f'"{"image_url".replace(letter, escape)}":')
            assert escape in text
            answer = httpx.post(served.url + path, content=text)
            assert answer.status_code == 400, answer.text
            assert "not public" in answer.json()["error"]["message"]
    assert generations(fake) == []


@pytest.mark.parametrize(
    "part",
    [
        {"type": "video_url", "video_url": {"url": "http://127.0.0.1/x"}},
        {"type": "audio_url", "audio_url": {"url": "http://127.0.0.1/x"}},
        {"type": "image_embeds", "image_embeds": "AAAA"},
        {"image_url": "http://127.0.0.1/x"},
        {"type": "input_image", "image_url": "http://127.0.0.1/x"},
        {"type": "input_file", "file_url": "http://127.0.0.1/x"},
        {"type": "image_url", "image_url": ["http://127.0.0.1/x"]},
        {"type": "input_image", "file_id": "file-1", "image_url": None},
        {"type": "document", "source": {"type": "url", "url": "http://127.0.0.1/x"}},
        {"type": "tool_result", "content": [{"type": "image", "source": {"type": "url", "url": "http://127.0.0.1/x"}}]},
    ],
)
def test_other_ways_to_name_a_url_are_refused_too(
    served: GatewayHandle, fake: FakeHandle, part: dict[str, Any]
) -> None:
    given = [{"role": "user", "content": [part]}]
    for path, name in (("/v1/chat/completions", "messages"), ("/v1/responses", "input"), ("/v1/messages", "messages")):
        body = {"model": "v", name: given} | ({"max_tokens": 5} if path == "/v1/messages" else {})
        assert post(served, (path, body)).status_code == 400
    tool = [{"type": "function_call_output", "call_id": "c", "output": [part]}]
    assert post(served, ("/v1/responses", {"model": "v", "input": tool, "store": False})).status_code == 400
    assert generations(fake) == []


def test_no_other_field_names_what_to_fetch(served: GatewayHandle, fake: FakeHandle) -> None:
    image = {"type": "image", "source": {"type": "url", "url": "http://127.0.0.1/x"}}
    mcp = {"type": "mcp", "server_label": "x", "server_url": "http://127.0.0.1/x"}
    hi = [{"role": "user", "content": "hi"}]
    for path, body in (
        ("/v1/messages", {"max_tokens": 5, "messages": hi, "system": [image]}),
        ("/v1/messages", {"max_tokens": 5, "messages": hi, "tools": [{"type": "web_fetch", "name": "web_fetch"}]}),
        ("/v1/responses", {"input": "hi", "store": False, "tools": [mcp]}),
    ):
        assert post(served, (path, {"model": "v", **body})).status_code == 400
    assert generations(fake) == []


def test_embeddings_are_of_text_alone(served: GatewayHandle, fake: FakeHandle) -> None:
    for given in ([{"image": "http://127.0.0.1/x"}], [{"text": "a", "image": "http://127.0.0.1/x"}], {"image": "x"}):
        answer = post(served, ("/v1/embeddings", {"model": "v", "input": given}))
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "input"
    for fine in ("a", ["a", "b"], [1, 2], [[1, 2], [3]]):
        assert post(served, ("/v1/embeddings", {"model": "v", "input": fine})).status_code == 200
    assert generations(fake) == ["POST /v1/embeddings"]


def test_text_that_talks_of_urls_is_text(served: GatewayHandle, fake: FakeHandle) -> None:
    body = {"model": "t", "messages": [{"role": "user", "content": 'Is "image_url" a name? \x00é "source"'}]}
    assert post(served, ("/v1/chat/completions", body)).status_code == 200
    assert sent(fake)["messages"] == body["messages"]
    assert not may_hold_media(b'{"messages":[{"role":"user","content":"a plain question of image and url"}]}')


@pytest.mark.parametrize(
    ("address", "is_public"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("169.254.169.254", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("2002:7f00:1::", False),
        ("64:ff9b::7f00:1", False),
    ],
)
def test_which_addresses_are_public(address: str, is_public: bool) -> None:
    assert _is_public(address) is is_public
