"""Responses and Messages of real engines, through the gateway, by the official clients: translated on the embedded
engine, relayed by vLLM where nothing is to be remembered."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic
from openai import OpenAI

from engines_under_test import ENGINES, MODEL, EngineUnderTest, served_by

QUESTION = "What is the capital of France?"
PLACE = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Oslo", "Paris"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"name": "get_weather", "description": "The weather of a city"}

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module", params=[engine.param() for engine in ENGINES if engine.kind in ("openvino", "vllm")])
def base_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    engine: EngineUnderTest = request.param
    with served_by(engine, tmp_path_factory.mktemp(engine.name)) as running:
        yield running.base_url


@pytest.fixture
def responses(base_url: str) -> Iterator[Any]:
    with OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=120) as client:
        yield client.responses


@pytest.fixture
def messages(base_url: str) -> Iterator[Any]:
    url = base_url.removesuffix("/v1")
    with Anthropic(base_url=url, api_key="none", max_retries=0, timeout=120) as client:
        yield client.messages


@pytest.fixture
def chat_text(base_url: str) -> str:
    """What the engine says to chat, greedily."""
    asked = [{"role": "user", "content": QUESTION}]
    with OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=120) as client:
        answer = client.chat.completions.create(model=MODEL, messages=asked, temperature=0, max_tokens=24)
        return answer.choices[0].message.content


@pytest.mark.parametrize("store", [True, False])
def test_a_response_says_what_chat_says_whole_and_streamed(responses: Any, chat_text: str, store: bool) -> None:
    asked = {"model": MODEL, "input": QUESTION, "temperature": 0, "max_output_tokens": 24, "store": store}
    whole = responses.create(**asked)
    with responses.stream(**asked) as stream:
        events = list(stream)
        streamed = stream.get_final_response()
    assert whole.output_text == streamed.output_text == chat_text
    assert whole.model == streamed.model == MODEL
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == chat_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert whole.usage.output_tokens == streamed.usage.output_tokens > 0
    assert whole.status == streamed.status
    if store:
        assert responses.retrieve(streamed.id).output_text == chat_text


def test_a_conversation_goes_on_by_the_id_of_its_last_response(responses: Any) -> None:
    first = responses.create(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=24)
    second = responses.create(
        model=MODEL, input="And of Norway?", previous_response_id=first.id, temperature=0, max_output_tokens=24
    )
    assert second.usage.input_tokens > first.usage.input_tokens + first.usage.output_tokens
    assert len(list(responses.input_items.list(second.id))) == 3


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_response_calls_a_function_and_takes_its_result(responses: Any, is_stream: bool) -> None:
    tool = {"type": "function", **WEATHER, "parameters": PLACE, "strict": True}
    asked = {"model": MODEL, "input": "Weather in Paris?", "tools": [tool], "temperature": 0, "max_output_tokens": 100}
    asked["tool_choice"] = {"type": "function", "name": "get_weather"}
    if is_stream:
        with responses.stream(**asked) as stream:
            answer = stream.get_final_response()
    else:
        answer = responses.create(**asked)
    (call,) = [item for item in answer.output if item.type == "function_call"]
    assert call.name == "get_weather"
    assert json.loads(call.arguments)["city"] in ("Oslo", "Paris")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    last = responses.create(model=MODEL, input=[result], previous_response_id=answer.id, max_output_tokens=24)
    assert last.status in ("completed", "incomplete")
    assert last.usage.input_tokens > answer.usage.input_tokens


def test_a_response_keeps_to_a_schema(responses: Any) -> None:
    form = {"type": "json_schema", "name": "place", "schema": PLACE, "strict": True}
    answer = responses.create(model=MODEL, input=QUESTION, text={"format": form}, max_output_tokens=60)
    assert json.loads(answer.output_text)["city"] in ("Oslo", "Paris")


def test_a_message_says_what_chat_says_whole_and_streamed(messages: Any, chat_text: str) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 24}
    asked["extra_body"] = {"temperature": 0}
    whole = messages.create(**asked)
    with messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        streamed = stream.get_final_message()
    assert whole.content[0].text == streamed.content[0].text == text == chat_text
    assert whole.stop_reason == streamed.stop_reason
    assert whole.usage.output_tokens == streamed.usage.output_tokens > 0
    assert whole.usage.input_tokens == streamed.usage.input_tokens > 0
    assert whole.model == streamed.model == MODEL


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_message_uses_a_tool_and_takes_its_result(messages: Any, is_stream: bool) -> None:
    turns: list[Any] = [{"role": "user", "content": "Weather in Paris?"}]
    tool = {**WEATHER, "input_schema": PLACE}
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 100, "tools": [tool], "extra_body": {"temperature": 0}}
    asked["tool_choice"] = {"type": "tool", "name": "get_weather"}
    if is_stream:
        with messages.stream(**asked, messages=turns) as stream:
            answer = stream.get_final_message()
    else:
        answer = messages.create(**asked, messages=turns)
    (used,) = [block for block in answer.content if block.type == "tool_use"]
    assert answer.stop_reason == "tool_use"
    assert used.input["city"] in ("Oslo", "Paris")
    turns.append(
        {"role": "assistant", "content": [{"type": "tool_use", **used.model_dump(include={"id", "name", "input"})}]}
    )
    turns.append({"role": "user", "content": [{"type": "tool_result", "tool_use_id": used.id, "content": "sunny"}]})
    last = messages.create(model=MODEL, max_tokens=24, tools=[tool], messages=turns)
    assert last.role == "assistant"
    assert last.usage.input_tokens > answer.usage.input_tokens


def test_an_unknown_model_is_an_error_in_anthropics_shape(messages: Any) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        messages.create(model="nobody", max_tokens=5, messages=[{"role": "user", "content": "hi"}])
    assert caught.value.response.json()["error"]["type"] == "not_found_error"
