"""/v1/responses through the official client: translated over chat for any engine, relayed where the engine has it."""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

import wire
from fakes import FakeHandle
from gateways import KEY, KEY_SHA256, GatewayHandle, start_gateway

OTHER_KEY = "sk-other-key"
TOOL = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": False}
CALLS = [
    {"name": "f", "arguments": ['{"a"', ": 1}"], "id": "call_1"},
    {"name": "g", "arguments": "{}", "id": "call_2"},
]


@pytest.fixture(scope="module")
def served(fakes: tuple[FakeHandle, FakeHandle]) -> Iterator[GatewayHandle]:
    """Model `t` is translated over chat (its backend has no Responses), `r` is relayed; two keys."""
    replicas = {"r0": {"url": fakes[0].url}}
    deployments = {
        name: {"deployments": {"main": {"engine": engine, "model": "m", "replicas": replicas, "probe_interval_s": 0.2}}}
        for name, engine in (("t", "openvino"), ("r", "vllm"))
    }
    other = hashlib.sha256(OTHER_KEY.encode()).hexdigest()
    auth = {"keys": {"one": {"sha256": KEY_SHA256}, "two": {"sha256": other}}}
    with start_gateway({"server": {"port": 0, "send_timeout_s": 1}, "models": deployments, "auth": auth}) as handle:
        yield handle


@pytest.fixture
def client(served: GatewayHandle, fake: FakeHandle) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


def sent(fake: FakeHandle) -> dict[str, Any]:
    """The body of the last request the engine got."""
    body: dict[str, Any] = fake.stats()["last_requests"][-1]["body"]
    return body


def eventually(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def without_ids(value: Any) -> Any:
    """What a whole answer and a stream of the same have in common."""
    if isinstance(value, list):
        return [without_ids(one) for one in value]
    if isinstance(value, dict):
        left_out = {"id", "call_id", "created_at", "completed_at"}
        return {name: without_ids(one) for name, one in value.items() if name not in left_out}
    return value


class Rebuilt:
    """Puts a response together from deltas alone, and holds every event against what came before."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self.texts: dict[tuple[int, int], str] = {}
        self.last: dict[str, Any] = {}

    def take(self, number: int, event: dict[str, Any]) -> None:
        assert event["sequence_number"] == number
        assert not self.last, f"after the end: {event}"
        kind = event["type"]
        if "output_index" in event and kind != "response.output_item.added":
            assert "item_id" not in event or self.items[event["output_index"]]["id"] == event["item_id"]
        place = (event.get("output_index", -1), event.get("content_index", -1))
        if kind == "response.output_item.added":
            assert event["output_index"] == len(self.items)
            self.items.append(event["item"])
        elif kind == "response.content_part.added":
            assert event["content_index"] == len([at for at in self.texts if at[0] == place[0]])
            self.texts[place] = ""
        elif kind.endswith(".delta"):
            self.texts[place] = self.texts.get(place, "") + event["delta"]
        elif kind in ("response.output_text.done", "response.reasoning_text.done"):
            assert event["text"] == self.texts[place]
        elif kind == "response.function_call_arguments.done":
            assert event["arguments"] == self.texts.get(place, "")
        elif kind == "response.output_item.done":
            self.items[event["output_index"]] = event["item"]
        elif kind in ("response.completed", "response.incomplete", "response.failed"):
            self.last = event["response"]

    def check_sum(self) -> None:
        output = self.last["output"]
        assert self.items == output
        for (at, part), text in self.texts.items():
            whole = output[at]["arguments"] if part == -1 else output[at]["content"][part]["text"]
            assert whole == text


def rebuilt(client: openai.OpenAI, **asked: Any) -> Rebuilt:
    sum_of_deltas = Rebuilt()
    with client.responses.create(stream=True, **asked) as stream:
        for number, event in enumerate(stream):
            sum_of_deltas.take(number, event.model_dump(exclude_unset=True))
    return sum_of_deltas


SCRIPTS: list[dict[str, Any]] = [
    {},
    {"tokens": ["é", "你", "好", ' "quoted" ', "\n"]},
    {"tokens": []},
    {"reasoning": ["Let", " me"], "tokens": ["Yes"]},
    {"reasoning": ["Let", " me"], "reasoning_field": "reasoning_content"},
    {"tool_calls": CALLS},
    {"reasoning": ["Hm"], "tokens": ["Look", ":"], "tool_calls": CALLS},
    {"tokens_per_chunk": 3, "role_chunk": "merged", "finish_chunk": "merged"},
    {"role_chunk": "none", "usage_chunk": "every"},
    {"newline": "crlf", "data_space": False, "done": False},
    {"write_bytes": 7, "write_pause_s": 0, "reasoning": ["Hm"], "tool_calls": CALLS},
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_final_object_is_the_sum_of_its_deltas_and_the_same_as_whole(
    client: openai.OpenAI, fake: FakeHandle, script: dict[str, Any]
) -> None:
    fake.script(script)
    streamed = rebuilt(client, model="t", input="hi")
    streamed.check_sum()
    whole = client.responses.create(model="t", input="hi").model_dump(exclude_unset=True)
    assert without_ids(streamed.last) == without_ids(whole)
    assert whole["status"] == "completed"
    assert whole["usage"]["total_tokens"] == whole["usage"]["input_tokens"] + whole["usage"]["output_tokens"]


def test_the_kinds_of_items_come_in_their_order(client: openai.OpenAI, fake: FakeHandle) -> None:
    fake.script({"reasoning": ["Hm"], "tokens": ["Look"], "tool_calls": CALLS})
    answer = client.responses.create(model="t", input="hi", tools=[TOOL])
    assert [item.type for item in answer.output] == ["reasoning", "message", "function_call", "function_call"]
    reasoning, message, first, second = answer.output
    assert reasoning.content[0].text == "Hm"
    assert message.content[0].text == answer.output_text == "Look"
    assert (first.name, first.call_id, json.loads(first.arguments)) == ("f", "call_1", {"a": 1})
    assert (second.name, second.call_id, second.arguments) == ("g", "call_2", "{}")
    assert answer.usage.output_tokens_details.reasoning_tokens == 1
    assert answer.model == "t"
    assert sent(fake)["tools"] == [{"type": "function", "function": {k: v for k, v in TOOL.items() if k != "type"}}]


def test_an_answer_cut_by_its_limit_is_incomplete(client: openai.OpenAI, fake: FakeHandle) -> None:
    whole = client.responses.create(model="t", input="hi", max_output_tokens=2)
    streamed = rebuilt(client, model="t", input="hi", max_output_tokens=2)
    streamed.check_sum()
    assert whole.status == streamed.last["status"] == "incomplete"
    assert whole.incomplete_details.reason == streamed.last["incomplete_details"]["reason"] == "max_output_tokens"
    assert whole.output[0].status == "incomplete"
    assert whole.output_text == "Water runs"
    assert sent(fake)["max_completion_tokens"] == 2


def test_what_is_asked_reaches_the_engine_in_chats_words(client: openai.OpenAI, fake: FakeHandle) -> None:
    schema = {"type": "object", "properties": {}}
    client.responses.create(
        model="t",
        instructions="Be brief.",
        input=[
            {"role": "developer", "content": "No jokes."},
            {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "x"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "c"}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "one"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "two"}]},
        ],
        temperature=0.5,
        top_p=0.9,
        tools=[TOOL],
        tool_choice={"type": "function", "name": "f"},
        parallel_tool_calls=False,
        text={"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}},
        top_logprobs=2,
        include=["message.output_text.logprobs"],
        extra_body={"top_k": 5, "seed": 1},
    )
    body = sent(fake)
    calls = [{"id": i, "type": "function", "function": {"name": "f", "arguments": "{}"}} for i in ("c1", "c2")]
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "system", "content": "No jokes."},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "c", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
        {"role": "tool", "tool_call_id": "c2", "content": "two"},
    ]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert body["response_format"]["json_schema"] == {"name": "n", "schema": schema, "strict": True}
    expected = {"model": "m", "temperature": 0.5, "top_p": 0.9, "parallel_tool_calls": False, "top_k": 5, "seed": 1}
    expected |= {"logprobs": True, "top_logprobs": 2, "stream": False}
    assert expected.items() <= body.items()


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_stored_response_is_the_answer_and_goes_on(client: openai.OpenAI, fake: FakeHandle, is_stream: bool) -> None:
    fake.script({"reasoning": ["Hm"], "tool_calls": CALLS})
    if is_stream:
        answer = rebuilt(client, model="t", input="hi", instructions="once", metadata={"a": "b"}).last
    else:
        made = client.responses.create(model="t", input="hi", instructions="once", metadata={"a": "b"})
        answer = made.model_dump(exclude_unset=True)
    assert client.responses.retrieve(answer["id"]).model_dump(exclude_unset=True) == answer
    fake.script({})
    outputs = [
        {"type": "function_call_output", "call_id": call["id"], "output": f"result {call['id']}"} for call in CALLS
    ]
    second = client.responses.create(model="t", input=outputs, previous_response_id=answer["id"])
    roles = [(m["role"], m["content"], len(m.get("tool_calls", ()))) for m in sent(fake)["messages"]]
    assert roles == [
        ("user", "hi", 0),
        ("assistant", None, 2),
        ("tool", "result call_1", 0),
        ("tool", "result call_2", 0),
    ]
    third = client.responses.create(model="t", input="and?", previous_response_id=second.id)
    assert [m["role"] for m in sent(fake)["messages"]] == ["user", "assistant", "tool", "tool", "assistant", "user"]
    assert third.previous_response_id == second.id


def test_input_items_are_listed_by_pages(client: openai.OpenAI, fake: FakeHandle) -> None:
    given = [{"role": "user", "content": str(number)} for number in range(5)]
    answer = client.responses.create(model="t", input=given)
    items = list(client.responses.input_items.list(answer.id, limit=2, order="asc"))
    assert [item.content[0].text for item in items] == ["0", "1", "2", "3", "4"]
    newest = client.responses.input_items.list(answer.id, limit=1)
    assert newest.data[0].content[0].text == "4"
    assert newest.has_more


def test_what_one_key_stored_does_not_exist_for_another(client: openai.OpenAI, served: GatewayHandle) -> None:
    answer = client.responses.create(model="t", input="hi")
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=OTHER_KEY, max_retries=0) as other:
        for ask in (
            lambda: other.responses.retrieve(answer.id),
            lambda: other.responses.delete(answer.id),
            lambda: other.responses.input_items.list(answer.id),
            lambda: other.responses.create(model="t", input="hi", previous_response_id=answer.id),
        ):
            with pytest.raises(openai.NotFoundError):
                ask()
    client.responses.retrieve(answer.id)
    client.responses.delete(answer.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)
    nobody = client.with_options(api_key="wrong")
    with pytest.raises(openai.AuthenticationError):
        nobody.responses.retrieve(answer.id)


def test_what_is_not_to_be_stored_is_not(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="t", input="hi", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)


def test_an_unknown_previous_response_is_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.create(model="r", input="hi", previous_response_id="resp_unknown", store=False)
    assert caught.value.code == "previous_response_not_found"
    assert caught.value.param == "previous_response_id"


def test_only_background_responses_could_be_cancelled(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="t", input="hi")
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(answer.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.cancel("resp_unknown")


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"max_tool_calls": 3}, "max_tool_calls"),
        ({"truncation": "auto"}, "truncation"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [TOOL], "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
        ({"include": ["reasoning.encrypted_content"]}, "include"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "filename": "x"}]}]},
            "input[0].content[0].type",
        ),
        ({"input": [{"role": "nobody", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"nonsense": 1}, "nonsense"),
        ({"reasoning": {"effort": "low"}}, "reasoning"),  # not one of this engine's: named as the client named it
        ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    client: openai.OpenAI, fake: FakeHandle, asked: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/responses", body={"model": "t", "input": "hi", **asked}, cast_to=object)
    assert caught.value.param == param
    assert "POST /v1/chat/completions" not in fake.stats()["paths"]


def test_a_failure_before_the_stream_is_an_error_status(client: openai.OpenAI, fake: FakeHandle) -> None:
    fake.script({"error": {"status": 400, "message": "no 'messages'", "param": "messages"}})
    for is_stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model="t", input="hi", stream=is_stream)
        assert caught.value.param == "input"
        assert "'input'" in str(caught.value)


@pytest.mark.parametrize(
    "script",
    [{"error_event": {"after_chunks": 2, "message": "broke"}}, {"die": {"at": 2, "how": "reset", "half_event": True}}],
)
def test_a_late_failure_is_an_error_event_and_a_failed_response(
    client: openai.OpenAI, fake: FakeHandle, script: dict[str, Any]
) -> None:
    fake.script(script | {"itl_s": 0.01})
    streamed = Rebuilt()
    errors = []
    with client.responses.create(model="t", input="hi", stream=True) as stream:
        for number, event in enumerate(stream):
            streamed.take(number, event.model_dump(exclude_unset=True))
            errors += [event] if event.type == "error" else []
    streamed.check_sum()
    assert streamed.last["status"] == "failed"
    assert streamed.last["error"]["message"] == errors[0].message
    assert len(errors) == 1
    assert streamed.last["output"][0]["content"][0]["text"] == "Water runs"
    assert streamed.last["output"][0]["status"] == "incomplete"
    assert client.responses.retrieve(streamed.last["id"]).status == "failed"
    fake.reset_script()
    assert client.responses.create(model="t", input="hi").status == "completed"


@pytest.mark.parametrize("model", ["t", "r"])
def test_a_client_that_leaves_stops_the_engine(client: openai.OpenAI, fake: FakeHandle, model: str) -> None:
    fake.script({"tokens": 100_000, "itl_s": 0.01})
    with client.responses.create(model=model, input="hi", stream=True, store=model == "t") as stream:
        for event in stream:
            if event.type == "response.created":
                response_id = event.response.id
            if event.type == "response.output_text.delta":
                break
    fake.wait(lambda stats: stats["aborted"] == 1 and stats["active"] == 0)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response_id)


@pytest.mark.parametrize("model", ["t", "r"])
def test_a_client_that_reads_nothing_holds_the_engine_back_and_is_cut(
    served: GatewayHandle, fake: FakeHandle, model: str
) -> None:
    fake.script({"flood": True, "token_bytes": 1000})
    body = {"model": model, "input": "hi", "stream": True, "store": False}
    with contextlib.closing(wire.dial(served.port)) as sock:
        wire.send(sock, body, "/v1/responses", f"authorization: Bearer {KEY}\r\n")
        stats = fake.wait(lambda stats: stats["aborted"] == 1)
    assert stats["generated_tokens"] < 50_000
    eventually(lambda: served.metric("penstock_requests_in_flight") == 0)
    cut = served.metric("penstock_requests_total", endpoint="responses", model=model, outcome="client_closed")
    assert cut >= 1


# ---- relayed ----


def test_where_the_engine_has_responses_its_own_are_relayed(
    client: openai.OpenAI, fake: FakeHandle, served: GatewayHandle
) -> None:
    whole = client.responses.create(model="r", input="hi", store=False)
    streamed = rebuilt(client, model="r", input="hi", store=False)
    assert fake.stats()["paths"]["POST /v1/responses"] == 2
    assert "POST /v1/chat/completions" not in fake.stats()["paths"]
    assert whole.output_text == "Water runs through the penstock."
    assert streamed.last["output"][0]["content"][0]["text"] == whole.output_text
    assert whole.model == streamed.last["model"] == "r"
    assert sent(fake)["model"] == "m"

    def lines() -> list[dict[str, Any]]:
        return [line for line in served.access_lines() if line["model"] == "r" and line.get("finish_reason")]

    eventually(lambda: len(lines()) >= 2)
    line = lines()[-1]
    assert (line["endpoint"], line["output_tokens"], line["finish_reason"]) == ("responses", 6, "completed")
    assert line["ttft_s"] > 0


def test_what_the_gateway_must_remember_is_translated_there_too(client: openai.OpenAI, fake: FakeHandle) -> None:
    first = client.responses.create(model="r", input="hi")
    client.responses.create(model="r", input="on", previous_response_id=first.id, store=False)
    assert "POST /v1/responses" not in fake.stats()["paths"]
    assert [message["content"] for message in sent(fake)["messages"]][::2] == ["hi", "on"]


@pytest.mark.parametrize(
    "script",
    [{"error_event": {"after_chunks": 2, "message": "broke"}}, {"die": {"at": 2, "how": "reset", "half_event": True}}],
)
def test_a_late_failure_of_a_relayed_stream_is_an_error_event(
    client: openai.OpenAI, fake: FakeHandle, script: dict[str, Any]
) -> None:
    fake.script(script | {"itl_s": 0.01})
    with client.responses.create(model="r", input="hi", stream=True, store=False) as stream:
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[-2:]] == ["response.output_text.delta", "error"]
    assert events[-1].message
