"""The real tritonserver with TensorRT-LLM's llmapi contract on CPU, through the official client and HTTP."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from openvino_process import STARTER, running_engine
from triton_process import REPOSITORIES, RunningTriton, marks, running_triton

pytestmark = marks()

MODEL = "tensorrt_llm"
STORY = "<|user|>Tell me a story<|im_end|><|assistant|>"
FRANCE = "<|user|>What is the capital of France?<|im_end|><|assistant|>"
QUIET = {"sampling_param_exclude_input_from_output": True}


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    with running_triton("llmapi.yaml", tmp_path_factory.mktemp("triton")) as running:
        yield running


def test_metadata_tells_it_from_the_legacy_contract(triton: RunningTriton) -> None:
    metadata = triton.client.get(f"/v2/models/{MODEL}").json()
    names = {tensor["name"] for tensor in metadata["inputs"]}
    assert "sampling_param_max_tokens" in names
    assert "max_tokens" not in names
    config = triton.client.get(f"/v2/models/{MODEL}/config").json()
    assert config["model_transaction_policy"]["decoupled"] is True
    assert config["max_batch_size"] == 0


def test_greedy_text_is_that_of_the_embedded_engine(triton: RunningTriton, tmp_path: Path) -> None:
    with running_engine(STARTER, tmp_path / "cache") as embedded:
        for prompt in (STORY, FRANCE, "def main(", "法国的首都是"):
            expected = embedded.complete(prompt, max_tokens=32, temperature=0).json()["choices"][0]["text"]
            assert triton.text(MODEL, text_input=prompt, **QUIET) == expected  # 32 tokens are the default
            assert triton.text(MODEL, text_input=prompt, sampling_param_max_tokens=32) == prompt + expected


def test_a_stream_grows_and_says_why_it_ended(triton: RunningTriton) -> None:
    asked: dict[str, Any] = {"text_input": STORY, "return_finish_reason": True, "return_stop_reason": True}
    whole = triton.whole(MODEL, **asked, **QUIET)
    events = triton.ask(MODEL, **asked, streaming=True)
    outputs = [event["outputs"] for event in events]
    texts = [output["text_output"][0] for output in outputs]
    assert texts[-1] == whole["text_output"][0]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
    assert {output["finish_reason"][0] for output in outputs[:-1]} <= {"None"}
    assert outputs[-1]["finish_reason"] == whole["finish_reason"] == ["stop"]
    assert [event["final"] for event in events] == [False] * (len(events) - 1) + [True]
    short = triton.whole(MODEL, **asked, sampling_param_max_tokens=2)
    assert short["finish_reason"] == ["length"]


def test_a_stop_string_is_cut_off_and_named(triton: RunningTriton) -> None:
    asked = {"text_input": STORY, "return_stop_reason": True}
    whole = triton.text(MODEL, text_input=STORY, **QUIET)
    middle = whole[2:4]
    stopped = triton.whole(MODEL, **asked, **QUIET, sampling_param_stop=[middle])
    assert stopped["text_output"] == [whole[: whole.index(middle)]]
    assert stopped["stop_reason"] == [middle]
    events = triton.ask(MODEL, **asked, streaming=True, sampling_param_stop=[middle])
    assert events[-1]["outputs"]["text_output"] == stopped["text_output"]


def test_a_seed_repeats_and_another_one_differs(triton: RunningTriton) -> None:
    def said(seed: int) -> str:
        return triton.text(MODEL, text_input=STORY, sampling_param_temperature=1.5, sampling_param_seed=seed)

    assert said(1) == said(1) != said(2)


def test_the_cumulative_logprob_is_that_of_the_whole_answer(triton: RunningTriton) -> None:
    asked = {"text_input": STORY, "return_cumulative_logprob": True}
    [whole] = triton.whole(MODEL, **asked)["cumulative_logprob"]
    events = triton.ask(MODEL, **asked, streaming=True)
    sums = [event["outputs"]["cumulative_logprob"][0] for event in events]
    assert whole < 0
    assert sums == sorted(sums, reverse=True)
    assert sums[-1] == pytest.approx(whole, abs=1e-4)


def test_streams_run_at_once_leave_and_are_stopped_by_their_id(triton: RunningTriton) -> None:
    asked = {"text_input": "1 2 3", "streaming": True, "sampling_param_max_tokens": 1900, "sampling_param_top_p": 1.0}
    streams = [{"model": MODEL, "inputs": asked | {"sampling_param_seed": seed}, "id": f"s{seed}"} for seed in range(4)]
    stop = {"model": MODEL, "inputs": {"text_input": "", "stop": True}, "id": "s3", "after": 3}
    events = triton.talk(*({**one, "leave_after": 2} for one in streams[:3]), streams[3], stop)
    assert [event for event in events if event["call"] == 4] == [{"call": 4, "outputs": {}, "final": True}]
    assert len([event for event in events if event["call"] == 3]) < 1900
    triton.wait_until_idle()


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"sampling_param_best_of": 2}, "'sampling_param_best_of' is not supported"),
        ({"lora_name": "x"}, "'lora_name' is not supported"),
        ({"image_url": ["https://example.org/x.png"]}, "'image_url' is not supported"),
        ({"sampling_param_return_perf_metrics": True}, "'sampling_param_return_perf_metrics' is not supported"),
        ({"sampling_param_max_tokens": 0}, "'sampling_param_max_tokens' must be between 1"),
        ({"sampling_param_max_tokens": 5000}, "maximum context length is 2048 tokens"),
        ({"sampling_param_temperature": -1.0}, "'sampling_param_temperature' must be between"),
        ({"text_input": ""}, "'text_input' must not be empty"),
        ({"max_tokens": 5}, "max_tokens"),
    ],
)
def test_what_is_not_acted_on_is_refused_by_name(triton: RunningTriton, given: dict[str, Any], complaint: str) -> None:
    assert complaint in triton.refusal(MODEL, **({"text_input": STORY} | given))


def test_http_says_the_same(triton: RunningTriton) -> None:
    answer = triton.generate(MODEL, text_input=STORY, **QUIET).json()["text_output"]
    assert answer == triton.text(MODEL, text_input=STORY, **QUIET)
    assert triton.generate_stream(MODEL, text_input=STORY, streaming=True)[-1]["text_output"] == answer
    refused = triton.generate(MODEL, text_input=STORY, sampling_param_best_of=2)
    assert "not supported" in refused.json()["error"]


def test_a_model_that_is_not_decoupled_answers_whole_and_refuses_to_stream(tmp_path: Path) -> None:
    tree = yaml.safe_load((REPOSITORIES / "llmapi.yaml").read_text()) | {"decoupled": False}
    path = tmp_path / "whole.yaml"
    path.write_text(yaml.safe_dump(tree))
    with running_triton(str(path), tmp_path) as triton:
        assert triton.text(MODEL, text_input=FRANCE, **QUIET) == " Paris"
        assert "'streaming' needs a decoupled model" in triton.refusal(MODEL, text_input=FRANCE, streaming=True)
        infer = {
            "inputs": [
                {"name": "text_input", "shape": [1], "datatype": "BYTES", "data": [FRANCE]},
                {"name": "sampling_param_exclude_input_from_output", "shape": [1], "datatype": "BOOL", "data": [True]},
            ]
        }
        answer = triton.client.post(f"/v2/models/{MODEL}/infer", json=infer).json()
        assert answer["outputs"][0]["data"] == [" Paris"]
