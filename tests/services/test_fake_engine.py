"""The fake engine answers like an OpenAI server, to the official client and on the wire."""

import hashlib
import json
import math
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml

from fake_engine.script import Script
from fakes import FakeHandle, start_fake
from wire import chat, dial, events, exchange, receive, send


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeHandle]:
    with start_fake("--model", "fake", "--model", "org/other", "--max-model-len", "1000") as handle:
        yield handle


@pytest.fixture
def client(fake: FakeHandle) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{fake.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def ask(client: openai.OpenAI, fake: dict[str, Any] | None = None, **fields: Any) -> Any:
    body = chat(fake, **fields)
    return client.chat.completions.create(**body)


def test_without_a_script_the_answer_is_always_the_same(client: openai.OpenAI) -> None:
    first, second = ask(client), ask(client)
    assert first.choices[0].message.content == "Water runs through the penstock."
    assert first.choices == second.choices
    assert first.choices[0].finish_reason == "stop"
    assert (first.usage.prompt_tokens, first.usage.completion_tokens, first.usage.total_tokens) == (2, 6, 8)


def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI) -> None:
    script = {"tokens": ["a", "ü", "水", "🌊"], "reasoning": ["hm", "!"]}
    whole = ask(client, script)
    chunks = list(ask(client, script, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "aü水🌊"
    assert whole.choices[0].message.content == "aü水🌊"
    assert "".join(getattr(c.choices[0].delta, "reasoning", None) or "" for c in chunks if c.choices) == "hm!"
    assert whole.choices[0].message.reasoning == "hm!"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert whole.usage.completion_tokens == 6
    assert whole.usage.completion_tokens_details.reasoning_tokens == 2


def test_stream_chunks_come_in_the_order_of_openai(fake: FakeHandle) -> None:
    body = chat({"tokens": 2}, stream=True, stream_options={"include_usage": True})
    *chunks, done = events(exchange(fake.port, body).body)
    assert done == "[DONE]"
    assert len({(c["id"], c["created"], c["model"], c["object"]) for c in chunks}) == 1
    role, first, second, finish, usage = chunks
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [c["choices"][0]["delta"] for c in (first, second, finish)] == [
        {"content": "water"}, {"content": " runs"}, {}
    ]  # fmt: skip
    assert [c["choices"][0]["finish_reason"] for c in chunks[:4]] == [None, None, None, "stop"]
    assert usage["choices"] == []
    assert "usage" not in finish


@pytest.mark.parametrize(
    ("script", "deltas"),
    [
        ({"role_chunk": "none"}, [{"content": "x"}, {"content": "y"}, {}]),
        ({"role_chunk": "merged"}, [{"role": "assistant", "content": "x"}, {"content": "y"}, {}]),
        ({"finish_chunk": "merged", "role_chunk": "none"}, [{"content": "x"}, {"content": "y"}]),
        ({"finish_chunk": "none", "role_chunk": "none"}, [{"content": "x"}, {"content": "y"}]),
        ({"tokens_per_chunk": 2, "role_chunk": "none"}, [{"content": "xy"}, {}]),
        ({"tokens": [], "finish_reason": "content_filter"}, [{"role": "assistant", "content": ""}, {}]),
    ],
)
def test_role_and_finish_chunks_are_framed_as_scripted(fake: FakeHandle, script: Any, deltas: Any) -> None:
    *chunks, _ = events(exchange(fake.port, chat({"tokens": ["x", "y"], **script}, stream=True)).body)
    assert [c["choices"][0]["delta"] for c in chunks] == deltas
    last = chunks[-1]["choices"][0]["finish_reason"]
    assert last == (None if script.get("finish_chunk") == "none" else script.get("finish_reason", "stop"))


@pytest.mark.parametrize(
    ("how", "asked", "usages"),
    [
        ("send", False, [False, False, False]),
        ("send", True, [False, False, False, True]),
        ("never", True, [False, False, False]),
        ("always", False, [False, False, False, True]),
        ("every", True, [True, True, True, True]),
        ("every", False, [False, False, False]),
    ],
)
def test_usage_is_sent_as_scripted(fake: FakeHandle, how: str, asked: bool, usages: list[bool]) -> None:
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if asked else {}
    body = chat({"tokens": 1, "usage_chunk": how}, stream=True, **options)
    *chunks, _ = events(exchange(fake.port, body).body)
    assert [bool(c.get("usage")) for c in chunks] == usages


def test_max_tokens_cuts_the_answer(client: openai.OpenAI) -> None:
    answer = ask(client, {"tokens": 10}, max_tokens=5, max_completion_tokens=3)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 3
    assert ask(client, {"tokens": 3}, max_tokens=3).choices[0].finish_reason == "stop"


def test_ignore_eos_fills_up_to_max_tokens(client: openai.OpenAI) -> None:
    answer = ask(client, max_tokens=40, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 40
    assert answer.choices[0].finish_reason == "length"


def test_tool_calls_arrive_in_fragments_that_join_to_json(client: openai.OpenAI) -> None:
    calls = [{"name": "pump", "arguments": ['{"on"', ": tr", "ue}"]}, {"name": "stop", "id": "call_x"}]
    script = {"tool_calls": calls, "tokens": ["Let me see."]}
    choice = ask(client, script).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see."
    assert [(c.function.name, json.loads(c.function.arguments)) for c in choice.message.tool_calls] == [
        ("pump", {"on": True}),
        ("stop", {}),
    ]
    deltas = [c.choices[0].delta for c in ask(client, script, stream=True)]
    parts = [part for delta in deltas for part in delta.tool_calls or []]
    assert "".join(p.function.arguments for p in parts if p.index == 0) == '{"on": true}'
    assert [p.id for p in parts if p.id] == [parts[0].id, "call_x"]
    assert ask(client, {"tool_calls": calls}).choices[0].message.content is None


def test_several_choices_interleave_and_each_finishes(client: openai.OpenAI) -> None:
    chunks = list(ask(client, {"tokens": 2}, n=3, stream=True, stream_options={"include_usage": True}))
    assert [c.choices[0].index for c in chunks if c.choices] == [0, 1, 2] * 4
    assert sum(1 for c in chunks if c.choices and c.choices[0].finish_reason) == 3
    assert chunks[-1].usage.completion_tokens == 6
    assert len(ask(client, n=2).choices) == 2


def test_legacy_completions_flatten_prompts_and_choices(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="fake", prompt=["a b", "c"], n=2)
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[0].text == "Water runs through the penstock."
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3
    prompt = '{"fake":{"tokens":["x","y"],"tool_calls":[{"name":"f"}]}}'
    stream = client.completions.create(model="fake", prompt=prompt, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "xy"
    assert client.completions.create(model="fake", prompt=[[1, 2, 3], [4]]).usage.prompt_tokens == 4  # type: ignore[union-attr]


def test_embeddings_are_the_same_as_floats_and_as_base64(client: openai.OpenAI) -> None:
    texts = ["water", "水", "water"]
    packed = client.embeddings.create(model="fake", input=texts)
    plain = client.embeddings.create(model="fake", input=texts, encoding_format="float")
    assert [d.embedding for d in packed.data] == [d.embedding for d in plain.data]
    assert packed.data[0].embedding == packed.data[2].embedding != packed.data[1].embedding
    assert [d.index for d in plain.data] == [0, 1, 2]
    assert len(plain.data[0].embedding) == 64
    assert math.isclose(sum(x * x for x in plain.data[0].embedding), 1.0, abs_tol=1e-6)


def test_embeddings_honour_dimensions_or_refuse_them(client: openai.OpenAI) -> None:
    short = client.embeddings.create(model="fake", input=[1, 2, 3], dimensions=8).data[0].embedding
    assert len(short) == 8
    assert math.isclose(sum(x * x for x in short), 1.0, abs_tol=1e-6)
    with pytest.raises(openai.BadRequestError, match="dimensions 65 > 64"):
        client.embeddings.create(model="fake", input="a", dimensions=65)


def test_models_are_listed_with_the_fields_of_vllm(client: openai.OpenAI, fake: FakeHandle) -> None:
    models = {m.id: m for m in client.models.list()}
    assert set(models) == {"fake", "org/other"}
    assert models["fake"].max_model_len == 1000  # type: ignore[attr-defined]
    assert httpx.get(f"{fake.url}/v1/models/org/other").json()["root"] == "org/other"
    assert httpx.get(f"{fake.url}/v1/models/nothing").status_code == 404


def test_an_unknown_model_is_404_in_the_shape_of_vllm(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="nothing", messages=[{"role": "user", "content": "x"}])
    error = json.loads(caught.value.response.text)["error"]
    assert error == {
        "message": "The model `nothing` does not exist.", "type": "NotFoundError", "param": "model", "code": 404
    }  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [
        b"{", b"[]", b"null", b'"x"', b"", b"\xff\xfe", b"[" * 200_000,
        b'{"model":"fake"}', b'{"model":"fake","messages":[]}', b'{"model":"fake","messages":"x"}',
        json.dumps(chat(n=0)).encode(), json.dumps(chat(n=129)).encode(), json.dumps(chat(max_tokens=0)).encode(),
        json.dumps(chat(stream="yes")).encode(), json.dumps(chat(stream_options={"include_usage": True})).encode(),
        json.dumps(chat({"nonsense": 1})).encode(), json.dumps(chat({"times": 2})).encode(),
        json.dumps(chat(text='{"fake": {"tokens": ["\\ud800"]}}')).encode(),
        json.dumps(chat(text="w " * 1000)).encode(), json.dumps(chat(max_tokens=999)).encode(),
        json.dumps(chat({"flood": True})).encode(),
    ],
)  # fmt: skip
def test_a_bad_body_is_400_and_the_connection_goes_on(fake: FakeHandle, body: bytes) -> None:
    with dial(fake.port) as sock:
        send(sock, body)
        answer = receive(sock, until=b"}}")
        assert answer.status == 400, answer.data
        assert set(json.loads(answer.body)["error"]) == {"message", "type", "param", "code"}
        send(sock, chat())
        assert receive(sock, until=b"penstock").status == 200


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings"])
def test_the_other_endpoints_check_their_input_too(fake: FakeHandle, path: str) -> None:
    name = "prompt" if path.endswith("completions") else "input"
    values: list[Any] = [[], "", 1, [1, "a"], [[]], [[1], ["a"]], None]
    for value in values:
        status = exchange(fake.port, {"model": "fake", name: value}, path).status
        assert status == (200 if value == "" else 400), value


def test_unknown_paths_are_404_and_wrong_methods_405(fake: FakeHandle) -> None:
    assert httpx.get(f"{fake.url}/v1/nothing").json()["error"]["code"] == 404
    assert httpx.get(f"{fake.url}/v1/chat/completions").status_code == 405
    assert httpx.post(f"{fake.url}/v1/models").status_code == 405
    assert httpx.head(f"{fake.url}/v1/models").content == b""


def test_the_id_of_the_answer_carries_the_request_id(fake: FakeHandle) -> None:
    answer = httpx.post(f"{fake.url}/v1/chat/completions", json=chat(), headers={"x-request-id": "r-7"})
    assert answer.json()["id"] == "chatcmpl-r-7"


def test_the_answer_can_be_what_was_received(fake: FakeHandle) -> None:
    url = f"{fake.url}/v1/chat/completions"
    body = json.dumps(chat({"echo": "body"})).encode()
    said = httpx.post(url, content=body).json()["choices"][0]["message"]["content"]
    assert said == hashlib.sha256(body).hexdigest()
    body = json.dumps(chat({"echo": "raw"})).encode()
    assert httpx.post(url, content=body).json()["choices"][0]["message"]["content"] == body.decode()
    answer = httpx.post(url, json=chat({"echo": "headers"}, top_k=3), headers=[("x-a", "1"), ("x-a", "2")])
    seen = json.loads(answer.json()["choices"][0]["message"]["content"])
    assert [value for name, value in seen["headers"] if name == "x-a"] == ["1", "2"]
    assert seen["body_keys"] == ["model", "messages", "top_k"]


def test_pipelined_requests_are_answered_in_order(fake: FakeHandle) -> None:
    with dial(fake.port) as sock:
        for word in ("one", "two", "three"):
            send(sock, chat({"tokens": [word], "ttft_s": 0.02 if word == "one" else 0}))
        data = receive(sock, until=b"three").data
    assert data.index(b'"one"') < data.index(b'"two"') < data.index(b'"three"')


def test_a_key_is_required_only_under_v1() -> None:
    with start_fake("--api-key", "secret") as fake:
        url = f"{fake.url}/v1/chat/completions"
        assert httpx.post(url, json=chat()).json() == {"error": "Unauthorized"}
        assert httpx.post(url, json=chat(), headers={"authorization": "Bearer secret"}).status_code == 200
        assert httpx.get(f"{fake.url}/health").status_code == 200


@pytest.mark.parametrize(
    ("engine", "body"),
    [
        ("sglang", {"object": "error", "message": "no", "type": "BadRequestError", "param": None, "code": 400}),
        ("openai", {"error": {"message": "no", "type": "invalid_request_error", "param": None, "code": None}}),
    ],
)
def test_each_engine_has_its_own_manner(engine: str, body: Any) -> None:
    script = json.dumps({"error": {"status": 400, "message": "no"}, "reasoning": 1})
    with start_fake("--engine", engine, "--script", script) as fake:
        url = f"{fake.url}/v1/chat/completions"
        assert httpx.post(url, json=chat()).json() == body
        message = httpx.post(url, json=chat({"error": None})).json()["choices"][0]["message"]
        assert message["reasoning_content"] == "water"
        assert httpx.get(f"{fake.url}/ready").status_code == (200 if engine == "sglang" else 404)
        assert httpx.get(f"{fake.url}/metrics").status_code == (200 if engine == "sglang" else 404)


def test_it_serves_the_same_without_uvloop() -> None:
    with start_fake("--no-uvloop", "--itl", "0.001", "--tokens", "3") as fake:
        *chunks, done = events(exchange(fake.port, chat(stream=True)).body)
        assert (len(chunks), done) == (5, "[DONE]")
        reset = exchange(fake.port, chat({"die": {"at": 1, "how": "reset"}}, stream=True))
        assert reset.ending == "reset"


def test_it_stops_at_once_and_cleanly_in_the_middle_of_a_stream() -> None:
    with start_fake() as fake, dial(fake.port) as sock:
        send(sock, chat({"hang": 1}, stream=True))
        assert b"Water" in receive(sock, until=b"Water").data
        assert fake.stop() == 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--nonsense"], "unrecognized arguments"),
        (["--engine", "gpt"], "invalid choice"),
        (["--script", "{"], "--script"),
        (["--script", '{"nope": 1}'], "unknown field `nope`"),
        (["--tokens", "-1"], "tokens"),
    ],
)
def test_wrong_flags_are_refused_with_a_reason(args: list[str], words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "fake_engine", *args], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert words in done.stderr


def test_a_taken_port_is_said_plainly(fake: FakeHandle, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError):
        start_fake(port=fake.port)
    assert f"cannot listen on 127.0.0.1:{fake.port}" in capfd.readouterr().err


def test_the_profile_for_penstock_up_starts_it() -> None:
    path = Path(__file__).parents[2] / "services/fake_engine/profiles/default.yaml"
    profile = yaml.safe_load(path.read_text("utf-8"))
    values = {"python": sys.executable, "host": "127.0.0.1", "port": "0", "name": "org/model"}
    command = [word.format(**values) for word in profile["command"]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().removeprefix("fake engine ready on ").strip()
            assert httpx.get(url + profile["ready"]["path"]).status_code == 200
            assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "org/model"
            process.send_signal(signal.Signals[profile["stop"]["signal"]])
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_the_documentation_names_every_field_of_a_script() -> None:
    text = (Path(__file__).parents[2] / "docs/engines/fake.md").read_text("utf-8")
    missing = [name for name in Script.__struct_fields__ if f"`{name}`" not in text]
    assert not missing
