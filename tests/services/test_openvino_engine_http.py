"""The real engine over a real socket: every refusal, every framing rule, sampling and limits."""

import concurrent.futures
import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from openvino_process import NAME, RunningEngine, model_for_tests, running_engine
from reference_forward import Reference

pytestmark = pytest.mark.engine
CONTEXT = 2048
MODEL: dict[str, Any] = {"model": NAME}
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_for_tests(tmp_path_factory.mktemp("model") / "random")


@pytest.fixture(scope="module")
def engine(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    with running_engine(model, tmp_path_factory.mktemp("cache"), "--body-limit-mb", "2") as running:
        yield running


def events(response: httpx.Response) -> list[Any]:
    """The JSON of every event; the last must be [DONE]."""
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    assert [block for block in blocks if block == "data: [DONE]"] == [blocks[-1]]
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-1]]


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error object, whose shape is always OpenAI's."""
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert isinstance(error["code"], str)
    assert isinstance(error["type"], str)
    return dict(error)


# ---- refusals ----

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
BAD_CHAT: list[tuple[dict[str, Any], str | None, str]] = [
    ({"messages": []}, "messages", "invalid_value"),
    ({"surprise": 1}, "surprise", "unknown_parameter"),
    ({"guided_json": {}}, "guided_json", "unknown_parameter"),
    ({"logit_bias": {"5": 3}}, "logit_bias", "unsupported_parameter"),
    ({"temperature": -0.1}, "temperature", "invalid_value"),
    ({"temperature": 2.1}, "temperature", "invalid_value"),
    ({"temperature": "hot"}, "temperature", "invalid_type"),
    ({"temperature": True}, "temperature", "invalid_type"),
    ({"top_p": 0}, "top_p", "invalid_value"),
    ({"top_p": 1.5}, "top_p", "invalid_value"),
    ({"top_k": -2}, "top_k", "invalid_value"),
    ({"top_k": 1.5}, "top_k", "invalid_type"),
    ({"min_p": 2}, "min_p", "invalid_value"),
    ({"presence_penalty": 3}, "presence_penalty", "invalid_value"),
    ({"frequency_penalty": -3}, "frequency_penalty", "invalid_value"),
    ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
    ({"n": 0}, "n", "invalid_value"),
    ({"n": 129}, "n", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": 1.5}, "max_tokens", "invalid_type"),
    ({"max_completion_tokens": -1}, "max_completion_tokens", "invalid_value"),
    ({"max_tokens": 5, "min_tokens": 6}, "min_tokens", "invalid_value"),
    ({"seed": "x"}, "seed", "invalid_type"),
    ({"stop": ["a", ""]}, "stop", "invalid_value"),
    ({"stop": 5}, "stop", "invalid_type"),
    ({"stop_token_ids": [10**9]}, "stop_token_ids", "invalid_value"),
    ({"stream": "yes"}, "stream", "invalid_type"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ({"stream": True, "stream_options": {"x": 1}}, "x", "unknown_parameter"),
    ({"top_logprobs": 0}, "top_logprobs", "invalid_value"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"logprobs": 3}, "logprobs", "invalid_type"),
    ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
    ({"tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice", "invalid_value"),
    ({"tools": [TOOL, TOOL]}, "tools", "invalid_value"),
    ({"tools": [{"type": "custom"}]}, "tools[0]", "invalid_value"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice", "invalid_value"),
    ({"tools": [TOOL], "response_format": {"type": "json_object"}}, "response_format", "invalid_value"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "invalid_value"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "invalid_value"),
    ({"structured_outputs": {"magic": 1}}, "structured_outputs.magic", "unsupported_parameter"),
    ({"structured_outputs": {"regex": "[a"}}, "structured_outputs", "invalid_grammar"),
    ({"structured_outputs": {"regex": "a(?=b)"}}, "structured_outputs", "invalid_grammar"),
    ({"structured_outputs": {"grammar": 'start ::= "a"'}}, "structured_outputs", "invalid_grammar"),
    ({"structured_outputs": {"json": {"type": "bogus"}}}, "structured_outputs", "invalid_grammar"),
    ({"structured_outputs": {"json": '{"type": '}}, "structured_outputs", "invalid_grammar"),
    ({"structured_outputs": {"json": {"enum": []}}}, "structured_outputs", "invalid_grammar"),
    (
        {"structured_outputs": {"json": {"type": "integer", "minimum": 5, "maximum": 3}}},
        "structured_outputs",
        "invalid_grammar",
    ),
    ({"structured_outputs": {"regex": "a"}, "ignore_eos": True}, "ignore_eos", "unsupported_parameter"),
    ({"structured_outputs": {"regex": "a"}, "min_tokens": 2}, "min_tokens", "unsupported_parameter"),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "x"}}}]},
        "tools",
        "invalid_grammar",
    ),
]


@pytest.mark.parametrize(("fields", "param", "code"), BAD_CHAT, ids=lambda value: json.dumps(value)[:60])
def test_a_bad_chat_field_is_a_400_that_names_it(
    engine: RunningEngine, fields: dict[str, Any], param: str, code: str
) -> None:
    response = engine.client.post(CHAT, json=MODEL | HELLO | fields)
    error = error_of(response)
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({}, "prompt", "invalid_type"),
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"prompt": [[]]}, "prompt", "invalid_value"),
        ({"prompt": 5}, "prompt", "invalid_type"),
        ({"prompt": ["a", 5]}, "prompt", "invalid_type"),
        ({"prompt": [10**9]}, "prompt", "invalid_value"),
        ({"prompt": [-1]}, "prompt", "invalid_value"),
        ({"prompt": "a", "suffix": "b"}, "suffix", "unsupported_parameter"),
        ({"prompt": "a", "best_of": 3}, "best_of", "unsupported_parameter"),
        ({"prompt": "a", "logprobs": 6}, "logprobs", "invalid_value"),
        ({"prompt": "a", "messages": []}, "messages", "unknown_parameter"),
        ({"prompt": ["a"] * 2048, "n": 128}, "n", "invalid_value"),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_a_bad_completion_field_is_a_400_that_names_it(
    engine: RunningEngine, fields: dict[str, Any], param: str, code: str
) -> None:
    response = engine.client.post(COMPLETIONS, json=MODEL | fields)
    error = error_of(response)
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe{}",
        b'{"model": "\xff"}',
        b"[" * 200_000,
        b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
        b'{"model": NaN}',
        b'{"model": "\\ud800"}',
    ],
    ids=["empty", "cut", "list", "null", "string", "bom", "utf8", "deep-list", "deep-object", "nan", "surrogate"],
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_body_that_is_no_request_is_a_400(engine: RunningEngine, path: str, body: bytes) -> None:
    response = engine.client.post(path, content=body)
    assert (response.status_code, error_of(response)["type"]) == (400, "invalid_request_error")
    assert engine.chat(max_tokens=1).status_code == 200


def test_a_huge_body_is_a_413(engine: RunningEngine) -> None:
    declared = engine.client.post(CHAT, content=b" " * (3 << 20))
    assert (declared.status_code, error_of(declared)["code"]) == (413, "request_too_large")
    chunked = engine.client.post(CHAT, content=(b" " * (1 << 20) for _ in range(3)))
    assert (chunked.status_code, error_of(chunked)["code"]) == (413, "request_too_large")


def test_compressed_bodies_are_refused(engine: RunningEngine) -> None:
    response = engine.client.post(CHAT, content=b"x", headers={"content-encoding": "gzip"})
    assert (response.status_code, error_of(response)["code"]) == (415, "unsupported_content_encoding")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/", 404, "not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
        ("GET", "/v1/models/other/name", 404, "model_not_found"),
    ],
)
def test_unknown_routes_and_methods_have_the_error_shape(
    engine: RunningEngine, method: str, path: str, status: int, code: str
) -> None:
    response = engine.client.request(method, path)
    assert (response.status_code, error_of(response)["code"]) == (status, code)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_another_model_is_a_404_and_no_model_a_400(engine: RunningEngine, path: str) -> None:
    other = engine.client.post(
        path, json=HELLO | {"model": "gpt-9"} if path == CHAT else {"model": "gpt-9", "prompt": "a"}
    )
    assert (other.status_code, error_of(other)["code"]) == (404, "model_not_found")
    none = engine.client.post(path, json=HELLO if path == CHAT else {"prompt": "a"})
    assert (none.status_code, error_of(none)["param"]) == (400, "model")


def test_a_prompt_over_the_context_is_refused_with_both_numbers(engine: RunningEngine) -> None:
    response = engine.complete([65] * CONTEXT)
    error = error_of(response)
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert f"maximum context length is {CONTEXT}" in error["message"]
    assert f"({CONTEXT} in the prompt, 1 in the completion)" in error["message"]
    asked = error_of(engine.complete([65] * 40, max_tokens=CONTEXT))
    assert f"{CONTEXT + 40} tokens (40 in the prompt, {CONTEXT} in the completion)" in asked["message"]


def test_a_text_far_over_the_librarys_own_limit_is_not_cut_silently(engine: RunningEngine) -> None:
    error = error_of(engine.chat("word " * 20_000))
    assert error["code"] == "context_length_exceeded"
    assert int(re.findall(r"\((\d+) in the prompt", error["message"])[0]) > 8192


def test_a_vicious_grammar_costs_a_400_and_no_one_else_anything(engine: RunningEngine) -> None:
    with concurrent.futures.ThreadPoolExecutor() as pool:
        bomb = pool.submit(engine.chat, structured_outputs={"regex": "((a{1,1000}){1,1000}){1,1000}"})
        while not bomb.done():
            assert engine.chat(max_tokens=2).status_code == 200
            time.sleep(0.05)
    assert (bomb.result().status_code, error_of(bomb.result())["code"]) == (400, "invalid_grammar")
    good = engine.chat(structured_outputs={"regex": "[ab]{4}"})
    assert re.fullmatch("[ab]{4}", good.json()["choices"][0]["message"]["content"])


def test_deep_schemas_are_refused(engine: RunningEngine) -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(100):
        schema = {"type": "object", "properties": {"a": schema}}
    response = engine.chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    assert (response.status_code, error_of(response)["code"]) == (400, "invalid_grammar")


# ---- plain answers ----


def test_the_card_of_the_model_and_the_version(engine: RunningEngine, model: Path) -> None:
    card = engine.client.get("/v1/models").json()["data"][0]
    assert (card["id"], card["object"], card["parent"], card["max_model_len"]) == (NAME, "model", None, CONTEXT)
    assert card["root"] == str(model)
    manifest = model / "penstock.json"
    assert card.get("penstock") == (json.loads(manifest.read_text()) if manifest.exists() else None)
    assert engine.client.get(f"/v1/models/{NAME}").json() == card
    assert engine.client.get("/version").json()["version"]
    assert engine.client.get("/health").status_code == 200


def test_request_ids_are_echoed_or_made(engine: RunningEngine) -> None:
    assert engine.client.get("/health", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert len(engine.client.get("/nowhere").headers["x-request-id"]) == 32


def test_greedy_text_equals_the_numpy_reference_through_the_whole_server(engine: RunningEngine, model: Path) -> None:
    prompt = list(range(100, 130))
    response = engine.complete(prompt, temperature=0, max_tokens=12, ignore_eos=True, logprobs=0).json()
    reference = Reference(model)
    tokens = reference.greedy(prompt, 12)
    rows = reference.logprobs(prompt + tokens)[len(prompt) - 1 : -1]
    expected = [float(row[token]) for row, token in zip(rows, tokens, strict=True)]
    logprobs = response["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"] == pytest.approx(expected, abs=1e-3)
    assert len(logprobs["tokens"]) == len(logprobs["text_offset"]) == 12


def test_stream_and_whole_answer_are_the_same_text_and_usage(engine: RunningEngine) -> None:
    fields: dict[str, Any] = {"temperature": 0.9, "seed": 11, "max_tokens": 60}
    whole = engine.chat(**fields).json()
    streamed = events(engine.chat(**fields, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in streamed[:-1])
    assert text == whole["choices"][0]["message"]["content"]
    assert streamed[-1]["usage"] == whole["usage"]
    assert whole["usage"]["total_tokens"] == whole["usage"]["prompt_tokens"] + whole["usage"]["completion_tokens"]
    assert streamed[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]


def test_the_frame_of_a_stream(engine: RunningEngine) -> None:
    chunks = events(engine.chat(n=3, max_tokens=8, stream=True, stream_options={"include_usage": True}))
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    assert chunks[-1]["choices"] == []
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    choices = [chunk["choices"][0] for chunk in chunks[:-1]]
    for index in range(3):
        own = [choice for choice in choices if choice["index"] == index]
        assert [i for i, choice in enumerate(own) if "role" in choice["delta"]] == [0]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert [i for i, choice in enumerate(own) if choice["finish_reason"]] == [len(own) - 1]
        assert own[-1]["delta"] == {}


def test_usage_is_only_sent_when_asked_and_continuously_when_asked_so(engine: RunningEngine) -> None:
    assert all("usage" not in chunk for chunk in events(engine.chat(max_tokens=3, stream=True)))
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = events(engine.complete(max_tokens=4, ignore_eos=True, stream=True, stream_options=options))
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 4


def test_no_chunk_splits_a_character(engine: RunningEngine) -> None:
    for seed in range(4):
        fields: dict[str, Any] = {"max_tokens": 80, "temperature": 2.0, "seed": seed, "ignore_eos": True}
        whole = engine.complete("你好", **fields).json()["choices"][0]["text"]
        chunks = events(engine.complete("你好", **fields, stream=True))
        pieces = [chunk["choices"][0]["text"] for chunk in chunks]
        assert "".join(pieces) == whole


# ---- sampling ----


def test_a_seed_repeats_and_no_seed_does_not(engine: RunningEngine) -> None:
    fields: dict[str, Any] = {"max_tokens": 24, "temperature": 2.0, "ignore_eos": True}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        seeded = list(pool.map(lambda _: engine.complete(**fields, seed=5).json()["choices"][0]["text"], range(6)))
        free = list(pool.map(lambda _: engine.complete(**fields).json()["choices"][0]["text"], range(6)))
    assert len(set(seeded)) == 1
    assert len(set(free)) == 6


def test_choices_and_neighbouring_seeds_differ_but_repeat(engine: RunningEngine) -> None:
    fields: dict[str, Any] = {"max_tokens": 16, "temperature": 2.0, "ignore_eos": True, "n": 4}
    texts = [
        [choice["text"] for choice in engine.complete(**fields, seed=seed).json()["choices"]]
        for seed in (1, 2, 1, -1, 2**32 + 1)
    ]
    assert texts[0] == texts[2]
    assert len({text for row in (texts[0], texts[1], texts[3], texts[4]) for text in row}) == 16


def test_temperature_zero_is_greedy_whatever_the_seed(engine: RunningEngine) -> None:
    texts = {engine.complete(temperature=0, seed=seed, max_tokens=10).json()["choices"][0]["text"] for seed in range(3)}
    assert len(texts) == 1


def test_top_k_one_and_tiny_top_p_are_greedy(engine: RunningEngine) -> None:
    greedy = engine.complete(temperature=0, max_tokens=10).json()["choices"][0]["text"]
    for fields in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert engine.complete(temperature=1.0, max_tokens=10, **fields).json()["choices"][0]["text"] == greedy


def test_a_repetition_penalty_breaks_repetition(engine: RunningEngine) -> None:
    prompt = [65] * 30
    fields: dict[str, Any] = {"temperature": 0, "max_tokens": 40, "ignore_eos": True, "logprobs": 0}
    for penalty in ({"repetition_penalty": 1.8}, {"presence_penalty": 2.0, "frequency_penalty": 2.0}):
        free = engine.complete(prompt, **fields).json()["choices"][0]["logprobs"]["tokens"]
        fined = engine.complete(prompt, **fields, **penalty).json()["choices"][0]["logprobs"]["tokens"]
        assert len(set(fined)) > len(set(free))


def test_stop_strings_cut_exactly_and_are_not_leaked(engine: RunningEngine) -> None:
    fields: dict[str, Any] = {"temperature": 0, "max_tokens": 40, "ignore_eos": True}
    whole = engine.complete(**fields).json()["choices"][0]["text"]
    middle = len(whole) // 2
    stop = whole[middle : middle + 3]
    expected = whole[: whole.find(stop)]
    cut = engine.complete(**fields, stop=stop).json()
    assert cut["choices"][0]["text"] == expected
    assert (cut["choices"][0]["finish_reason"], cut["choices"][0]["stop_reason"]) == ("stop", stop)
    assert cut["usage"]["completion_tokens"] < 40
    chunks = events(engine.complete(**fields, stop=[stop], stream=True))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == expected
    kept = engine.complete(**fields, stop=stop, include_stop_str_in_output=True).json()["choices"][0]["text"]
    assert kept == expected + stop


def test_stop_token_ids_and_min_tokens(engine: RunningEngine, model: Path) -> None:
    prompt = list(range(100, 130))
    tokens = Reference(model).greedy(prompt, 8)
    fields: dict[str, Any] = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}
    stopped = engine.complete(prompt, **fields, stop_token_ids=[tokens[3]]).json()
    assert stopped["choices"][0]["finish_reason"] == "stop"
    assert stopped["choices"][0]["stop_reason"] == tokens[3]
    assert stopped["usage"]["completion_tokens"] == tokens.index(tokens[3]) + 1
    late = engine.complete(prompt, temperature=0, max_tokens=8, min_tokens=6, stop_token_ids=[tokens[3]]).json()
    assert late["usage"]["completion_tokens"] >= 6


def test_the_default_length_is_sixteen_for_completions_and_the_context_for_chat(engine: RunningEngine) -> None:
    assert engine.complete(ignore_eos=True).json()["usage"]["completion_tokens"] == 16
    usage = engine.chat(ignore_eos=True).json()["usage"]
    assert usage["total_tokens"] == CONTEXT


def test_prompts_and_choices_are_flattened_in_order(engine: RunningEngine) -> None:
    body = engine.complete(["one", [65, 66, 67]], n=2, max_tokens=3, echo=True, temperature=0).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    texts = [choice["text"] for choice in body["choices"]]
    assert texts[0].startswith("one")
    assert texts[0] == texts[1]
    assert texts[2] == texts[3]
    single = [engine.complete(p, max_tokens=3, echo=True, temperature=0).json() for p in ("one", [65, 66, 67])]
    assert [texts[0], texts[2]] == [reply["choices"][0]["text"] for reply in single]
    assert body["usage"]["prompt_tokens"] == sum(reply["usage"]["prompt_tokens"] for reply in single)


def test_special_tokens_can_be_shown(engine: RunningEngine) -> None:
    hidden = engine.complete(temperature=0, max_tokens=200)
    if hidden.json()["choices"][0]["finish_reason"] == "stop":
        assert "<|im_end|>" not in hidden.json()["choices"][0]["text"]
    prompt = "<|im_end|>"
    shown = engine.complete(prompt, temperature=0, max_tokens=1, echo=True, skip_special_tokens=False)
    assert shown.json()["choices"][0]["text"].startswith(prompt)


# ---- structured output ----

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "你"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def check_person(value: Any) -> None:
    assert value.keys() == {"name", "age", "tags"}
    assert isinstance(value["name"], str)
    assert len(value["name"]) <= 12
    assert value["age"] in range(121)
    assert len(value["tags"]) <= 3
    assert set(value["tags"]) <= {"a", "b", "你"}


def test_twenty_seeded_samples_are_all_valid_for_their_schema(engine: RunningEngine) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    body = engine.chat("a person as JSON", response_format=wanted, n=20, seed=1, temperature=1.5).json()
    assert len(body["choices"]) == 20
    for choice in body["choices"]:
        assert choice["finish_reason"] == "stop"
        check_person(json.loads(choice["message"]["content"]))
    assert len({choice["message"]["content"] for choice in body["choices"]}) > 1


def test_a_schema_beyond_the_compact_grammar_is_kept_by_the_library(engine: RunningEngine) -> None:
    schema = {"type": "object", "properties": {"id": {"type": "string", "pattern": "^[a-f]{4}$"}}, "required": ["id"]}
    for seed in range(5):
        reply = engine.chat(structured_outputs={"json": schema}, seed=seed, temperature=0.5, max_tokens=400).json()
        if reply["choices"][0]["finish_reason"] == "stop":  # the library's JSON may end in endless blanks
            value = json.loads(reply["choices"][0]["message"]["content"])
            assert re.fullmatch("[a-f]{4}", value["id"])


def test_json_object_starts_an_object(engine: RunningEngine) -> None:
    reply = engine.chat(response_format={"type": "json_object"}, max_tokens=300, seed=2).json()["choices"][0]
    assert reply["message"]["content"].startswith("{")
    if reply["finish_reason"] == "stop":
        assert isinstance(json.loads(reply["message"]["content"]), dict)


@pytest.mark.parametrize(
    ("rule", "pattern"),
    [
        ({"regex": "[0-9]{3}-(yes|no)"}, "[0-9]{3}-(yes|no)"),
        ({"choice": ["red", "green", "蓝"]}, "red|green|蓝"),
        ({"choice": ["only"]}, "only"),
        ({"grammar": 'root ::= "x" ("y" | "z"){2}'}, "x[yz]{2}"),
    ],
)
def test_regex_choice_and_grammar_hold(engine: RunningEngine, rule: dict[str, Any], pattern: str) -> None:
    for path in (engine.chat, engine.complete):
        reply = path(structured_outputs=rule, max_tokens=40, temperature=1.5).json()["choices"][0]
        assert re.fullmatch(pattern, reply["text"] if "text" in reply else reply["message"]["content"])
        assert reply["finish_reason"] == "stop"


# ---- many at once ----


def test_answers_in_a_full_batch_equal_those_alone(engine: RunningEngine) -> None:
    prompts = [[60 + i, 61, 62 + i, 63] for i in range(24)]
    fields: dict[str, Any] = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
    alone = [engine.complete(prompt, **fields).json()["choices"][0]["text"] for prompt in prompts]
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        together = list(pool.map(lambda p: engine.complete(p, **fields).json()["choices"][0]["text"], prompts))
    assert together == alone


def test_metrics_count_what_happened(engine: RunningEngine) -> None:
    names = ("prompt_tokens_total", "generation_tokens_total", "time_to_first_token_seconds_count")
    before = [engine.metric(name) for name in names]
    usage = engine.complete(max_tokens=9, ignore_eos=True, n=2).json()["usage"]
    after = [engine.metric(name) for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [2 * usage["prompt_tokens"], 18, 2]
    engine.wait_for("num_requests_running", 0)
    assert engine.metric("kv_cache_size_bytes") == 1 << 30


def test_a_client_that_leaves_a_stream_aborts_its_answer(engine: RunningEngine) -> None:
    aborts = engine.metric("aborts_total")
    body = MODEL | HELLO | {"stream": True, "n": 4, "ignore_eos": True}
    with engine.client.stream("POST", CHAT, json=body) as response:
        next(response.iter_lines())
    engine.wait_for("num_requests_running", 0)
    engine.wait_for("aborts_total", aborts + 4)


def test_a_client_that_leaves_while_it_waits_for_a_whole_answer_aborts_it_too(engine: RunningEngine) -> None:
    aborts, tokens = engine.metric("aborts_total"), engine.metric("generation_tokens_total")
    body = json.dumps(MODEL | {"prompt": ["x"] * 64, "max_tokens": 1900, "ignore_eos": True}).encode()
    address = httpx.URL(engine.url)
    with socket.create_connection((address.host, address.port)) as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        engine.wait_for("num_requests_running", 64)
    engine.wait_for("aborts_total", aborts + 64)
    engine.wait_for("num_requests_running", 0)
    assert engine.metric("generation_tokens_total") - tokens < 64 * 1900


# ---- log-probabilities ----


def test_alternatives_of_every_token_equal_the_numpy_reference(engine: RunningEngine, model: Path) -> None:
    prompt = list(range(100, 130))
    fields: dict[str, Any] = {"temperature": 1.5, "seed": 8, "max_tokens": 10, "ignore_eos": True, "logprobs": 5}
    whole = engine.complete(prompt, **fields).json()["choices"][0]["logprobs"]
    rows = Reference(model)
    plain = engine.complete(prompt, **(fields | {"logprobs": 0})).json()["choices"][0]["logprobs"]
    assert whole["tokens"] == plain["tokens"]
    assert whole["token_logprobs"] == pytest.approx(plain["token_logprobs"], abs=1e-3)
    first = np.sort(rows.logprobs(prompt)[-1])[::-1][:5]
    top = dict(whole["top_logprobs"][0])
    top.pop(whole["tokens"][0])
    assert top  # several tokens may be the same broken text, so there can be fewer than five
    assert all(min(abs(first - value)) < 1e-3 for value in top.values())
    assert all(token in tops for token, tops in zip(whole["tokens"], whole["top_logprobs"], strict=True))


def test_top_logprobs_of_chat_are_ranked_the_same_streamed_and_whole(engine: RunningEngine) -> None:
    fields: dict[str, Any] = {"temperature": 0, "max_tokens": 8, "logprobs": True, "top_logprobs": 4, "n": 2}
    whole = engine.chat(**fields).json()["choices"]
    for choice in whole:
        for entry in choice["logprobs"]["content"]:
            values = [top["logprob"] for top in entry["top_logprobs"]]
            assert values == sorted(values, reverse=True)
            assert len(values) == 4
            # Greedy: the chosen token is the first alternative.
            assert entry["top_logprobs"][0]["logprob"] == pytest.approx(entry["logprob"])
    streamed: dict[int, list[Any]] = {0: [], 1: []}
    for chunk in events(engine.chat(**fields, stream=True)):
        part = chunk["choices"][0]
        streamed[part["index"]] += (part["logprobs"] or {"content": []})["content"]
    for choice in whole:
        expected = choice["logprobs"]["content"]
        assert [e["token"] for e in streamed[choice["index"]]] == [e["token"] for e in expected]
        logprobs = [e["logprob"] for e in expected]
        assert [e["logprob"] for e in streamed[choice["index"]]] == pytest.approx(logprobs, abs=1e-4)


def test_echo_gives_the_log_probabilities_of_the_prompt(engine: RunningEngine, model: Path) -> None:
    prompt = [int(i) for i in np.random.default_rng(1).integers(0, 300, 150)]
    for _ in range(2):  # the second time the prompt is in the prefix cache
        logprobs = engine.complete(prompt, echo=True, logprobs=1, max_tokens=1).json()["choices"][0]["logprobs"]
        assert logprobs["token_logprobs"][0] is None
        assert logprobs["top_logprobs"][0] is None
        rows = Reference(model).logprobs(prompt)
        expected = [float(rows[i, token]) for i, token in enumerate(prompt[1:])]
        assert logprobs["token_logprobs"][1:-1] == pytest.approx(expected, abs=1e-3)
        assert len({len(part) for part in logprobs.values()}) == 1
    offsets = logprobs["text_offset"]
    assert offsets[0] == 0
    assert offsets == sorted(offsets)
