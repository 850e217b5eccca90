"""gRPC clients and a real engine: tritonclient and typed stubs stream from the embedded one, the same words as HTTP."""

import math
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gateway.protos.penstock.v1 import chat_pb2 as pb
from gateways import GatewayHandle, config, start_gateway
from openvino_process import NAME, RunningEngine, model_for_tests, running_engine
from rpc import Refused, TritonPeer, chat_stub, rpc_address

pytestmark = pytest.mark.engine
PROMPT = "The capital of France"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    model = model_for_tests(tmp_path_factory.mktemp("model") / "random")
    with running_engine(model, tmp_path_factory.mktemp("cache")) as running:
        yield running


@pytest.fixture(scope="module")
def door(engine: RunningEngine) -> Iterator[GatewayHandle]:
    settings = config(engine.url, model=NAME, rpc={"port": 0}, deployment={"engine": "openvino"})
    with start_gateway(settings) as handle:
        yield handle


@pytest.fixture(scope="module")
def triton(door: GatewayHandle) -> Iterator[TritonPeer]:
    with TritonPeer(rpc_address(door)) as peer:
        yield peer


def over_http(door: GatewayHandle, path: str = "completions", **fields: Any) -> Any:
    answer = httpx.post(f"{door.url}/v1/{path}", json={"model": NAME, "temperature": 0, **fields}, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_tritonclient_streams_the_same_greedy_words_as_http(door: GatewayHandle, triton: TritonPeer) -> None:
    expected = over_http(door, prompt=PROMPT, max_tokens=24)
    triton.do("start_stream")
    triton.ask(NAME, "a", text_input=PROMPT, max_tokens=24, stream=True, return_num_input_tokens=True,
               return_num_output_tokens=True)  # fmt: skip
    *pieces, last, empty = triton.until_final()
    triton.do("stop_stream")
    text = "".join(piece["outputs"]["text_output"] for piece in [*pieces, last])
    assert text == expected["choices"][0]["text"]
    assert last["outputs"]["finish_reason"] == expected["choices"][0]["finish_reason"]
    counts = (last["outputs"]["num_input_tokens"], last["outputs"]["num_output_tokens"])
    assert counts == (expected["usage"]["prompt_tokens"], expected["usage"]["completion_tokens"])
    assert empty["final"]


def test_one_answer_is_the_stream_and_the_prompt_before_it(door: GatewayHandle, triton: TritonPeer) -> None:
    text = over_http(door, prompt=PROMPT, max_tokens=8)["choices"][0]["text"]
    assert triton.infer(NAME, text_input=PROMPT, max_tokens=8)["text_output"] == PROMPT + text


def test_a_seed_repeats_its_words(triton: TritonPeer) -> None:
    wanted = {"text_input": PROMPT, "max_tokens": 16, "temperature": 1.0, "seed": 7, "exclude_input_in_output": True}
    assert triton.infer(NAME, **wanted) == triton.infer(NAME, **wanted)


def test_log_probs_are_the_engines_one_for_each_token_and_their_sum(triton: TritonPeer) -> None:
    outputs = triton.infer(
        NAME, text_input=PROMPT, max_tokens=6, return_log_probs=True, return_num_output_tokens=True,
    )  # fmt: skip
    values = outputs["output_log_probs"]
    assert len(values) == outputs["num_output_tokens"]
    assert all(value <= 0 for value in values)
    assert math.isclose(outputs["cum_log_probs"], sum(values), rel_tol=1e-4)


def test_a_guide_holds_and_an_impossible_one_is_refused(triton: TritonPeer) -> None:
    outputs = triton.infer(
        NAME, text_input="Answer:", max_tokens=20, temperature=1.0, exclude_input_in_output=True,
        guided_decoding_guide_type="regex", guided_decoding_guide="(yes|no) [0-9]{2}",
    )  # fmt: skip
    assert re.fullmatch("(yes|no) [0-9]{2}", outputs["text_output"])
    with pytest.raises(Refused) as caught:
        triton.infer(NAME, text_input="x", guided_decoding_guide_type="regex", guided_decoding_guide="(((")
    assert caught.value.status == "INVALID_ARGUMENT"


def test_bad_words_are_refused_because_the_engine_has_none(triton: TritonPeer) -> None:
    with pytest.raises(Refused, match="'bad_words' is not supported"):
        triton.infer(NAME, text_input="x", bad_words=["a"])


def test_a_stream_comes_as_it_is_made_and_a_cancelled_one_stops_the_engine(
    engine: RunningEngine, triton: TritonPeer
) -> None:
    triton.do("start_stream")
    triton.ask(NAME, "long", text_input=PROMPT, max_tokens=1900, min_tokens=1900, stream=True)
    assert triton.next()["outputs"]["text_output"]
    engine.wait_for("num_requests_running", 1)
    triton.do("stop_stream", cancel_requests=True)
    engine.wait_for("num_requests_running", 0)


def test_the_typed_service_streams_the_same_chat_with_its_log_probs(door: GatewayHandle) -> None:
    messages = [{"role": "user", "content": "Hello! What can you do?"}]
    expected = over_http(
        door, "chat/completions", messages=messages, max_tokens=24, logprobs=True, top_logprobs=2
    )["choices"][0]  # fmt: skip
    request = pb.ChatRequest(
        model=NAME, messages=[pb.Message(role=pb.ROLE_USER, content=messages[0]["content"])], max_tokens=24,
        sampling=pb.Sampling(temperature=0), logprobs=True, top_logprobs=2,
    )  # fmt: skip
    with chat_stub(door) as stub:
        received = list(stub.Stream(pb.StreamRequest(chat=request), timeout=60))
        whole = stub.Complete(pb.CompleteRequest(chat=request), timeout=60).choices[0]
    deltas = [delta for message in received for delta in message.deltas]
    assert "".join(delta.content for delta in deltas) == whole.message.content == expected["message"]["content"]
    streamed = [token for delta in deltas for token in delta.logprobs]
    assert [token.token for token in streamed] == [token["token"] for token in expected["logprobs"]["content"]]
    assert [token.token for token in whole.logprobs] == [token.token for token in streamed]
    assert all(len(token.top) == 2 for token in streamed)
    assert received[-1].usage.completion_tokens == len(streamed)
