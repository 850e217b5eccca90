"""/v1/messages through the official `anthropic` client: translated over chat, or relayed where the engine has it."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest

from fakes import FakeHandle
from gateways import KEY, KEY_SHA256, GatewayHandle, start_gateway

HI = [{"role": "user", "content": "hi"}]
TOOL = {"name": "f", "description": "d", "input_schema": {"type": "object"}}
CALLS = [
    {"name": "f", "arguments": ['{"a"', ": 1}"], "id": "call_1"},
    {"name": "g", "arguments": "{}", "id": "call_2"},
]


@pytest.fixture(scope="module")
def served(fakes: tuple[FakeHandle, FakeHandle]) -> Iterator[GatewayHandle]:
    """Model `t` is translated over chat, `r` relayed."""
    replicas = {"r0": {"url": fakes[0].url}}
    deployments = {
        name: {"deployments": {"main": {"engine": engine, "model": "m", "replicas": replicas, "probe_interval_s": 0.2}}}
        for name, engine in (("t", "openvino"), ("r", "vllm"))
    }
    auth = {"keys": {"one": {"sha256": KEY_SHA256}}}
    with start_gateway({"server": {"port": 0}, "models": deployments, "auth": auth}) as handle:
        yield handle


@pytest.fixture
def client(served: GatewayHandle, fake: FakeHandle) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=served.url, api_key=KEY, max_retries=0) as made:
        yield made


def ask(client: anthropic.Anthropic, **asked: Any) -> anthropic.types.Message:
    return client.messages.create(**{"model": "t", "max_tokens": 50, "messages": HI, **asked})


def sent(fake: FakeHandle) -> dict[str, Any]:
    body: dict[str, Any] = fake.stats()["last_requests"][-1]["body"]
    return body


def without_ids(message: anthropic.types.Message) -> dict[str, Any]:
    said = message.model_dump(exclude={"id"}, exclude_none=True)
    for block in said["content"]:
        block.pop("id", None)
    return said


@pytest.mark.parametrize(
    "script",
    [
        {},
        {"tokens": ["é", "你", ' "quoted" ', "\n"]},
        {"tokens": []},
        {"reasoning": ["Let", " me"], "tokens": ["Yes"]},
        {"tool_calls": CALLS},
        {"reasoning": ["Hm"], "tokens": ["Look", ":"], "tool_calls": CALLS},
        {"tokens_per_chunk": 3, "role_chunk": "merged", "finish_chunk": "merged"},
        {"newline": "crlf", "done": False, "usage_chunk": "every"},
        {"write_bytes": 7, "write_pause_s": 0, "reasoning": ["Hm"], "tool_calls": CALLS},
        {"cached_tokens": 1},
    ],
)
def test_the_sum_of_a_stream_is_the_whole_message(
    client: anthropic.Anthropic, fake: FakeHandle, script: dict[str, Any]
) -> None:
    fake.script(script)
    with client.messages.stream(model="t", max_tokens=50, messages=HI) as stream:
        kinds = [event.type for event in stream]
        summed = stream.get_final_message()
    assert without_ids(anthropic.types.Message(**summed.model_dump())) == without_ids(ask(client))
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == len(summed.content)


def test_blocks_come_one_after_the_other_with_their_places(served: GatewayHandle, fake: FakeHandle) -> None:
    fake.script({"reasoning": ["Hm"], "tokens": ["Look"], "tool_calls": CALLS})
    body = {"model": "t", "max_tokens": 50, "messages": HI, "stream": True}
    answer = httpx.post(f"{served.url}/v1/messages", json=body, headers={"x-api-key": KEY})
    assert answer.headers["content-type"].startswith("text/event-stream")
    told = [part.split("\n") for part in answer.text.split("\n\n") if part]
    events = [json.loads(line.removeprefix("data: ")) for _, line in told]
    assert [name.removeprefix("event: ") for name, _ in told] == [event["type"] for event in events]
    assert events[1] == {"type": "ping"}
    open_block = None
    for event in events:
        if event["type"] == "content_block_start":
            assert open_block is None
            open_block = event["index"]
        elif event["type"].startswith("content_block"):
            assert event["index"] == open_block
            open_block = None if event["type"] == "content_block_stop" else open_block
    assert open_block is None


def test_the_kinds_of_blocks(client: anthropic.Anthropic, fake: FakeHandle) -> None:
    fake.script({"reasoning": ["Hm"], "tokens": ["Look"], "tool_calls": CALLS})
    answer = ask(client, tools=[TOOL])
    assert [block.type for block in answer.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert answer.content[2].input == {"a": 1}
    assert (answer.content[2].id, answer.content[2].name) == ("call_1", "f")
    assert answer.stop_reason == "tool_use"
    assert answer.model == "t"
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (1, 7)
    assert answer._request_id


@pytest.mark.parametrize(
    ("script", "reason"),
    [({}, "end_turn"), ({"tokens": 60}, "max_tokens"), ({"finish_reason": "content_filter"}, "refusal")],
)
def test_why_it_stopped(client: anthropic.Anthropic, fake: FakeHandle, script: dict[str, Any], reason: str) -> None:
    fake.script(script)
    assert ask(client).stop_reason == reason


def test_what_is_asked_reaches_the_engine_in_chats_words(client: anthropic.Anthropic, fake: FakeHandle) -> None:
    ask(
        client,
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "x", "signature": ""},
                    {"type": "text", "text": "c"},
                    {"type": "tool_use", "id": "c1", "name": "f", "input": {"page_url": "x"}},
                    {"type": "tool_use", "id": "c2", "name": "f", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c1", "content": "one"},
                    {"type": "tool_result", "tool_use_id": "c2", "is_error": True,
                     "content": [{"type": "text", "text": "two"}]},
                    {"type": "text", "text": "go on"},
                ],
            },
        ],
        stop_sequences=["END"],
        extra_body={"temperature": 0.5, "top_p": 0.9, "top_k": 4},
        tools=[TOOL],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        metadata={"user_id": "u"},
        thinking={"type": "disabled"},
    )  # fmt: skip
    body = sent(fake)
    calls = [
        {"id": name, "type": "function", "function": {"name": "f", "arguments": arguments}}
        for name, arguments in (("c1", '{"page_url":"x"}'), ("c2", "{}"))
    ]
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "c", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
        {"role": "tool", "tool_call_id": "c2", "content": "Error: two"},
        {"role": "user", "content": "go on"},
    ]
    tool = {"name": "f", "parameters": {"type": "object"}, "description": "d"}
    expected = {"model": "m", "max_completion_tokens": 50, "stop": ["END"], "temperature": 0.5, "top_p": 0.9}
    expected |= {"top_k": 4, "tool_choice": "required", "parallel_tool_calls": False, "stream": False}
    expected |= {"tools": [{"type": "function", "function": tool}]}
    assert expected.items() <= body.items()
    assert "metadata" not in body


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "search_result"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "tool_use_id"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0]"),
        ({"tools": [TOOL], "tool_choice": {"type": "perhaps"}}, "tool_choice.type"),
        ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
        ({"temperature": 1.5}, "temperature"),
        ({"nonsense": 1}, "nonsense"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "thinking.budget_tokens"),  # not this engine's
        ({"messages": [*HI, {"role": "assistant", "content": "It"}]}, "'messages'"),  # nor is going on
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    client: anthropic.Anthropic, fake: FakeHandle, asked: dict[str, Any], words: str
) -> None:
    body = {"model": "t", "max_tokens": 5, "messages": HI, **asked}
    body = {name: value for name, value in body.items() if value is not None}
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.post("/v1/messages", body=body, cast_to=object)
    error = caught.value.response.json()
    assert error["type"] == "error"
    assert error["error"]["type"] == "invalid_request_error"
    assert words in error["error"]["message"]
    assert error["request_id"] == caught.value.response.headers["x-request-id"]
    assert "POST /v1/chat/completions" not in fake.stats()["paths"]


def test_the_key_comes_either_way(served: GatewayHandle) -> None:
    body = {"model": "t", "max_tokens": 5, "messages": HI}
    for headers, status in (
        ({"x-api-key": KEY}, 200),
        ({"authorization": f"Bearer {KEY}"}, 200),
        ({"x-api-key": "wrong"}, 401),
        ({}, 401),
    ):
        answer = httpx.post(f"{served.url}/v1/messages", json=body, headers=headers)
        assert answer.status_code == status
        assert status == 200 or answer.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("model", ["t", "r"])
@pytest.mark.parametrize(
    ("status", "kind"), [(400, "invalid_request_error"), (503, "overloaded_error"), (500, "api_error")]
)
def test_an_engines_error_leaves_in_anthropics_shape(
    client: anthropic.Anthropic, fake: FakeHandle, model: str, status: int, kind: str
) -> None:
    fake.script({"error": {"status": status, "message": "no"}})
    for is_stream in (False, True):
        with pytest.raises(anthropic.APIStatusError) as caught:
            ask(client, model=model, stream=is_stream)
        assert caught.value.status_code == status
        assert caught.value.response.json()["error"] == {"type": kind, "message": "no"}


def test_an_unknown_model_is_a_not_found_error(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        ask(client, model="nobody")
    assert caught.value.response.json()["error"]["type"] == "not_found_error"


@pytest.mark.parametrize("model", ["t", "r"])
@pytest.mark.parametrize(
    "script",
    [{"error_event": {"after_chunks": 2, "message": "broke"}}, {"die": {"at": 2, "how": "reset", "half_event": True}}],
)
def test_a_late_failure_becomes_one_error_event(
    served: GatewayHandle, fake: FakeHandle, model: str, script: dict[str, Any]
) -> None:
    fake.script(script | {"itl_s": 0.01})
    body = {"model": model, "max_tokens": 50, "messages": HI, "stream": True}
    text = httpx.post(f"{served.url}/v1/messages", json=body, headers={"x-api-key": KEY}).text
    assert text.count("event: error\n") == 1
    last = json.loads(text.rstrip("\n").split("\n")[-1].removeprefix("data: "))
    assert last["type"] == "error"
    assert last["error"]["type"] == "api_error"
    assert text.count("text_delta") == 2
    with anthropic.Anthropic(base_url=served.url, api_key=KEY, max_retries=0) as client:
        with pytest.raises(anthropic.APIStatusError), client.messages.create(**body) as stream:
            list(stream)
        fake.reset_script()
        assert ask(client, model=model).stop_reason == "end_turn"


@pytest.mark.parametrize("model", ["t", "r"])
def test_a_client_that_leaves_stops_the_engine(client: anthropic.Anthropic, fake: FakeHandle, model: str) -> None:
    fake.script({"tokens": 100_000, "itl_s": 0.01})
    with client.messages.create(model=model, max_tokens=20_000, messages=HI, stream=True) as stream:
        for event in stream:
            if event.type == "content_block_delta":
                break
    fake.wait(lambda stats: stats["aborted"] == 1 and stats["active"] == 0)


def test_where_the_engine_has_messages_its_own_are_relayed(client: anthropic.Anthropic, fake: FakeHandle) -> None:
    with client.messages.stream(model="r", max_tokens=50, messages=HI) as stream:
        summed = stream.get_final_message()
    whole = ask(client, model="r")
    assert without_ids(anthropic.types.Message(**summed.model_dump())) == without_ids(whole)
    assert whole.content[0].text == "Water runs through the penstock."
    assert whole.model == "r"
    assert fake.stats()["paths"]["POST /v1/messages"] == 2
    assert sent(fake)["model"] == "m"


def test_tokens_are_counted_where_the_engine_can(client: anthropic.Anthropic, fake: FakeHandle) -> None:
    assert client.messages.count_tokens(model="r", messages=[{"role": "user", "content": "one two"}]).input_tokens == 2
    with pytest.raises(anthropic.BadRequestError, match="does not offer /v1/messages/count_tokens"):
        client.messages.count_tokens(model="t", messages=HI)
