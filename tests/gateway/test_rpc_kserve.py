"""tritonclient, unchanged, against models that no Triton serves."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from fakes import FakeHandle
from gateways import GatewayHandle, config, start_gateway
from rpc import Refused, TritonPeer, rpc_address

PROMPT = "hello there"


@pytest.fixture(scope="module")
def door(fakes: tuple[FakeHandle, FakeHandle]) -> Iterator[GatewayHandle]:
    models = config(fakes[0].url, rpc={"port": 0})
    models["models"]["m"]["aliases"] = ["other/name"]
    with start_gateway(models) as handle:
        yield handle


@pytest.fixture(scope="module")
def peer(door: GatewayHandle) -> Iterator[TritonPeer]:
    with TritonPeer(rpc_address(door)) as peer:
        yield peer


@pytest.fixture
def triton(peer: TritonPeer, fake: FakeHandle) -> TritonPeer:
    """One client for all tests; each begins without a stream."""
    return peer


@pytest.fixture
def stream(triton: TritonPeer) -> Iterator[TritonPeer]:
    triton.do("start_stream")
    yield triton
    triton.do("stop_stream", cancel_requests=True)
    while not triton.events.empty():
        triton.events.get()


def asked(fake: FakeHandle) -> Any:
    """The body of the last request that the engine got."""
    return fake.stats()["last_requests"][-1]["body"]


def test_the_server_tells_what_it_is_and_what_it_serves(triton: TritonPeer) -> None:
    assert triton.do("is_server_live") is True
    assert triton.do("is_server_ready") is True
    assert triton.do("get_server_metadata")["name"] == "penstock"
    assert triton.do("is_model_ready", model_name="m") is True
    assert triton.do("is_model_ready", model_name="m", model_version="2") is False
    assert triton.do("is_model_ready", model_name="nobody") is False
    index = triton.do("get_model_repository_index")
    assert [(model["name"], model["state"]) for model in index["models"]] == [("m", "READY"), ("other/name", "READY")]


def test_a_models_inputs_and_outputs_are_tensorrt_llms(triton: TritonPeer) -> None:
    metadata = triton.do("get_model_metadata", model_name="other/name")
    inputs = {tensor["name"]: (tensor["datatype"], tensor["shape"]) for tensor in metadata["inputs"]}
    assert inputs["text_input"] == ("BYTES", ["1"])
    assert inputs["stop_words"] == ("BYTES", ["-1"])
    assert inputs["seed"] == ("UINT64", ["1"])
    assert {"text_output", "finish_reason"} < {tensor["name"] for tensor in metadata["outputs"]}
    config = triton.do("get_model_config", model_name="m")["config"]
    assert [tensor["name"] for tensor in config["input"] if not tensor.get("optional")] == ["text_input"]
    assert config["model_transaction_policy"] == {"decoupled": True}
    with pytest.raises(Refused, match="'nobody' does not exist") as caught:
        triton.do("get_model_metadata", model_name="nobody")
    assert caught.value.status == "NOT_FOUND"
    with pytest.raises(Refused, match="version 1 only"):
        triton.do("get_model_metadata", model_name="m", model_version="7")


def test_one_answer_has_its_text_and_why_it_ended(triton: TritonPeer, fake: FakeHandle) -> None:
    fake.script({"tokens": ["one", " two"]})
    outputs = triton.infer("m", text_input=PROMPT, max_tokens=9, exclude_input_in_output=True)
    assert outputs == {"text_output": "one two", "finish_reason": "stop"}
    assert asked(fake) == {"model": "m", "prompt": PROMPT, "max_tokens": 9, "temperature": 0}


def test_the_prompt_comes_back_before_the_text_unless_it_is_excluded(triton: TritonPeer, fake: FakeHandle) -> None:
    fake.script({"tokens": ["one"]})
    assert triton.infer("m", text_input=PROMPT)["text_output"] == PROMPT + "one"


def test_every_tensor_reaches_the_engine_as_its_own_field(triton: TritonPeer, fake: FakeHandle) -> None:
    triton.infer(
        "m", text_input=PROMPT, max_tokens=3, temperature=0.7, top_p=0.9, top_k=5, seed=7, stop_words=["a", "b", ""],
        bad_words=["c"], repetition_penalty=1.1, presence_penalty=0.5, frequency_penalty=-0.5, min_tokens=2,
        guided_decoding_guide_type="regex", guided_decoding_guide="[a-z]+", return_log_probs=True,
    )  # fmt: skip
    assert asked(fake) == {
        "model": "m", "prompt": PROMPT, "max_tokens": 3, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "seed": 7,
        "stop": ["a", "b"], "bad_words": ["c"], "repetition_penalty": 1.1, "presence_penalty": 0.5,
        "frequency_penalty": -0.5, "min_tokens": 2, "structured_outputs": {"regex": "[a-z]+"}, "logprobs": 1,
    }  # fmt: skip


def test_what_tensorrt_llm_takes_for_not_given_is_not_given(triton: TritonPeer, fake: FakeHandle) -> None:
    """Its examples send empty word lists, and zeros where nothing is meant."""
    triton.infer(
        "m", text_input=PROMPT, stop_words=[""], bad_words=[""], top_k=0, top_p=0.0, repetition_penalty=1.0,
        guided_decoding_guide_type="", guided_decoding_guide="",
    )  # fmt: skip
    assert asked(fake) == {"model": "m", "prompt": PROMPT, "temperature": 0}


@pytest.mark.parametrize(
    ("kind", "guide", "expected"),
    [
        ("json", "", {"json_object": True}),
        ("json_schema", '{"type": "object"}', {"json": {"type": "object"}}),
        ("ebnf_grammar", 'root ::= "a"', {"grammar": 'root ::= "a"'}),
    ],
)
def test_a_guide_is_the_constraint_that_every_engine_knows(
    triton: TritonPeer, fake: FakeHandle, kind: str, guide: str, expected: dict[str, Any]
) -> None:
    given = {"guided_decoding_guide_type": kind} | ({"guided_decoding_guide": guide} if guide else {})
    triton.infer("m", text_input=PROMPT, **given)
    assert asked(fake)["structured_outputs"] == expected


@pytest.mark.parametrize(("shape", "answered"), [([1], [1]), ([1, 1], [1, 1])])
def test_an_answer_has_a_batch_dimension_where_the_request_has_one(
    triton: TritonPeer, shape: list[int], answered: list[int]
) -> None:
    inputs = [["text_input", "BYTES", shape, ["hi"]], ["return_num_output_tokens", "BOOL", shape, [True]]]
    answer = triton.do("infer", model_name="m", inputs=inputs)
    assert answer["shapes"] == {"text_output": answered, "finish_reason": answered, "num_output_tokens": answered}


def test_counts_come_when_they_are_asked_for(triton: TritonPeer, fake: FakeHandle) -> None:
    fake.script({"tokens": 4})
    outputs = triton.infer("m", text_input=PROMPT, return_num_input_tokens=True, return_num_output_tokens=True)
    assert (outputs["num_input_tokens"], outputs["num_output_tokens"]) == (2, 4)
    named = triton.infer("m", text_input=PROMPT, options={"outputs": ["num_output_tokens"]})
    assert named == {"num_output_tokens": 4}


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"prompt": "x"}, "Unexpected input 'prompt'"),
        ({"max_tokens": 3}, "needs the input 'text_input'"),
        ({"text_input": "x", "max_tokens": ("INT64", [1], [3])}, "'max_tokens' must have the datatype INT32"),
        ({"text_input": ("BYTES", [2], ["a", "b"])}, "'text_input' must have the shape"),
        ({"text_input": ("BYTES", [1, 1, 1], ["a"])}, "'text_input' must have the shape"),
        ({"text_input": "x", "stop_words": ("BYTES", [2, 1], ["a", "b"])}, "'stop_words' must have the shape"),
        ({"text_input": "x", "temperature": 9.0}, "Invalid 'temperature'"),
        ({"text_input": "x", "max_tokens": -1}, "Invalid 'max_tokens'"),
        ({"text_input": "x", "stop_words": ["a"] * 17}, "Invalid 'stop_words'"),
        ({"text_input": "x", "seed": 2**63}, "'seed' must be less"),
        ({"text_input": "x", "stream": True}, "'stream' needs ModelStreamInfer"),
        ({"text_input": "x", "guided_decoding_guide_type": "poem"}, "'guided_decoding_guide_type' must be"),
        ({"text_input": "x", "guided_decoding_guide_type": "regex"}, "needs a 'guided_decoding_guide'"),
        (
            {"text_input": "x", "guided_decoding_guide_type": "json_schema", "guided_decoding_guide": "[1]"},
            "'guided_decoding_guide' must be a JSON schema",
        ),
    ],
)  # fmt: skip
def test_a_wrong_tensor_is_an_invalid_argument_that_names_it(
    triton: TritonPeer, fake: FakeHandle, inputs: dict[str, Any], words: str
) -> None:
    with pytest.raises(Refused) as caught:
        triton.infer("m", **inputs)
    assert words in caught.value.message
    assert caught.value.status == "INVALID_ARGUMENT"
    assert fake.stats()["requests"] == 0


def test_an_output_that_nobody_has_is_named(triton: TritonPeer) -> None:
    with pytest.raises(Refused, match="Unexpected output 'logits'"):
        triton.infer("m", text_input="x", options={"outputs": ["logits"]})


def test_a_stream_brings_every_piece_then_the_reason_then_its_end(stream: TritonPeer, fake: FakeHandle) -> None:
    fake.script({"tokens": ["a", "b", "c"], "itl_s": 0.02})
    stream.ask("m", "first", text_input=PROMPT, stream=True, return_num_output_tokens=True)
    *pieces, last, empty = stream.until_final()
    assert [piece["outputs"] for piece in pieces] == [{"text_output": text} for text in "abc"][: len(pieces)]
    assert "".join(piece["outputs"]["text_output"] for piece in [*pieces, last]) == "abc"
    assert (last["outputs"]["finish_reason"], last["outputs"]["num_output_tokens"]) == ("stop", 3)
    assert (empty["outputs"], empty["final"], empty["id"]) == ({}, True, "first")
    assert not any(event["final"] for event in [*pieces, last])


def test_without_the_empty_response_the_last_one_is_final(stream: TritonPeer, fake: FakeHandle) -> None:
    fake.script({"tokens": ["a", "b"]})
    inputs = [["text_input", "BYTES", [1], ["x"]], ["stream", "BOOL", [1], [True]]]
    stream.do("async_stream_infer", model_name="m", inputs=inputs, request_id="a")
    assert stream.until_final()[-1]["outputs"]["finish_reason"] == "stop"


def test_a_request_that_does_not_stream_gets_one_answer_on_a_stream(stream: TritonPeer, fake: FakeHandle) -> None:
    fake.script({"tokens": ["a", "b"], "itl_s": 0.01})
    stream.ask("m", "whole", text_input="x")
    answer, empty = stream.until_final()
    assert answer["outputs"]["text_output"] == "xab"
    assert empty["final"]


def test_an_echo_in_a_stream_is_refused_rather_than_ignored(stream: TritonPeer) -> None:
    stream.ask("m", "a", text_input="x", stream=True, exclude_input_in_output=False)
    assert "a stream has no echo" in stream.next()["message"]


def test_many_requests_share_a_stream_and_are_told_apart_by_their_ids(stream: TritonPeer, fake: FakeHandle) -> None:
    """All at once: the engine has them all before the first is done, and each gets its own words."""
    for index in range(8):
        script = json.dumps({"fake": {"tokens": [f"{index}."] * 10, "hang": 10}}, separators=(",", ":"))
        stream.ask("m", f"r{index}", text_input=f"{script} x", stream=True)
    expected = {f"r{index}": f"{index}." * 10 for index in range(8)}
    texts = dict.fromkeys(expected, "")
    while any(len(texts[name]) < len(text) for name, text in expected.items()):
        event = stream.next()
        texts[event["id"]] += event["outputs"]["text_output"]
    assert texts == expected
    assert fake.stats()["active"] == 8


def test_an_error_is_a_response_and_the_stream_goes_on(stream: TritonPeer, fake: FakeHandle) -> None:
    stream.ask("nobody", "bad", text_input="x", stream=True)
    assert "'nobody' does not exist" in stream.next()["message"]
    stream.ask("m", "wrong", txt="x")
    assert "Unexpected input 'txt'" in stream.next()["message"]
    fake.script({"tokens": ["fine"], "times": 1})
    stream.ask("m", "good", text_input="x", stream=True)
    assert stream.until_final()[-1]["id"] == "good"


def test_a_late_failure_is_an_error_after_the_pieces(stream: TritonPeer, fake: FakeHandle) -> None:
    fake.script(
        {"tokens": ["a", "b", "c"], "itl_s": 0.02, "error_event": {"after_chunks": 2, "message": "out of luck"}}
    )
    stream.ask("m", "late", text_input="x", stream=True)
    *pieces, error = stream.until_final()
    assert "".join(piece["outputs"]["text_output"] for piece in pieces) == "ab"
    assert error["message"] == "out of luck"


def test_counts_that_the_engine_keeps_back_are_an_error_not_zeros(stream: TritonPeer, fake: FakeHandle) -> None:
    fake.script({"tokens": ["a"], "usage_chunk": "never"})
    stream.ask("m", "a", text_input="x", stream=True, return_num_output_tokens=True)
    assert stream.until_final()[-1]["message"] == "The engine told no token counts."


def test_a_client_that_wants_statuses_gets_one_and_its_stream_ends(triton: TritonPeer, fake: FakeHandle) -> None:
    triton.do("start_stream", headers={"triton_grpc_error": "true"})
    try:
        fake.script({"hang": 1})
        triton.ask("m", "running", text_input="x", stream=True)
        triton.next()
        triton.ask("m", "wrong", txt="x")
        error = triton.next()
        assert (error["status"], "Unexpected input" in error["message"]) == ("StatusCode.INVALID_ARGUMENT", True)
        fake.wait(lambda stats: stats["aborted"] == 1)
    finally:
        triton.do("stop_stream", cancel_requests=True)


def test_stopping_with_cancel_stops_the_engine(triton: TritonPeer, fake: FakeHandle) -> None:
    fake.script({"hang": 1})
    triton.do("start_stream")
    for index in range(3):
        triton.ask("m", f"{index}", text_input="x", stream=True)
    for _ in range(3):
        triton.next()
    triton.do("stop_stream", cancel_requests=True)
    fake.wait(lambda stats: stats["aborted"] == 3 and stats["active"] == 0)
    assert triton.next()["status"] == "StatusCode.CANCELLED"


def test_stopping_without_cancel_waits_for_what_was_asked(triton: TritonPeer, fake: FakeHandle) -> None:
    fake.script({"tokens": ["a"] * 5, "itl_s": 0.05})
    triton.do("start_stream")
    triton.ask("m", "a", text_input="x", stream=True)
    triton.do("stop_stream")
    assert triton.until_final()[-1]["final"]
    assert fake.stats()["completed"] == 1


def test_a_request_is_an_access_line_and_counted_under_its_door(
    triton: TritonPeer, fake: FakeHandle, door: GatewayHandle
) -> None:
    fake.script({"tokens": 5})
    before = door.metric("penstock_requests_total", endpoint="grpc/kserve", outcome="ok", model="m")
    triton.infer("m", text_input=PROMPT, options={"headers": {"x-request-id": "mine-1"}})
    assert door.metric("penstock_requests_total", endpoint="grpc/kserve", outcome="ok", model="m") == before + 1
    line = access_line(door, "mine-1")
    assert (line["endpoint"], line["status"], line["output_tokens"]) == ("grpc/kserve", 200, 5)


def test_the_statistics_that_load_tools_read_count_what_was_answered(triton: TritonPeer, fake: FakeHandle) -> None:
    before = counts(triton)
    triton.infer("m", text_input=PROMPT)
    fake.script({"error": {"status": 500}, "times": 1})
    with pytest.raises(Refused):
        triton.infer("m", text_input=PROMPT)
    after = counts(triton)
    assert [new - old for new, old in zip(after, before, strict=True)] == [1, 1, 1]
    everything = triton.do("get_inference_statistics")["model_stats"]
    assert [model["name"] for model in everything] == ["m", "other/name"]


def counts(triton: TritonPeer) -> list[int]:
    """Inferences, successes, failures."""
    [told] = triton.do("get_inference_statistics", model_name="m")["model_stats"]
    stats = told["inference_stats"]
    assert int(stats["success"]["ns"]) >= int(stats["compute_infer"]["ns"]) > 0
    return [int(told["inference_count"]), int(stats["success"]["count"]), int(stats["fail"].get("count", 0))]


def access_line(gateway: GatewayHandle, request_id: str) -> dict[str, Any]:
    """The only one of that request, once it is written."""
    deadline_s = time.monotonic() + 60
    while not (found := [line for line in gateway.access_lines() if line["request_id"] == request_id]):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    [line] = found
    return line
