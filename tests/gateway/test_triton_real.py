"""The backend against the real tritonserver, over both wires and in front of each legacy model: one engine, one answer.

That this answer is also the embedded engine's, and that a client that leaves frees the engine, are claims of the
conformance suite (tests/e2e).
"""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from gateways import GatewayHandle, start_gateway
from triton_process import RunningTriton, marks, running_triton
from tritons import CHECKPOINT, chat, content, events, post, refusal

pytestmark = marks()
MODELS = ("tensorrt_llm", "tensorrt_llm_bls", "ensemble")
SERVED = [f"{model}-{scheme}" for model in MODELS for scheme in ("grpc", "http")]
QUESTIONS = ["What is the capital of France?", "Sort: pear, apple, fig", "法国的首都是哪里？", "Count to 12"]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    with running_triton("cpu.yaml", tmp_path_factory.mktemp("triton")) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(triton: RunningTriton) -> Iterator[GatewayHandle]:
    urls = {"grpc": f"grpc://{triton.grpc_url}", "http": str(triton.client.base_url).rstrip("/")}
    models = {
        f"{model}-{scheme}": {
            "deployments": {
                "main": {"engine": "triton", "model": model, "checkpoint": str(CHECKPOINT), "probe_interval_s": 1,
                         "replicas": {"r": {"url": url}}}
            }
        }
        for model in MODELS
        for scheme, url in urls.items()
    }  # fmt: skip
    with start_gateway({"server": {"port": 0}, "models": models}) as handle:
        yield handle


def asked(question: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], "max_tokens": 24, **fields}


@pytest.mark.parametrize("model", SERVED)
def test_every_way_to_the_engine_gives_its_answer(gateway: GatewayHandle, model: str) -> None:
    for question in QUESTIONS:
        for fields in ({}, {"stop": ["a", "三"]}):
            expected = chat(gateway, model="tensorrt_llm-grpc", **asked(question, **fields))
            whole = chat(gateway, model=model, **asked(question, **fields))
            assert whole["choices"] == expected["choices"]
            if not fields:  # at a stop, text responses of several tokens are counted whole
                assert whole["usage"] == expected["usage"]
            got = events(gateway, model=model, **asked(question, **fields))
            if "ensemble" not in model:  # its stream decodes each step alone: characters break
                assert content(got) == expected["choices"][0]["message"]["content"]
            assert got[-2]["choices"][0]["finish_reason"] == expected["choices"][0]["finish_reason"]


@pytest.mark.parametrize("model", SERVED)
def test_structure_is_held(gateway: GatewayHandle, model: str) -> None:
    choices = ["north", "south (far)"]
    for wanted, pattern in (
        ({"choice": choices}, r"north|south \(far\)"),
        ({"regex": "(red|green)-[0-9]{3}"}, "(red|green)-[0-9]{3}"),
    ):
        answer = chat(gateway, model=model, **asked("x", structured_outputs=wanted, temperature=1, seed=3))
        assert re.fullmatch(pattern, answer["choices"][0]["message"]["content"])
    called = chat(gateway, model=model, **asked("Weather in Oslo?", tools=[TOOL], tool_choice="required"))
    function = called["choices"][0]["message"]["tool_calls"][0]["function"]
    assert function["name"] == "get_weather"
    assert called["choices"][0]["finish_reason"] == "tool_calls"


def test_logprobs_are_the_same_over_both_wires(gateway: GatewayHandle) -> None:
    by_grpc, by_http = (
        chat(gateway, model=f"tensorrt_llm-{scheme}", **asked(QUESTIONS[1], logprobs=True))["choices"][0]["logprobs"]
        for scheme in ("grpc", "http")
    )
    assert [entry["token"] for entry in by_grpc["content"]] == [entry["token"] for entry in by_http["content"]]
    assert [entry["logprob"] for entry in by_grpc["content"]] == pytest.approx(
        [entry["logprob"] for entry in by_http["content"]], abs=1e-4
    )


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_what_the_engine_refuses_is_a_400_and_the_next_request_works(gateway: GatewayHandle, scheme: str) -> None:
    model = f"tensorrt_llm-{scheme}"
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no such type"}}}
    for stream in (True, False):
        answer = post(gateway, model=model, **asked("x", response_format=form, stream=stream))
        assert refusal(answer)[0] == 400
        assert "no such type" in answer.json()["error"]["message"]
        assert not answer.json()["error"]["message"].startswith("data:")
    assert chat(gateway, model=model, **asked("hi"))["choices"]


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_eight_streams_at_once_say_the_same(gateway: GatewayHandle, scheme: str) -> None:
    model = f"tensorrt_llm-{scheme}"
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda _: content(events(gateway, model=model, **asked(QUESTIONS[3]))), range(8)))
    assert len(set(texts)) == 1
    assert texts[0]


def test_word_lists_need_grpc(gateway: GatewayHandle) -> None:
    fields = asked("x", model="tensorrt_llm-http", bad_words=["a"])
    assert refusal(post(gateway, **fields)) == (400, "bad_words", "unsupported_parameter")
