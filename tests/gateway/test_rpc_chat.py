"""penstock.v1.ChatService, health and reflection, through generated stubs."""

import json
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from fakes import FakeHandle
from gateway.protos.penstock.v1 import chat_pb2 as pb
from gateway.protos.penstock.v1.chat_pb2_grpc import ChatServiceStub
from gateways import GatewayHandle, config, start_gateway
from rpc import channel_to, chat_stub, details, reason

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


@pytest.fixture(scope="module")
def door(fakes: tuple[FakeHandle, FakeHandle]) -> Iterator[GatewayHandle]:
    settings = config(fakes[0].url, rpc={"port": 0})
    settings["models"]["m"]["aliases"] = ["nickname"]
    with start_gateway(settings) as handle:
        yield handle


@pytest.fixture(scope="module")
def stub(door: GatewayHandle) -> Iterator[ChatServiceStub]:
    with chat_stub(door) as stub:
        yield stub


def chat(text: str = "hello there", **fields: Any) -> pb.ChatRequest:
    return pb.ChatRequest(model="m", messages=[pb.Message(role=pb.ROLE_USER, content=text)], **fields)


def complete(stub: ChatServiceStub, request: pb.ChatRequest) -> pb.CompleteResponse:
    response: pb.CompleteResponse = stub.Complete(pb.CompleteRequest(chat=request), timeout=60)
    return response


def streamed(stub: ChatServiceStub, request: pb.ChatRequest) -> list[pb.StreamResponse]:
    return list(stub.Stream(pb.StreamRequest(chat=request), timeout=60))


def asked(fake: FakeHandle) -> Any:
    return fake.stats()["last_requests"][-1]["body"]


def test_a_whole_answer_has_its_message_reason_and_usage(stub: ChatServiceStub, fake: FakeHandle) -> None:
    fake.script({"tokens": ["Hello", " you"], "reasoning": ["hm", "m"], "cached_tokens": 1})
    response = complete(stub, chat())
    [choice] = response.choices
    assert (choice.message.role, choice.message.content, choice.message.reasoning) == (
        pb.ROLE_ASSISTANT, "Hello you", "hmm",
    )  # fmt: skip
    assert (choice.finish_reason, response.model) == ("stop", "m")
    assert (response.usage.prompt_tokens, response.usage.completion_tokens) == (2, 4)
    assert response.usage.cached_tokens == 1


def test_a_stream_says_the_same_piece_by_piece_and_counts_at_its_end(stub: ChatServiceStub, fake: FakeHandle) -> None:
    fake.script({"tokens": ["a", "b", "c"], "reasoning": ["h", "m"], "itl_s": 0.02})
    messages = streamed(stub, chat())
    deltas = [delta for message in messages for delta in message.deltas]
    assert [delta.content for delta in deltas if delta.content] == ["a", "b", "c"]
    assert [delta.reasoning for delta in deltas if delta.reasoning] == ["h", "m"]
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["stop"]
    assert [message.HasField("usage") for message in messages].index(True) == len(messages) - 1
    assert messages[-1].usage.completion_tokens == 5


def test_every_field_reaches_the_engine(stub: ChatServiceStub, fake: FakeHandle) -> None:
    request = chat(
        max_tokens=5,
        n=2,
        sampling=pb.Sampling(
            temperature=0.5, top_p=0.9, top_k=3, min_p=0.1, frequency_penalty=0.5, presence_penalty=-0.5,
            repetition_penalty=1.5, seed=-7, stop=["x"], stop_token_ids=[1], bad_words=["no"], min_tokens=2,
            logit_bias={5: -1.5},
        ),
        tools=[pb.Tool(name="weather", description="tells", parameters_json_schema=json.dumps(SCHEMA), strict=True)],
        tool_choice=pb.ToolChoice(function="weather"),
        parallel_tool_calls=False,
        constraint=pb.Constraint(choice=pb.Constraint.Choices(values=["yes", "no"])),
        logprobs=True,
        top_logprobs=2,
        reasoning_effort="low",
        user="u",
        extra_json='{"chat_template_kwargs": {"thinking": true}}',
    )  # fmt: skip
    complete(stub, request)
    function = {"name": "weather", "description": "tells", "parameters": SCHEMA, "strict": True}
    assert asked(fake) == {
        "model": "m", "messages": [{"role": "user", "content": "hello there"}], "max_tokens": 5, "n": 2,
        "temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1, "frequency_penalty": 0.5,
        "presence_penalty": -0.5, "repetition_penalty": 1.5, "seed": -7, "stop": ["x"], "stop_token_ids": [1],
        "bad_words": ["no"], "min_tokens": 2, "logit_bias": {"5": -1.5},
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "weather"}}, "parallel_tool_calls": False,
        "structured_outputs": {"choice": ["yes", "no"]}, "logprobs": True, "top_logprobs": 2,
        "reasoning_effort": "low", "user": "u", "chat_template_kwargs": {"thinking": True},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("constraint", "expected"),
    [
        (pb.Constraint(json_object=True), {"response_format": {"type": "json_object"}}),
        (pb.Constraint(json_schema=json.dumps(SCHEMA)), {"structured_outputs": {"json": SCHEMA}}),
        (pb.Constraint(regex="a+"), {"structured_outputs": {"regex": "a+"}}),
        (pb.Constraint(grammar='root ::= "a"'), {"structured_outputs": {"grammar": 'root ::= "a"'}}),
    ],
)
def test_a_constraint_is_the_one_every_engine_knows(
    stub: ChatServiceStub, fake: FakeHandle, constraint: pb.Constraint, expected: dict[str, Any]
) -> None:
    complete(stub, chat(constraint=constraint))
    assert expected.items() <= asked(fake).items()


def test_a_conversation_with_tools_and_parts_is_sent_as_it_was(stub: ChatServiceStub, fake: FakeHandle) -> None:
    request = pb.ChatRequest(
        model="m",
        messages=[
            pb.Message(role=pb.ROLE_SYSTEM, content="be brief"),
            pb.Message(role=pb.ROLE_USER, parts=[pb.ContentPart(text="look")], name="ann"),
            pb.Message(role=pb.ROLE_ASSISTANT, tool_calls=[pb.ToolCall(id="c1", name="f", arguments_json="{}")]),
            pb.Message(role=pb.ROLE_TOOL, content="sunny", tool_call_id="c1"),
        ],
    )
    complete(stub, request)
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert asked(fake)["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "look"}], "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
    ]


def test_tool_calls_come_typed_whole_and_in_fragments(stub: ChatServiceStub, fake: FakeHandle) -> None:
    fake.script({"tool_calls": [{"name": "f", "arguments": ['{"a"', ": 1}"], "id": "c1"}, {"name": "g", "id": "c2"}]})
    [choice] = complete(stub, chat()).choices
    assert [(call.id, call.name, call.arguments_json) for call in choice.message.tool_calls] == [
        ("c1", "f", '{"a": 1}'), ("c2", "g", "{}"),
    ]  # fmt: skip
    parts = [part for message in streamed(stub, chat()) for delta in message.deltas for part in delta.tool_calls]
    assert [part.name for part in parts if part.name] == ["f", "g"]
    assert "".join(part.arguments_json for part in parts if part.index == 0) == '{"a": 1}'


def test_each_choice_keeps_its_own_words(stub: ChatServiceStub, fake: FakeHandle) -> None:
    fake.script({"tokens": ["a", "b"]})
    assert [(choice.index, choice.message.content) for choice in complete(stub, chat(n=3)).choices] == [
        (0, "ab"), (1, "ab"), (2, "ab"),
    ]  # fmt: skip
    texts = ["", "", ""]
    for message in streamed(stub, chat(n=3)):
        for delta in message.deltas:
            texts[delta.index] += delta.content
    assert texts == ["ab"] * 3


def test_the_request_id_goes_through_and_comes_back(stub: ChatServiceStub, fake: FakeHandle) -> None:
    metadata = (("x-request-id", "mine-7"),)
    response, call = stub.Complete.with_call(pb.CompleteRequest(chat=chat()), metadata=metadata)
    assert response.id == "mine-7"
    assert ("x-request-id", "mine-7") in [tuple(pair) for pair in call.trailing_metadata()]
    assert fake.stats()["last_requests"][-1]["headers"]["x-request-id"] == "mine-7"


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (pb.ChatRequest(messages=[pb.Message(role=pb.ROLE_USER, content="x")]), "model"),
        (pb.ChatRequest(model="m"), "messages"),
        (pb.ChatRequest(model="m", messages=[pb.Message(content="x")]), "messages"),
        (pb.ChatRequest(model="m", messages=[pb.Message(role=pb.ROLE_USER, parts=[pb.ContentPart()])]), "messages"),
        (chat(sampling=pb.Sampling(temperature=3)), "temperature"),
        (chat(max_tokens=0), "max_tokens"),
        (chat(extra_json="[]"), "extra_json"),
        (chat(extra_json='{"model": "x"}'), "extra_json"),
        (chat(extra_json='{"stream": true}'), "extra_json"),
        (chat(extra_json='{"no_such_field": 1}'), "no_such_field"),
        (chat(tools=[pb.Tool(name="f", parameters_json_schema="{")]), "tools"),
        (chat(constraint=pb.Constraint(json_schema="1")), "constraint"),
        (chat(top_logprobs=2), "top_logprobs"),
    ],
)
def test_a_wrong_field_is_an_invalid_argument_that_names_it(
    stub: ChatServiceStub, fake: FakeHandle, request_: pb.ChatRequest, param: str
) -> None:
    for ask in (complete, streamed):
        with pytest.raises(grpc.RpcError) as caught:
            ask(stub, request_)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        bad: Any = details(caught.value)["BadRequest"]
        assert [violation.field for violation in bad.field_violations] == [param]
    assert fake.stats()["requests"] == 0


def test_an_engine_is_never_sent_to_fetch_a_private_address(stub: ChatServiceStub, fake: FakeHandle) -> None:
    parts = [pb.ContentPart(image_url="http://169.254.169.254/latest")]
    request = pb.ChatRequest(model="m", messages=[pb.Message(role=pb.ROLE_USER, parts=parts)])
    with pytest.raises(grpc.RpcError) as caught:
        complete(stub, request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert fake.stats()["requests"] == 0


def test_models_are_listed_with_what_an_alias_stands_for(stub: ChatServiceStub) -> None:
    models = stub.ListModels(pb.ListModelsRequest()).models
    assert [(model.id, model.parent, model.ready) for model in models] == [("m", "", True), ("nickname", "m", True)]


def test_health_is_told_for_the_server_each_service_and_each_model(door: GatewayHandle) -> None:
    with channel_to(door) as channel:
        health = HealthStub(channel)
        for name in ("", "penstock.v1.ChatService", "inference.GRPCInferenceService", "m", "nickname"):
            assert health.Check(HealthCheckRequest(service=name)).status == HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            health.Check(HealthCheckRequest(service="nobody"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_watch_sees_the_model_go_and_come_back(door: GatewayHandle, fake: FakeHandle) -> None:
    with channel_to(door) as channel:
        watch = HealthStub(channel).Watch(HealthCheckRequest(service="m"), timeout=60)
        assert next(watch).status == HealthCheckResponse.SERVING
        fake.health(503)
        assert next(watch).status == HealthCheckResponse.NOT_SERVING
        fake.health(200)
        assert next(watch).status == HealthCheckResponse.SERVING
        watch.cancel()


def test_all_who_watch_see_it_and_one_who_leaves_takes_it_from_nobody(door: GatewayHandle, fake: FakeHandle) -> None:
    with channel_to(door) as channel:
        watches = [HealthStub(channel).Watch(HealthCheckRequest(service="m"), timeout=60) for _ in range(5)]
        assert [next(watch).status for watch in watches] == [HealthCheckResponse.SERVING] * 5
        watches.pop().cancel()
        fake.health(503)
        assert [next(watch).status for watch in watches] == [HealthCheckResponse.NOT_SERVING] * 4
        watches.append(HealthStub(channel).Watch(HealthCheckRequest(service="m"), timeout=60))
        assert next(watches[-1]).status == HealthCheckResponse.NOT_SERVING
        fake.health(200)
        assert [next(watch).status for watch in watches] == [HealthCheckResponse.SERVING] * 5
        for watch in watches:
            watch.cancel()


def test_reflection_describes_every_service(door: GatewayHandle) -> None:
    with channel_to(door) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert set(database.get_services()) == {
            "penstock.v1.ChatService", "inference.GRPCInferenceService", "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }  # fmt: skip
        file = database.FindFileContainingSymbol("penstock.v1.ChatService")
        assert [method.name for method in file.service[0].method] == ["Complete", "Stream", "ListModels"]


def test_the_reason_of_a_refusal_is_its_code(stub: ChatServiceStub) -> None:
    request = chat()
    request.model = "nobody"
    with pytest.raises(grpc.RpcError) as caught:
        complete(stub, request)
    assert (caught.value.code(), reason(caught.value)) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_refused_and_not_taken_for_absent(
    stub: ChatServiceStub, fake: FakeHandle, value: float
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        complete(stub, chat(sampling=pb.Sampling(temperature=value)))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    info: Any = details(caught.value)["ErrorInfo"]
    assert info.metadata["param"] == "temperature"
    assert fake.stats()["requests"] == 0
