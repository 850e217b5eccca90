"""What the gateway relies on about SGLang, asked of the real one; and its adapters, through the gateway.

Apart from test_conformance.py, which says what every engine does: here is what this engine does differently. When a
newer SGLang fails here, gateway/backends/sglang.py and docs/engines/sglang.md have to change with it.
"""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from engines_under_test import MODEL, EngineUnderTest, deployment_of, running_requests, served_by
from stack_under_test import ROOT, RunningStack

SGLANG = EngineUnderTest("sglang/cpu", "sglang", "sglang:num_running_reqs", installs="sglang")
ADAPTER = ROOT / "model_repo/adapters/captain"
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
BROKEN: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no such type"}}}

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module", params=[SGLANG.param()])
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    with served_by(request.param, tmp_path_factory.mktemp("sglang")) as running:
        yield running


@pytest.fixture(scope="module")
def client(stack: RunningStack) -> Iterator[OpenAI]:
    with OpenAI(base_url=stack.base_url, api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def engine(stack: RunningStack) -> Iterator[httpx.Client]:
    """Straight to SGLang, past the gateway."""
    (replica,) = deployment_of(stack)["replicas"].values()
    with httpx.Client(base_url=replica["url"], timeout=120) as engine:
        yield engine


def ask(engine: httpx.Client, model: str = MODEL, **fields: Any) -> httpx.Response:
    body = {"model": model, "messages": QUESTION, "temperature": 0, "max_tokens": 12} | fields
    return engine.post("/v1/chat/completions", json=body)


def said(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def events(answer: httpx.Response) -> list[Any]:
    """The data of an SSE body, without the end mark that has to be there."""
    *data, end = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert end == "[DONE]"
    return [json.loads(one) for one in data]


# ---- the engine itself ----


def test_an_unknown_model_is_answered_by_the_base_model(engine: httpx.Client) -> None:
    answer = ask(engine, model="nonesuch")
    assert said(answer) == said(ask(engine))
    assert answer.json()["model"] == "nonesuch"


def test_errors_are_flat_and_their_code_is_a_number(engine: httpx.Client) -> None:
    for refused in (ask(engine, temperature=-1), ask(engine, response_format=BROKEN), ask(engine, messages=None)):
        body = refused.json()
        assert refused.status_code == body["code"] == 400
        assert body["object"] == "error"
        assert body["message"]
    assert engine.post("/v1/nope", json={}).json() == {"detail": "Not Found"}


def test_in_a_stream_a_refusal_comes_inside_a_200(engine: httpx.Client) -> None:
    answer = ask(engine, response_format=BROKEN, stream=True)
    assert answer.status_code == 200
    (event,) = events(answer)
    assert (event["error"]["code"], event["error"]["type"]) == (400, "BAD_REQUEST")


def test_a_stream_has_a_role_a_finish_and_a_usage_event_of_their_own(engine: httpx.Client) -> None:
    first, *contents, finish, usage = events(ask(engine, stream=True, stream_options={"include_usage": True}))
    assert first["choices"][0]["delta"] == {"reasoning_content": None, "role": "assistant", "content": ""}
    assert all(event["choices"][0]["delta"].keys() == {"reasoning_content", "content"} for event in contents)
    assert (finish["choices"][0]["finish_reason"], finish["choices"][0]["matched_stop"]) == ("stop", 2039)
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == len(contents) + 1


def test_a_seed_is_taken_and_ignored(engine: httpx.Client) -> None:
    """Which is why a client who wants one is told (docs/engines/sglang.md)."""
    answers = [said(ask(engine, temperature=1.8, seed=11, max_tokens=24)) for _ in range(6)]
    assert len(set(answers)) > 1


def test_an_aborted_answer_ends_like_a_good_one(engine: httpx.Client) -> None:
    fields = {"messages": QUESTION, "model": MODEL, "max_tokens": 1900, "ignore_eos": True, "rid": "to-be-aborted"}
    with engine.stream("POST", "/v1/chat/completions", json=fields | {"stream": True}) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert engine.post("/abort_request", json={"rid": "to-be-aborted"}).status_code == 200
        *_, finish, end = [line for line in lines if line]
    assert end == "data: [DONE]"
    assert json.loads(finish.removeprefix("data: "))["choices"][0]["finish_reason"] == "abort"


def test_one_request_id_serves_one_request_at_a_time(engine: httpx.Client) -> None:
    fields = {"messages": QUESTION, "model": MODEL, "max_tokens": 1900, "ignore_eos": True, "rid": "mine"}
    with engine.stream("POST", "/v1/chat/completions", json=fields | {"stream": True}) as answer:
        next(answer.iter_lines())
        second = ask(engine, rid="mine")
    assert second.status_code == 400
    assert "Duplicate request ID" in second.json()["message"]


def test_a_prefix_asked_again_comes_from_the_cache(engine: httpx.Client) -> None:
    prompt = [{"role": "user", "content": "a tale of two rivers " * 60}]
    first, again = (ask(engine, messages=prompt, max_tokens=1).json()["usage"] for _ in range(2))
    assert first["prompt_tokens_details"]["cached_tokens"] < 20
    assert again["prompt_tokens_details"]["cached_tokens"] == again["prompt_tokens"] - 1


def test_asking_whether_it_is_ready_generates_nothing(engine: httpx.Client) -> None:
    """Unlike /health, which takes a second for a token: hence the backend's `probe_path`."""

    def generated() -> float:
        page = engine.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in page if line.startswith("sglang:generation_tokens_total"))

    earlier = -1.0
    while earlier != (before := generated()):  # what other tests have asked for is still being counted
        earlier = before
        time.sleep(1)
    assert [engine.get("/ready").status_code for _ in range(3)] == [200, 200, 200]
    assert generated() == before


# ---- through the gateway ----


def test_a_refusal_inside_a_200_is_a_400_at_the_gateway(client: OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="no such type"):
            client.chat.completions.create(model=MODEL, messages=QUESTION, response_format=BROKEN, stream=stream)


def test_clients_see_neither_null_reasoning_nor_another_models_name(client: OpenAI) -> None:
    chunks = list(client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=5, stream=True))
    assert {chunk.model for chunk in chunks} == {MODEL}
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model=f"{MODEL}:captain", messages=QUESTION)


def test_an_adapter_comes_and_goes_and_never_falls_back_to_the_base(
    client: OpenAI, engine: httpx.Client, stack: RunningStack
) -> None:
    admin = stack.base_url.removesuffix("/v1") + "/admin/adapters"
    base = said(ask(engine))
    order = {"name": "captain", "model": MODEL, "path": str(ADAPTER)}
    assert httpx.post(admin, json=order, timeout=60).status_code == 201
    answer = client.chat.completions.create(model="captain", messages=QUESTION, temperature=0, max_tokens=12)
    adapted = answer.choices[0].message.content or ""
    assert adapted.strip().startswith("Aye, captain:")
    assert answer.model == "captain"
    assert said(ask(engine)) == base
    assert said(ask(engine, model="captain")) == base, "a plain adapter name reached the adapter: simplify the backend"
    assert said(ask(engine, model=f"{MODEL}:captain")) == adapted
    assert {"captain", MODEL} == {model.id for model in client.models.list()}
    assert httpx.delete(f"{admin}/captain", timeout=60).status_code == 204
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="captain", messages=QUESTION)


def test_an_unloaded_adapter_comes_back_when_the_engine_itself_is_asked(engine: httpx.Client) -> None:
    """So only the gateway's own list says whether an adapter is served."""
    order = {"lora_name": "again", "lora_path": str(ADAPTER)}
    assert engine.post("/load_lora_adapter", json=order).json()["success"]
    assert engine.post("/load_lora_adapter", json=order).status_code == 400
    assert engine.post("/unload_lora_adapter", json={"lora_name": "again"}).json()["success"]
    assert said(ask(engine, model=f"{MODEL}:again")).strip().startswith("Aye, captain:")
    assert "again" in {model["id"] for model in engine.get("/v1/models").json()["data"]}
    assert engine.post("/unload_lora_adapter", json={"lora_name": "again"}).json()["success"]
    assert ask(engine, model=f"{MODEL}:never-loaded").status_code == 400


def test_a_client_that_leaves_a_whole_answer_frees_the_engine(client: OpenAI, stack: RunningStack) -> None:
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=1).chat.completions.create(
            model=MODEL, messages=QUESTION, max_tokens=1900, extra_body={"ignore_eos": True}
        )
    deadline = time.monotonic() + 60
    while running_requests(SGLANG, stack):
        assert time.monotonic() < deadline
        time.sleep(0.1)
