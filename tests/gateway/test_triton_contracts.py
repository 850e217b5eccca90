"""The other tensor contracts: told apart by metadata, each asked in its own tensors, the answers the same."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gateways import GatewayHandle, start_gateway
from tritons import FakeTriton, chat, content, events, post, refusal, start_triton

TEXT = " naïve 日本語 🙂 end"
CONTRACTS = {
    "core": "core ids",
    "bls": "legacy text",
    "ensemble": "legacy text",
    "llmapi": "llmapi",
    "fastertransformer": "FasterTransformer",
    "vllm": "vLLM",
}


@pytest.fixture(scope="module", params=[name for name in CONTRACTS if name != "core"])
def shared(request: pytest.FixtureRequest) -> Iterator[tuple[FakeTriton, GatewayHandle]]:
    with start_triton(request.param) as triton, start_gateway(triton.config()) as gateway:
        yield triton, gateway


@pytest.fixture
def triton(shared: tuple[FakeTriton, GatewayHandle]) -> FakeTriton:
    shared[0].script()
    return shared[0]


@pytest.fixture
def gateway(shared: tuple[FakeTriton, GatewayHandle]) -> GatewayHandle:
    return shared[1]


def test_a_stream_says_what_the_whole_answer_says(triton: FakeTriton, gateway: GatewayHandle) -> None:
    text = " one two three" if triton.contract in ("ensemble", "vllm") else TEXT  # these decode each step alone
    triton.script(answer=text)
    got = events(gateway)
    whole = chat(gateway)
    assert content(got) == whole["choices"][0]["message"]["content"] == text
    assert got[-1]["usage"] == whole["usage"]
    assert got[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"] == "stop"
    assert not any("\ufffd" in (event["choices"][0]["delta"].get("content") or "") for event in got[:-1])


def test_length_and_stop_strings(triton: FakeTriton, gateway: GatewayHandle) -> None:
    triton.script(answer=" one two three")
    cut = chat(gateway, max_tokens=2)
    assert (cut["choices"][0]["finish_reason"], cut["usage"]["completion_tokens"]) == ("length", 2)
    for fields in ({"stop": "wo th"}, {"stop": ["hre", "wo th"]}):
        got = events(gateway, **fields)
        assert content(got) == chat(gateway, **fields)["choices"][0]["message"]["content"] == " one t"
        assert got[-2]["choices"][0]["finish_reason"] == "stop"


def test_the_prompt_is_never_part_of_the_answer(triton: FakeTriton, gateway: GatewayHandle) -> None:
    """FasterTransformer always repeats it, the others unless told not to."""
    triton.script(answer=" one", padding=5)
    chat(gateway)
    asked = triton.asked
    if triton.contract == "fastertransformer":
        assert asked["shapes"]["input_ids"] == [1, len(asked["input_ids"])]
        assert content(events(gateway)) == " one"
    elif triton.contract == "llmapi":
        assert asked["sampling_param_exclude_input_from_output"] == [True]
    else:
        assert asked["exclude_input_in_output"] == [True]


def test_each_is_asked_in_its_own_tensors(triton: FakeTriton, gateway: GatewayHandle) -> None:
    chat(gateway, temperature=0.5, top_p=0.25, top_k=3, seed=8, max_tokens=7)
    asked = triton.asked
    if triton.contract in ("bls", "ensemble"):
        sent = {name: asked[name] for name in ("temperature", "top_p", "top_k", "random_seed", "max_tokens")}
        assert sent == {"temperature": [0.5], "top_p": [0.25], "top_k": [3], "random_seed": [8], "max_tokens": [7]}
        assert asked["text_input"][0].endswith("<|assistant|>")
    elif triton.contract == "llmapi":
        assert (asked["sampling_param_seed"], asked["sampling_param_max_tokens"]) == ([8], [7])
        assert asked["shapes"]["text_input"] == [1]
    elif triton.contract == "fastertransformer":
        assert (asked["random_seed"], asked["request_output_len"], asked["runtime_top_k"]) == ([8], [7], [3])
    else:
        assert '"seed":8' in asked["sampling_parameters"][0]


def test_what_the_contract_cannot_carry_is_refused_by_name(triton: FakeTriton, gateway: GatewayHandle) -> None:
    missing: dict[str, dict[str, Any]] = {
        "bls": {"logprobs": True},
        "ensemble": {"frequency_penalty": 1},
        "llmapi": {"min_tokens": 3},
        "fastertransformer": {"frequency_penalty": 0.5},
        "vllm": {"logprobs": True},
    }
    (field,) = missing[triton.contract]
    answer = post(gateway, **missing[triton.contract])
    assert refusal(answer) == (400, field, "unsupported_parameter")
    assert CONTRACTS[triton.contract] in answer.json()["error"]["message"]
    for fields, param in (
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"}, "tool_choice"),
    ):
        assert refusal(post(gateway, **fields)) == (400, param, "unsupported_parameter")
    assert triton.stats()["asked"] == []


def test_a_model_of_no_known_contract_is_never_ready_and_says_why() -> None:
    with start_triton("image") as triton, start_gateway(triton.config(), ready=False) as gateway:
        httpx.get(f"{gateway.url}/ready")
        reason = _reason(gateway, "tensor contract")
        assert "its inputs: pixels" in reason
        assert "core ids" in reason
        triton.become("core")  # the model was exchanged for the right one
        gateway.wait_ready()


def test_a_model_that_is_not_loaded_says_the_servers_reason() -> None:
    with start_triton() as triton, start_gateway(triton.config(), ready=False) as gateway:
        triton.script(ready=False)
        assert "no engine in engine_dir" in _reason(gateway, "unavailable")
        triton.script()
        gateway.wait_ready()
    with start_triton() as triton, start_gateway(triton.config(model="other"), ready=False) as gateway:
        assert "it has no model 'other', but model" in _reason(gateway, "no model")


def test_another_model_after_a_restart_is_read_again() -> None:
    with start_triton("core") as first, start_gateway(first.config()) as gateway:
        first.script(answer=" one")
        assert chat(gateway)["choices"][0]["message"]["content"] == " one"
        first.kill()
        assert post(gateway).status_code in (502, 503)
        with start_triton("llmapi", first.port) as second:
            gateway.wait_ready()
            second.script(answer=" two")
            assert chat(gateway)["choices"][0]["message"]["content"] == " two"
            assert "sampling_param_max_tokens" in second.asked


def _reason(gateway: GatewayHandle, words: str) -> str:
    for _ in range(400):
        answer = httpx.post(f"{gateway.url}/v1/chat/completions", json={"model": "m", "messages": [{"role": "user"}]})
        message = str(answer.json()["error"]["message"])
        if words in message:
            return message
    raise AssertionError(message)
