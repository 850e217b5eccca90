"""The fake as SGLang, trtllm-serve, LightLLM and MNN: the quirks for which the gateway has its backends."""

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from fakes import FakeHandle, start_fake
from gateway.backends.registry import backend_class

KINDS = ("vllm", "sglang", "trtllm", "lightllm", "mnn")


@pytest.fixture(scope="module")
def fakes() -> Iterator[dict[str, FakeHandle]]:
    with contextlib.ExitStack() as stack:
        flags = ("--model", "base", "--enable-lora")
        yield {kind: stack.enter_context(start_fake("--engine", kind, *flags)) for kind in KINDS}


@pytest.fixture(autouse=True)
def _clean(fakes: dict[str, FakeHandle]) -> None:
    for fake in fakes.values():
        fake.reset_script()
        fake.reset_stats()


def ask(fake: FakeHandle, path: str = "/v1/chat/completions", **fields: Any) -> httpx.Response:
    body = {"model": "base", "messages": [{"role": "user", "content": "hi"}]} | fields
    return httpx.post(fake.url + path, json=body, timeout=20)


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]


@pytest.mark.parametrize(("kind", "status"), [("vllm", 404), ("trtllm", 404), ("sglang", 200), ("lightllm", 200)])
def test_an_unknown_model_is_refused_or_answered_by_the_base(
    fakes: dict[str, FakeHandle], kind: str, status: int
) -> None:
    assert ask(fakes[kind], model="nobody").status_code == status
    assert fakes[kind].stats()["weights"] == ({"base": 1} if status == 200 else {})


def test_sglang_refuses_an_adapter_that_was_never_loaded(fakes: dict[str, FakeHandle]) -> None:
    answer = ask(fakes["sglang"], model="base:nobody")
    assert (answer.status_code, answer.json()["object"]) == (400, "error")


def test_sglang_says_keys_that_are_null_and_events_of_its_own(fakes: dict[str, FakeHandle]) -> None:
    fakes["sglang"].script({"extra_events": True})
    told = events(ask(fakes["sglang"], stream=True))
    assert told[1]["choices"][0]["delta"] == {
        "role": None, "content": "Water", "reasoning_content": None, "tool_calls": None
    }  # fmt: skip
    finish = next(event for event in told if event["choices"] and event["choices"][0]["finish_reason"])
    assert finish["choices"][0]["matched_stop"] == 2
    assert [event["sglext"].keys() for event in told if not event["choices"]] == [
        {"cached_tokens_details"}, {"output_ids"}
    ]  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        {"structured_outputs": {"regex": "x"}},
        {"safety_identifier": "x"},
        {"parallel_tool_calls": True},
        {"stream": True, "stream_options": {"include_obfuscation": False}},
        {"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]},
        {"max_tokens": 1, "max_completion_tokens": 1},
        {"priority": 2},
        {"top_k": -1},
    ],
)
def test_trtllm_refuses_every_field_it_does_not_know(fakes: dict[str, FakeHandle], fields: dict[str, Any]) -> None:
    answer = ask(fakes["trtllm"], **fields)
    assert answer.status_code == 400
    assert isinstance(answer.json()["error"], str)


def test_trtllm_says_usage_in_every_event_once_there_are_stream_options(fakes: dict[str, FakeHandle]) -> None:
    told = events(ask(fakes["trtllm"], stream=True, stream_options={}))
    assert all(event["usage"] for event in told)
    quiet = events(ask(fakes["trtllm"], stream=True, stream_options={"continuous_usage_stats": False}))
    assert [bool(event.get("usage")) for event in quiet] == [False] * (len(quiet) - 1) + [True]


def test_lightllms_word_for_a_bad_request_is_417(fakes: dict[str, FakeHandle]) -> None:
    answer = ask(fakes["lightllm"], messages=[])
    assert (answer.status_code, list(answer.json())) == (417, ["message"])


def test_mnn_has_a_new_id_for_every_event_and_nothing_else_of_openais(fakes: dict[str, FakeHandle]) -> None:
    for path in ("/v1/chat/completions", "/chat/completions"):
        told = events(ask(fakes["mnn"], path, stream=True, stream_options={"include_usage": True}, max_tokens=1))
        assert len({event["id"] for event in told}) == len(told) == 7  # six words and the end: max_tokens is not heard
        assert [event["choices"][0]["finish_reason"] for event in told] == [""] * 6 + ["stop"]
        assert all(event["choices"][0]["delta"].keys() == {"content"} for event in told)
    usage = ask(fakes["mnn"]).json()["usage"]
    assert usage == {"prompt_tokens": 10, "completion_tokens": 7, "total_tokens": 17}
    (card,) = httpx.get(fakes["mnn"].url + "/v1/models").json()["data"]
    assert card["id"] == "ModelScope/MNN/Qwen2.5-0.5B-Instruct"


def test_mnn_works_on_for_a_client_that_has_left(fakes: dict[str, FakeHandle]) -> None:
    fake = fakes["mnn"]
    fake.script({"tokens": 10, "itl_s": 0.02})
    body = {"model": "base", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    with httpx.stream("POST", fake.url + "/v1/chat/completions", json=body) as answer:
        next(answer.iter_lines())
    stats = fake.wait(lambda stats: stats["active"] == 0)
    assert (stats["completed"], stats["aborted"], stats["generated_tokens"]) == (1, 0, 10)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gateway_looks_for_gauges_where_the_engine_has_them(fakes: dict[str, FakeHandle], kind: str) -> None:
    metrics = backend_class(kind).capabilities.metrics
    if metrics.path is None:
        assert httpx.get(fakes[kind].url + "/metrics").status_code == 404
        return
    page = httpx.get(fakes[kind].url + metrics.path).text
    for name in (metrics.queued, metrics.running, metrics.kv_usage):
        assert name is None or re.search(rf"^{re.escape(name)}{{", page, re.MULTILINE), name
