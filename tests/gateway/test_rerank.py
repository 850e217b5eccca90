"""/v1/rerank and /v1/score: relayed to engines that have them, refused by name elsewhere."""

from typing import Any

import httpx
import pytest

from fakes import FakeHandle, start_fake
from gateways import GatewayHandle, config, start_gateway

RERANK = {"query": "a wheel", "documents": ["a boat", "a wheel", "nothing"]}
SCORE = {"text_1": "a wheel", "text_2": ["a wheel", "nothing"]}


@pytest.fixture(scope="module")
def renamed(fakes: tuple[FakeHandle, FakeHandle]) -> Any:
    with start_gateway(config(fakes[0].url, model="public", deployment={"model": "m"})) as handle:
        yield handle


def post(gateway: GatewayHandle, path: str, body: dict[str, Any], model: str = "public") -> httpx.Response:
    return httpx.post(f"{gateway.url}/v1/{path}", json={"model": model, **body}, timeout=60)


def test_documents_come_back_in_the_order_of_their_relevance(renamed: GatewayHandle, fake: FakeHandle) -> None:
    answer = post(renamed, "rerank", {**RERANK, "top_n": 3, "user": "u"})
    assert answer.status_code == 200
    body = answer.json()
    assert [result["index"] for result in body["results"]] == [1, 0, 2]
    assert body["results"][0]["document"]["text"] == "a wheel"
    assert body["model"] == "public"
    sent = fake.stats()["last_requests"][-1]["body"]
    assert sent == {"model": "m", **RERANK, "top_n": 3}


def test_pairs_are_scored(renamed: GatewayHandle, fake: FakeHandle) -> None:
    body = post(renamed, "score", SCORE).json()
    assert [entry["score"] for entry in body["data"]] == [1.0, 0.0]
    assert body["model"] == "public"


def test_their_tokens_are_counted(renamed: GatewayHandle, fake: FakeHandle) -> None:
    def counted() -> float:
        return renamed.metric("penstock_input_tokens_total", model="public")

    before = counted()
    usage = post(renamed, "rerank", RERANK).json()["usage"]
    assert counted() - before == usage["prompt_tokens"] > 0
    assert renamed.metric("penstock_requests_total", endpoint="rerank", outcome="ok") >= 1


@pytest.mark.parametrize(("path", "body"), [("rerank", RERANK), ("score", SCORE)])
def test_an_engine_without_them_is_not_asked(fakes: Any, fake: FakeHandle, path: str, body: dict[str, Any]) -> None:
    with start_gateway(config(fakes[0].url, deployment={"engine": "openvino"})) as gateway:
        answer = post(gateway, path, body, model="m")
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "unsupported_endpoint"
    assert f"POST /v1/{path}" not in fake.stats()["paths"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("rerank", {"query": "a"}, "documents"),
        ("rerank", {"documents": ["a"]}, "query"),
        ("rerank", {"query": "a", "documents": []}, "documents"),
        ("rerank", {"query": "a", "documents": [{"image_url": "http://127.0.0.1"}]}, "documents"),
        ("rerank", {**RERANK, "nonsense": 1}, "nonsense"),
        ("rerank", {**RERANK, "return_documents": False}, "return_documents"),
        ("score", {"text_1": {"content": [{"image_url": "http://127.0.0.1"}]}, "text_2": "b"}, "text_1"),
    ],
)
def test_what_is_wrong_is_said_by_name(renamed: GatewayHandle, path: str, body: dict[str, Any], param: str) -> None:
    answer = post(renamed, path, body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_an_engines_failure_keeps_openais_shape(renamed: GatewayHandle, fake: FakeHandle) -> None:
    fake.script({"error": {"status": 500, "message": "no"}})
    answer = post(renamed, "rerank", RERANK)
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "no"


def test_sglangs_bare_list_has_the_shape_of_the_others() -> None:
    deployment = {"model": "m", "engine": "sglang"}
    with (
        start_fake("--model", "m", "--engine", "sglang") as fake,
        start_gateway(config(fake.url, model="public", deployment=deployment)) as gateway,
    ):
        body = post(gateway, "rerank", {**RERANK, "instruction": "Rank."}).json()
        assert fake.stats()["last_requests"][-1]["body"]["instruct"] == "Rank."
    assert [result["index"] for result in body["results"]] == [1, 0, 2]
    assert body["results"][0]["relevance_score"] == 1.0
    assert body["results"][0]["document"] == {"text": "a wheel"}
    assert body["model"] == "public"
    assert body["usage"]["prompt_tokens"] == 3
