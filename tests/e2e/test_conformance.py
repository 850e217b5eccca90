"""One suite for every engine, started as `make serve` starts it, through the gateway, by the official clients.

A client should notice no difference: what the capability table claims works, what it does not claim is refused by
name. Another engine is one line in tests/engines_under_test.py.
"""

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anthropic
import openai
import pytest
from anthropic import Anthropic
from openai import OpenAI

from engines_under_test import (
    EMBEDDED,
    ENGINES,
    MODEL,
    VLLM,
    EngineUnderTest,
    capabilities,
    running_requests,
    served_by,
)
from rpc import TritonPeer
from stack_under_test import RunningStack

WORDS = "What is the capital of France?"
QUESTION = [{"role": "user", "content": WORDS}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Oslo", "Paris"]}, "sunny": {"type": "boolean"}},
    "required": ["city", "sunny"],
    "additionalProperties": False,
}
# One property: in a tool's arguments vLLM lets whitespace run on between two, and a small model takes it up.
PLACE = {"type": "object", "properties": {"city": SCHEMA["properties"]["city"]}, "required": ["city"]}
STRICT_PLACE = PLACE | {"additionalProperties": False}
WEATHER = {"name": "get_weather", "description": "The weather of a city"}
TOOL = {"type": "function", "function": {**WEATHER, "parameters": STRICT_PLACE, "strict": True}}
CALL: dict[str, Any] = {"model": MODEL, "messages": QUESTION, "tools": [TOOL], "tool_choice": "required"}
CALL |= {"temperature": 0, "max_tokens": 100}
GREEDY = [
    {"messages": [{"role": "user", "content": "What is the capital of France?"}]},
    {"messages": [{"role": "user", "content": "What is 7 + 8?"}]},
    {"messages": [{"role": "user", "content": "Sort: pear, apple, fig"}]},
    {"messages": [{"role": "user", "content": "1 2 3"}], "stop": ["5"]},
    {"messages": [{"role": "user", "content": "法国的首都是哪里？"}]},
    {"messages": [{"role": "user", "content": "Copy this: naïve 日本語 🙂 café"}]},
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Count to 12"}]},
]
CONSTRAINTS = {
    "regex": ({"regex": "(red|green)-[0-9]{3}"}, re.compile(r"(red|green)-[0-9]{3}")),
    "choice": ({"choice": ["north", "south (far)"]}, re.compile(r"north|south \(far\)")),
    "grammar": ({"grammar": 'root ::= "yes" | "no" " " "way"'}, re.compile(r"yes|no way")),
    "json": ({"json": SCHEMA}, re.compile(r"\{.*\}", re.DOTALL)),
}

# The order of ENGINES: each starts once.
BOTH_WAYS = pytest.mark.parametrize("engine", [EMBEDDED.param(), VLLM.param()], indirect=True, scope="module")

pytestmark = pytest.mark.timeout(900)  # the first test starts the engine: a minute for vLLM, several on a busy machine


@pytest.fixture(scope="module", params=[engine.param() for engine in ENGINES])
def engine(request: pytest.FixtureRequest) -> EngineUnderTest:
    return request.param


@pytest.fixture(scope="module")
def stack(engine: EngineUnderTest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    with served_by(engine, tmp_path_factory.mktemp(engine.name)) as running:
        yield running


@pytest.fixture(scope="module")
def client(stack: RunningStack) -> Iterator[OpenAI]:
    with OpenAI(base_url=stack.base_url, api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def capable(engine: EngineUnderTest) -> dict[str, Any]:
    """What the gateway's own table claims of the engine."""
    return capabilities()[engine.kind]


@pytest.fixture(scope="session")
def embedded_says(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The embedded engine's greedy answers, with which the others are compared."""
    with (
        served_by(EMBEDDED, tmp_path_factory.mktemp("reference")) as stack,
        OpenAI(base_url=stack.base_url, api_key="none") as client,
    ):
        return [greedy(client, **asked) for asked in GREEDY]


def greedy(client: OpenAI, **asked: Any) -> Any:
    return client.chat.completions.create(model=MODEL, temperature=0, max_tokens=24, **asked)


def is_refused(engine: EngineUnderTest, field: str, ask: Callable[[], Any]) -> bool:
    """False where the engine has it. Where it lacks it, the refusal names it: nothing is ignored."""
    if field not in engine.lacks and field in capabilities()[engine.kind]["fields"]["chat/completions"]:
        return False
    with pytest.raises(openai.BadRequestError) as refusal:
        ask()
    assert (refusal.value.param, refusal.value.code) == (field, "unsupported_parameter")
    return True


def long_stream(client: OpenAI) -> Any:
    """A stream that does not end by itself for a while."""
    asked = {"model": MODEL, "messages": QUESTION, "stream": True, "max_tokens": 1000, "temperature": 1}
    return client.chat.completions.create(**asked, extra_body={"ignore_eos": True})


def joined(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


# ---- text ----


def test_it_lists_the_model_under_its_public_name(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    model = client.models.retrieve(MODEL).model_dump()
    assert (model["id"], model["max_model_len"]) == (MODEL, 2048)


def test_a_stream_says_what_the_whole_answer_says(client: OpenAI) -> None:
    for asked in GREEDY:
        whole = greedy(client, **asked)
        chunks = list(greedy(client, **asked, stream=True, stream_options={"include_usage": True}))
        assert joined(chunks) == whole.choices[0].message.content
        reasons = [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason]
        assert reasons == [whole.choices[0].finish_reason]
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
        assert {chunk.model for chunk in chunks} == {whole.model} == {MODEL}
        assert len({chunk.id for chunk in chunks}) == 1
        assert not any("\ufffd" in (c.choices[0].delta.content or "") for c in chunks if c.choices)


def test_the_greedy_text_and_usage_are_those_of_the_embedded_engine(client: OpenAI, embedded_says: list[Any]) -> None:
    for asked, theirs in zip(GREEDY, embedded_says, strict=True):
        ours = greedy(client, **asked)
        assert ours.choices[0].message.content == theirs.choices[0].message.content, asked
        assert ours.choices[0].finish_reason == theirs.choices[0].finish_reason, asked
        assert ours.usage.prompt_tokens == theirs.usage.prompt_tokens, asked
        assert ours.usage.completion_tokens == theirs.usage.completion_tokens, asked


@pytest.mark.skipif("PENSTOCK_TEST_CHECKPOINT" in os.environ, reason="another checkpoint has learnt other things")
@pytest.mark.parametrize(("question", "answer"), [("Copy this: bell, fox", "bell, fox"), ("What is 2 * 5?", "10")])
def test_the_starter_answers_with_sense(client: OpenAI, question: str, answer: str) -> None:
    asked = [{"role": "user", "content": question}]
    said = client.chat.completions.create(model=MODEL, messages=asked, temperature=0, max_tokens=20)
    assert said.choices[0].message.content.strip() == answer
    assert said.choices[0].finish_reason == "stop"


def test_a_seed_repeats_and_another_does_not(client: OpenAI, engine: EngineUnderTest) -> None:
    asked = {"model": MODEL, "messages": QUESTION, "temperature": 1.8, "max_tokens": 24}
    if is_refused(engine, "seed", lambda: client.chat.completions.create(**asked, seed=1)):
        return
    first, again, other = (
        client.chat.completions.create(**asked, seed=seed).choices[0].message.content for seed in (11, 11, 12)
    )
    assert first == again != other


def test_a_raw_completion_and_several_choices(client: OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="def main(", n=2, max_tokens=5, temperature=1)
    assert sorted(choice.index for choice in answer.choices) == [0, 1]
    assert all(isinstance(choice.text, str) for choice in answer.choices)


def test_logprobs_are_one_a_token(client: OpenAI, engine: EngineUnderTest, capable: dict[str, Any]) -> None:
    asked = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 8, "logprobs": True}
    if is_refused(engine, "logprobs", lambda: client.chat.completions.create(**asked)):
        return
    answer = client.chat.completions.create(**asked)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) in (answer.usage.completion_tokens, answer.usage.completion_tokens - 1)  # the end token may lack
    assert all(token.logprob <= 0 for token in tokens)
    if not capable["top_logprobs"]:
        with pytest.raises(openai.BadRequestError, match="top_logprobs"):
            client.chat.completions.create(**asked, top_logprobs=3)
        return
    for token in client.chat.completions.create(**asked, top_logprobs=3).choices[0].logprobs.content:
        assert token.token == token.top_logprobs[0].token
        assert [top.logprob for top in token.top_logprobs] == sorted(
            (top.logprob for top in token.top_logprobs), reverse=True
        )


# ---- structure ----


def test_json_schema_holds_whatever_the_model_thinks(client: OpenAI, engine: EngineUnderTest) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True}}
    asked = {"model": MODEL, "messages": QUESTION, "response_format": form, "max_tokens": 60}
    if is_refused(engine, "response_format", lambda: client.chat.completions.create(**asked)):
        return
    for temperature in (0, 1):
        answer = client.chat.completions.create(**asked, temperature=temperature)
        value = json.loads(answer.choices[0].message.content)
        assert value.keys() == {"city", "sunny"}
        assert value["city"] in ("Oslo", "Paris")
        assert isinstance(value["sunny"], bool)
        assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_a_constraint_in_one_request_shape(
    client: OpenAI, engine: EngineUnderTest, capable: dict[str, Any], kind: str
) -> None:
    wanted, pattern = CONSTRAINTS[kind]

    def ask() -> str:
        answer = client.chat.completions.create(
            model=MODEL, messages=QUESTION, temperature=1, max_tokens=60,
            extra_body={"structured_outputs": wanted},
        )  # fmt: skip
        return str(answer.choices[0].message.content)

    if is_refused(engine, "structured_outputs", ask):
        return
    assert kind in capable["constraints"]
    assert all(pattern.fullmatch(ask()) for _ in range(5))


def test_a_schema_nobody_can_meet_is_refused_and_the_next_request_works(client: OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no such type"}}}
    with pytest.raises(openai.BadRequestError) as refusal:
        client.chat.completions.create(model=MODEL, messages=QUESTION, response_format=form, max_tokens=8)
    assert refusal.value.message
    assert client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=1).choices


def test_a_required_tool_is_called_with_arguments_that_fit(client: OpenAI, engine: EngineUnderTest) -> None:
    if is_refused(engine, "tool_choice", lambda: client.chat.completions.create(**CALL)):
        return
    answer = client.chat.completions.create(**CALL)
    calls = answer.choices[0].message.tool_calls
    assert calls
    assert calls[0].function.name == "get_weather"
    assert json.loads(calls[0].function.arguments)["city"] in ("Oslo", "Paris")
    assert answer.choices[0].finish_reason == "tool_calls"


def test_a_streamed_tool_call_says_the_same(client: OpenAI, engine: EngineUnderTest) -> None:
    if is_refused(engine, "tool_choice", lambda: client.chat.completions.create(**CALL, stream=True)):
        return
    whole = client.chat.completions.create(**CALL).choices[0].message.tool_calls[0].function
    pieces = [
        call.function
        for chunk in client.chat.completions.create(**CALL, stream=True)
        if chunk.choices
        for call in chunk.choices[0].delta.tool_calls or ()
        if call.index == 0
    ]
    assert "".join(piece.name or "" for piece in pieces) == whole.name
    assert json.loads("".join(piece.arguments or "" for piece in pieces)) == json.loads(whole.arguments)
    assert len(pieces) > 1  # not all at once; how many depends on how many steps leave a busy engine together


# ---- other doors: the same words ----


def test_tritonclient_streams_the_same_greedy_words(client: OpenAI, stack: RunningStack) -> None:
    expected = client.completions.create(model=MODEL, prompt="What is 2 * 5?", max_tokens=24, temperature=0)
    with TritonPeer(stack.rpc) as triton:
        triton.do("start_stream")
        triton.ask(MODEL, "a", text_input="What is 2 * 5?", max_tokens=24, stream=True, return_num_output_tokens=True)
        *pieces, last, empty = triton.until_final()
        triton.do("stop_stream")
    assert "".join(piece["outputs"]["text_output"] for piece in [*pieces, last]) == expected.choices[0].text
    assert last["outputs"]["num_output_tokens"] == expected.usage.completion_tokens
    assert empty["final"]


def test_responses_and_messages_say_the_same_words(client: OpenAI, stack: RunningStack) -> None:
    expected = greedy(client, messages=QUESTION)
    response = client.responses.create(model=MODEL, input=WORDS, temperature=0, max_output_tokens=24)
    assert response.output_text == expected.choices[0].message.content
    assert response.usage.output_tokens == expected.usage.completion_tokens
    with client.responses.stream(model=MODEL, input=WORDS, temperature=0, max_output_tokens=24, store=False) as events:
        assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == response.output_text
    with Anthropic(base_url=stack.base_url.removesuffix("/v1"), api_key="none", max_retries=0) as anthropic:
        asked: dict[str, Any] = {"model": MODEL, "messages": QUESTION, "max_tokens": 24}
        asked["extra_body"] = {"temperature": 0}
        message = anthropic.messages.create(**asked)
        assert message.content[0].text == response.output_text
        assert message.usage.output_tokens == expected.usage.completion_tokens
        with anthropic.messages.stream(**asked) as stream:
            assert "".join(stream.text_stream) == response.output_text


# ---- Responses and Messages in full: translated for the embedded engine, relayed by vLLM where nothing is kept ----


@pytest.fixture
def responses(client: OpenAI) -> Any:
    return client.responses


@pytest.fixture
def messages(stack: RunningStack) -> Iterator[Any]:
    url = stack.base_url.removesuffix("/v1")
    with Anthropic(base_url=url, api_key="none", max_retries=0, timeout=120) as client:
        yield client.messages


@pytest.fixture
def chat_text(client: OpenAI) -> str:
    """What the engine says to chat, greedily."""
    return str(greedy(client, messages=QUESTION).choices[0].message.content)


@BOTH_WAYS
@pytest.mark.parametrize("store", [True, False])
def test_a_response_says_what_chat_says_whole_and_streamed(responses: Any, chat_text: str, store: bool) -> None:
    asked = {"model": MODEL, "input": WORDS, "temperature": 0, "max_output_tokens": 24, "store": store}
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


@BOTH_WAYS
def test_a_conversation_goes_on_by_the_id_of_its_last_response(responses: Any) -> None:
    first = responses.create(model=MODEL, input=WORDS, temperature=0, max_output_tokens=24)
    second = responses.create(
        model=MODEL, input="And of Norway?", previous_response_id=first.id, temperature=0, max_output_tokens=24
    )
    assert second.usage.input_tokens > first.usage.input_tokens + first.usage.output_tokens
    assert len(list(responses.input_items.list(second.id))) == 3


@BOTH_WAYS
@pytest.mark.parametrize("is_stream", [False, True])
def test_a_response_calls_a_function_and_takes_its_result(responses: Any, is_stream: bool) -> None:
    tool = {"type": "function", **WEATHER, "parameters": STRICT_PLACE, "strict": True}
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


@BOTH_WAYS
def test_a_response_keeps_to_a_schema(responses: Any) -> None:
    form = {"type": "json_schema", "name": "place", "schema": STRICT_PLACE, "strict": True}
    answer = responses.create(model=MODEL, input=WORDS, text={"format": form}, max_output_tokens=60)
    assert json.loads(answer.output_text)["city"] in ("Oslo", "Paris")


@BOTH_WAYS
def test_a_message_says_what_chat_says_whole_and_streamed(messages: Any, chat_text: str) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": QUESTION, "max_tokens": 24}
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


@BOTH_WAYS
@pytest.mark.parametrize("is_stream", [False, True])
def test_a_message_uses_a_tool_and_takes_its_result(messages: Any, is_stream: bool) -> None:
    turns: list[Any] = [{"role": "user", "content": "Weather in Paris?"}]
    tool = {**WEATHER, "input_schema": STRICT_PLACE}
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


@BOTH_WAYS
def test_an_unknown_model_is_an_error_in_anthropics_shape(messages: Any) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        messages.create(model="nobody", max_tokens=5, messages=[{"role": "user", "content": "hi"}])
    assert caught.value.response.json()["error"]["type"] == "not_found_error"


# ---- bad input and faults ----


def test_an_unknown_model_is_a_404_in_the_openai_shape(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refusal:
        client.chat.completions.create(model="nonesuch", messages=QUESTION)
    assert refusal.value.code == "model_not_found"
    assert "nonesuch" in refusal.value.message


def test_an_over_long_prompt_is_a_400_and_the_next_request_works(client: OpenAI) -> None:
    long = [{"role": "user", "content": "word " * 5000}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="context length") as refusal:
            client.chat.completions.create(model=MODEL, messages=long, stream=stream)
        assert refusal.value.code == "context_length_exceeded"
    assert client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=1).choices


def test_a_field_the_engine_would_ignore_is_refused_by_name(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        client.chat.completions.create(model=MODEL, messages=QUESTION, extra_body={"no_such_field": 1})
    assert refusal.value.param == "no_such_field"


def test_eight_streams_run_at_once(client: OpenAI, engine: EngineUnderTest) -> None:
    """All have begun before the first is over."""
    if is_refused(engine, "ignore_eos", lambda: long_stream(client)):
        return
    began: list[int] = []
    ended_with: list[int] = []

    def one(index: int) -> None:
        for position, chunk in enumerate(long_stream(client)):
            if position == 2 and chunk.choices:
                began.append(index)
        ended_with.append(len(began))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(8)))
    assert ended_with[0] == 8


def test_a_client_that_leaves_frees_the_engine(client: OpenAI, engine: EngineUnderTest, stack: RunningStack) -> None:
    if is_refused(engine, "ignore_eos", lambda: long_stream(client)):
        return
    stream = long_stream(client)
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 60
    while running_requests(engine, stack):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_sigterm_leaves_none_of_its_processes(client: OpenAI, engine: EngineUnderTest, stack: RunningStack) -> None:
    assert engine.kind != "vllm" or len(stack.pids("VLLM::")) >= 2
    stack.signal(signal.SIGTERM)
    assert stack.exit_code() == 0
    stack.assert_nothing_stays()
    assert stack.output.index("gateway: stopped") < stack.output.index(f"{engine.kind}: stopping")
