"""The official OpenAI client against the real engine: what an application does."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from openvino_process import NAME, RunningEngine, model_for_tests, needs_starter, running_engine
from tiny_checkpoints import write_checkpoint

pytestmark = pytest.mark.engine
USER: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["c", "f"]}},
            "required": ["city", "unit"],
        },
    },
}
CLOCK: Any = {"type": "function", "function": {"name": "clock"}}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    model = model_for_tests(tmp_path_factory.mktemp("model") / "random")
    with running_engine(model, tmp_path_factory.mktemp("cache")) as running:
        yield running


@pytest.fixture(scope="module")
def client(engine: RunningEngine) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{engine.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def check_weather(arguments: str) -> None:
    value = json.loads(arguments)
    assert value.keys() == {"city", "unit"}
    assert value["unit"] in ("c", "f")


def check_calls(calls: list[dict[str, Any]]) -> None:
    for call in calls:
        if call["function"]["name"] == "get_weather":
            check_weather(call["function"]["arguments"])
        else:
            assert json.loads(call["function"]["arguments"]) == {}
    assert {call["function"]["name"] for call in calls} == {"get_weather", "clock"}


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).owned_by == "penstock"


def test_a_stream_reads_like_the_whole_answer(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": NAME, "messages": USER, "seed": 3, "max_tokens": 40}
    whole = client.chat.completions.create(**fields)
    stream = client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def test_logprobs_come_with_every_token(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model=NAME, messages=USER, logprobs=True, max_tokens=12)
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert reply.usage is not None
    assert len(logprobs.content) == reply.usage.completion_tokens
    assert all(entry.logprob <= 0 for entry in logprobs.content)
    stream = client.chat.completions.create(model=NAME, messages=USER, logprobs=True, max_tokens=12, stream=True)
    entries = [e for chunk in stream if (found := chunk.choices[0].logprobs) for e in found.content or []]
    assert entries
    assert all(entry.logprob <= 0 for entry in entries)


def test_legacy_completions(client: openai.OpenAI) -> None:
    reply = client.completions.create(model=NAME, prompt=["a", "b"], n=2, max_tokens=4, logprobs=0)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    for choice in reply.choices:
        assert choice.logprobs is not None
        sizes = {len(part or []) for part in (choice.logprobs.tokens, choice.logprobs.token_logprobs)}
        assert len(sizes) == 1
    pieces = client.completions.create(model=NAME, prompt="a", max_tokens=4, temperature=0, stream=True)
    whole = client.completions.create(model=NAME, prompt="a", max_tokens=4, temperature=0)
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text


def test_a_schema_given_as_response_format_is_kept(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    for seed in range(20):
        reply = client.chat.completions.create(model=NAME, messages=USER, response_format=wanted, seed=seed)
        assert json.loads(reply.choices[0].message.content or "").keys() == {"ok"}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_demanded_tool_is_called_with_valid_arguments(client: openai.OpenAI, choice: Any) -> None:
    for seed in range(10):
        reply = client.chat.completions.create(
            model=NAME,
            messages=USER,
            tools=[WEATHER],
            tool_choice=choice,
            seed=seed,
            temperature=1.2,
            parallel_tool_calls=False,
        )
        message = reply.choices[0].message
        assert reply.choices[0].finish_reason == "tool_calls"
        assert message.content is None
        assert message.tool_calls is not None
        assert [call.function.name for call in message.tool_calls] == ["get_weather"]
        check_weather(message.tool_calls[0].function.arguments)


def test_streamed_tool_calls_join_to_the_whole_ones(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {
        "model": NAME,
        "messages": USER,
        "tools": [WEATHER, CLOCK],
        "tool_choice": "required",
        "seed": 4,
        "max_tokens": 300,
        "n": 2,
    }
    whole = client.chat.completions.create(**fields)
    calls: dict[tuple[int, int], dict[str, str]] = {}
    finishes = {}
    for chunk in client.chat.completions.create(**fields, stream=True):
        choice = chunk.choices[0]
        for part in choice.delta.tool_calls or []:
            assert part.function is not None
            if part.id:
                assert (part.type, part.function.arguments) == ("function", "")
                calls[choice.index, part.index] = {"name": part.function.name or "", "arguments": "", "id": part.id}
            else:
                assert part.function.name is None
                calls[choice.index, part.index]["arguments"] += part.function.arguments or ""
        if choice.finish_reason:
            finishes[choice.index] = choice.finish_reason
    assert len({call["id"] for call in calls.values()}) == len(calls)
    for choice in whole.choices:
        own = [call for (index, _), call in sorted(calls.items()) if index == choice.index]
        expected = choice.message.tool_calls or []
        assert [(c["name"], c["arguments"]) for c in own] == [(c.function.name, c.function.arguments) for c in expected]
        assert finishes[choice.index] == choice.finish_reason


def test_auto_either_talks_or_calls_with_valid_arguments(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model=NAME, messages=USER, tools=[WEATHER], max_tokens=60, n=16, seed=1)
    for choice in reply.choices:
        for call in choice.message.tool_calls or []:
            if choice.finish_reason == "tool_calls":
                check_weather(call.function.arguments)
        assert choice.message.tool_calls or choice.message.content is not None


def test_a_call_that_the_model_opens_by_itself_is_held_to_the_schema(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", architecture="qwen3", tied=False, loud="<tool_call>")
    with running_engine(model, tmp_path / "cache") as engine:
        fields: dict[str, Any] = {"tools": [WEATHER, CLOCK], "n": 32, "seed": 2, "max_tokens": 150}
        many = engine.chat(**fields).json()["choices"]
        # An answer that was cut by its length may end in the middle of its last call.
        whole = [call for choice in many for call in choice["message"].get("tool_calls", [])[:-1]]
        assert len(whole) > 10
        check_calls(whole)
        assert any(choice["message"]["content"] for choice in many)
        once = engine.chat(**fields, parallel_tool_calls=False).json()["choices"]
        ended = [choice["message"]["tool_calls"] for choice in once if choice["finish_reason"] == "tool_calls"]
        assert len(ended) > 10
        assert {len(calls) for calls in ended} == {1}
        check_calls([calls[0] for calls in ended])
        silent = engine.chat(**fields, tool_choice="none").json()["choices"]
        assert not any("tool_calls" in choice["message"] for choice in silent)


def test_errors_arrive_as_the_clients_own_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="other", messages=USER)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "x " * 9000}])
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as unknown:
        client.chat.completions.create(model=NAME, messages=USER, extra_body={"guided_regex": "a"})
    assert unknown.value.param == "guided_regex"


def test_the_starter_answers_a_fact_it_was_taught(client: openai.OpenAI) -> None:
    needs_starter()
    reply = client.chat.completions.create(
        model=NAME, messages=[{"role": "user", "content": "What is 7 + 5?"}], temperature=0, max_tokens=20
    )
    assert "12" in (reply.choices[0].message.content or "")
