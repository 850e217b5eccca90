"""The official `openai` client notices no difference between the gateway and OpenAI."""

from collections.abc import Iterator

import openai
import pytest

from fakes import FakeHandle
from gateways import KEY, KEY_SHA256, GatewayHandle, config, start_gateway


@pytest.fixture(scope="module")
def guarded(fakes: tuple[FakeHandle, FakeHandle]) -> Iterator[GatewayHandle]:
    """A gateway that wants a key, whose engine knows the model by another name."""
    auth = {"keys": {"tester": {"sha256": KEY_SHA256}}}
    deployment = {"model": "m", "max_waiting": 0}
    with start_gateway(config(fakes[0].url, model="org/public-name", deployment=deployment, auth=auth)) as handle:
        yield handle


@pytest.fixture
def client(guarded: GatewayHandle, fake: FakeHandle) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


def chat(client: openai.OpenAI, model: str = "org/public-name", **fields):  # type: ignore[no-untyped-def]
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}], **fields)


def test_a_plain_answer_names_the_public_model(client: openai.OpenAI, fake: FakeHandle) -> None:
    answer = chat(client)
    assert answer.model == "org/public-name"
    assert answer.choices[0].message.content
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer._request_id
    assert fake.stats()["last_requests"][-1]["body"]["model"] == "m"


def test_a_stream_adds_up_to_the_plain_answer(client: openai.OpenAI) -> None:
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == chat(client).choices[0].message.content
    assert {chunk.model for chunk in chunks} == {"org/public-name"}
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


def test_tool_calls_arrive_in_fragments_that_join(client: openai.OpenAI, fake: FakeHandle) -> None:
    fake.script({"tool_calls": [{"name": "weather", "arguments": ['{"city"', ': "Oslo"}']}], "tokens": 0})
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    with client.chat.completions.stream(
        model="org/public-name", messages=[{"role": "user", "content": "hi"}], tools=tools
    ) as stream:
        message = stream.get_final_completion().choices[0].message
    assert message.tool_calls[0].function.arguments == '{"city": "Oslo"}'


def test_completions_and_embeddings(client: openai.OpenAI) -> None:
    assert client.completions.create(model="org/public-name", prompt="hi").choices[0].text
    data = client.embeddings.create(model="org/public-name", input=["a", "b"]).data
    assert len(data[0].embedding) == len(data[1].embedding) > 0


def test_models_are_found_by_names_with_slashes(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["org/public-name"]
    assert client.models.retrieve("org/public-name").id == "org/public-name"


def test_errors_are_the_clients_own_exceptions(client: openai.OpenAI, guarded: GatewayHandle, fake: FakeHandle) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        chat(client, model="other")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as wrong:
        chat(client, temperature=9)
    assert wrong.value.param == "temperature"
    with (
        pytest.raises(openai.AuthenticationError),
        openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="sk-no") as stranger,
    ):
        chat(stranger)
    fake.script({"error": {"status": 400, "message": "This model's maximum context length is 8 tokens"}})
    with pytest.raises(openai.BadRequestError) as long:
        chat(client)
    assert long.value.code == "context_length_exceeded"
    fake.script({"error_event": {"after_chunks": 1, "message": "lost a GPU"}})
    with pytest.raises(openai.APIError, match="lost a GPU"):
        list(chat(client, stream=True))
