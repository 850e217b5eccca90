"""The real engines, started as `make serve` starts them, through the gateway, by the official client.

One suite for all of them: a client should notice no difference. Another engine is one line in ENGINES.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import yaml
from openai import OpenAI

from stack_under_test import ROOT, RunningStack, stack_of

INSTALLED = [sys.executable, str(ROOT / "services/vllm/install.py"), "--venv", str(ROOT / ".venvs/vllm"), "--check"]
CHECKPOINT = Path(os.environ.get("PENSTOCK_TEST_CHECKPOINT", ROOT / "model_repo/checkpoints/starter"))
MODEL = "penstock-starter"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Oslo", "Paris"]}, "sunny": {"type": "boolean"}},
    "required": ["city", "sunny"],
    "additionalProperties": False,
}
# One property: in a tool's arguments vLLM lets whitespace run on between two, and a small model takes it up.
PLACE = {"type": "object", "properties": {"city": SCHEMA["properties"]["city"]}, "required": ["city"]}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": PLACE | {"additionalProperties": False},
        "strict": True,
    },
}

VLLM_IS_MISSING = subprocess.run(INSTALLED, capture_output=True, check=False).returncode != 0
ENGINES = [
    pytest.param("openvino", marks=pytest.mark.engine),
    pytest.param(
        "vllm",
        marks=[
            pytest.mark.vllm,
            pytest.mark.skipif(VLLM_IS_MISSING, reason="the real vLLM is not installed; `make vllm` does it"),
        ],
    ),
]
RUNNING = {"openvino": "penstock_engine_num_requests_running", "vllm": "vllm:num_requests_running"}
"""Each engine's own gauge."""

pytestmark = pytest.mark.timeout(900)  # the first test starts the engine: a minute for vLLM, several on a busy machine


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def stack(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    with served_by(engine, tmp_path_factory.mktemp(engine)) as running:
        yield running


@contextlib.contextmanager
def served_by(engine: str, folder: Path) -> Iterator[RunningStack]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    args = ("--engine", engine, "--model", str(CHECKPOINT), "--name", MODEL, "--port", str(port))
    with stack_of(folder, *args) as running:
        running.wait_for("ready at", patience_s=600)
        running.base_url = f"http://127.0.0.1:{port}/v1"
        yield running


@pytest.fixture(scope="module")
def client(stack: RunningStack) -> Iterator[OpenAI]:
    with OpenAI(base_url=stack.base_url, api_key="none", max_retries=0, timeout=120) as client:
        yield client


def test_it_lists_the_model_under_its_public_name(client: OpenAI, engine: str) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    model = client.models.retrieve(MODEL).model_dump()
    assert (model["id"], model["max_model_len"]) == (MODEL, 2048)
    if engine == "openvino":  # vLLM knows nothing of manifests
        assert model["penstock"]["scheme"] == "BF16"
        assert "recipe" not in model["penstock"]


def test_the_same_greedy_text_streamed_and_whole(client: OpenAI) -> None:
    asked = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 24}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert text.strip()
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == [
        whole.choices[0].finish_reason
    ]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert {chunk.model for chunk in chunks} == {whole.model} == {MODEL}


def test_the_embedded_engine_says_the_same_greedy_text(client: OpenAI, engine: str, tmp_path: Path) -> None:
    if engine == "openvino":
        pytest.skip("it is the one the others are compared with")
    questions = [
        "What is the capital of France?",
        "What is 7 + 8?",
        "Sort: pear, apple, fig",
        "1 2 3",
        "法国的首都是哪里？",
    ]
    with served_by("openvino", tmp_path) as other, OpenAI(base_url=other.base_url, api_key="none") as embedded:
        for question in questions:
            asked = {"model": MODEL, "messages": [{"role": "user", "content": question}], "temperature": 0}
            ours, theirs = (one.chat.completions.create(**asked, max_tokens=24) for one in (embedded, client))
            assert ours.choices[0].message.content == theirs.choices[0].message.content
            assert ours.choices[0].finish_reason == theirs.choices[0].finish_reason
            assert ours.usage.prompt_tokens == theirs.usage.prompt_tokens


@pytest.mark.skipif("PENSTOCK_TEST_CHECKPOINT" in os.environ, reason="another checkpoint has learnt other things")
@pytest.mark.parametrize(("question", "answer"), [("Copy this: bell, fox", "bell, fox"), ("What is 2 * 5?", "10")])
def test_the_starter_answers_with_sense(client: OpenAI, question: str, answer: str) -> None:
    asked = [{"role": "user", "content": question}]
    said = client.chat.completions.create(model=MODEL, messages=asked, temperature=0, max_tokens=20)
    assert said.choices[0].message.content.strip() == answer
    assert said.choices[0].finish_reason == "stop"


def test_json_schema_holds_whatever_the_model_thinks(client: OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True}}
    for temperature in (0, 1):
        answer = client.chat.completions.create(
            model=MODEL, messages=QUESTION, response_format=form, temperature=temperature, seed=7, max_tokens=60
        )
        value = json.loads(answer.choices[0].message.content)
        assert value.keys() == {"city", "sunny"}
        assert value["city"] in ("Oslo", "Paris")
        assert isinstance(value["sunny"], bool)
        assert answer.choices[0].finish_reason == "stop"


def test_a_required_tool_is_called_with_arguments_that_fit(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, tools=[TOOL], tool_choice="required", temperature=0, max_tokens=100
    )
    calls = answer.choices[0].message.tool_calls
    assert calls
    assert calls[0].function.name == "get_weather"
    assert json.loads(calls[0].function.arguments)["city"] in ("Oslo", "Paris")
    assert answer.choices[0].finish_reason == "tool_calls"


def test_a_streamed_tool_call_says_the_same(client: OpenAI) -> None:
    asked = {"model": MODEL, "messages": QUESTION, "tools": [TOOL], "tool_choice": "required", "max_tokens": 100}
    asked["temperature"] = 0
    whole = client.chat.completions.create(**asked).choices[0].message.tool_calls[0].function
    pieces = [
        call.function
        for chunk in client.chat.completions.create(**asked, stream=True)
        if chunk.choices
        for call in chunk.choices[0].delta.tool_calls or ()
        if call.index == 0
    ]
    assert "".join(piece.name or "" for piece in pieces) == whole.name
    assert json.loads("".join(piece.arguments or "" for piece in pieces)) == json.loads(whole.arguments)
    assert len(pieces) > 2


def test_logprobs_are_one_a_token_and_the_greedy_one_is_the_top(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_tokens=8, logprobs=True, top_logprobs=3
    )
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) in (answer.usage.completion_tokens, answer.usage.completion_tokens - 1)  # the end token may lack
    for token in tokens:
        assert token.logprob <= 0
        assert token.token == token.top_logprobs[0].token
        assert [top.logprob for top in token.top_logprobs] == sorted(
            (t.logprob for t in token.top_logprobs), reverse=True
        )


def test_a_raw_completion_and_several_choices(client: OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="def main(", n=2, max_tokens=5, temperature=1, seed=1)
    assert sorted(choice.index for choice in answer.choices) == [0, 1]
    assert all(isinstance(choice.text, str) for choice in answer.choices)


def test_an_unknown_model_is_a_404_in_the_openai_shape(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refusal:
        client.chat.completions.create(model="nonesuch", messages=QUESTION)
    assert refusal.value.code == "model_not_found"
    assert "nonesuch" in refusal.value.message


def test_an_over_long_prompt_is_a_400_and_the_next_request_works(client: OpenAI) -> None:
    long = [{"role": "user", "content": "word " * 5000}]
    with pytest.raises(openai.BadRequestError, match="maximum context length is 2048 tokens"):
        client.chat.completions.create(model=MODEL, messages=long)
    with pytest.raises(openai.BadRequestError, match="maximum context length is 2048 tokens"):
        client.chat.completions.create(model=MODEL, messages=long, stream=True)
    assert client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=1).choices


def test_a_client_that_leaves_frees_the_engine(client: OpenAI, engine: str, stack: RunningStack) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=QUESTION, stream=True, max_tokens=1900, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 60
    while _running_requests(engine, stack):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_sigterm_leaves_none_of_its_processes(client: OpenAI, engine: str, stack: RunningStack) -> None:
    assert engine != "vllm" or len(stack.pids("VLLM::")) >= 2
    stack.signal(signal.SIGTERM)
    assert stack.exit_code() == 0
    stack.assert_nothing_stays()
    assert stack.output.index("gateway: stopped") < stack.output.index(f"{engine}: stopping")


def _running_requests(engine: str, stack: RunningStack) -> float:
    """The engine's own gauge, asked of the engine itself."""
    config = yaml.safe_load((stack.run_dir / "gateway.yaml").read_text())
    url = config["models"][MODEL]["deployments"][engine]["replicas"][engine]["url"]
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    found = [line for line in lines if line.startswith(RUNNING[engine]) and "_by_" not in line]
    assert found
    return sum(float(line.rpartition(" ")[2]) for line in found)
