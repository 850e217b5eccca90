"""The real tritonserver with TensorRT-LLM's legacy contract on CPU, through the official client and HTTP."""

import concurrent.futures
import itertools
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers import Tokenizer

from openvino_process import STARTER, running_engine
from triton_process import REPOSITORIES, RunningTriton, marks, running_triton

pytestmark = marks()

STORY = "<|user|>Tell me a story<|im_end|><|assistant|>"
FRANCE = "<|user|>What is the capital of France?<|im_end|><|assistant|>"
PROMPTS = [STORY, FRANCE, "def main(", "1 2 3", "法国的首都是", "<|user|>What is 7 + 8?<|im_end|><|assistant|>"]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Paris"]}, "sunny": {"type": "boolean"}},
    "required": ["city", "sunny"],
    "additionalProperties": False,
}
STOP = {"input_ids": [0], "input_lengths": 1, "request_output_len": 1, "stop": True}
TEXT_MODELS = pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    with running_triton("cpu.yaml", tmp_path_factory.mktemp("triton")) as running:
        yield running


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(STARTER / "tokenizer.json"))


def core_inputs(tokenizer: Tokenizer, prompt: str, max_tokens: int, **more: Any) -> dict[str, Any]:
    ids = tokenizer.encode(prompt).ids
    return {"input_ids": ids, "input_lengths": len(ids), "request_output_len": max_tokens} | more


def long_inputs(tokenizer: Tokenizer, model: str) -> dict[str, Any]:
    """A stream of 1,900 tokens."""
    if model == "tensorrt_llm":
        return core_inputs(tokenizer, STORY, 1900, streaming=True, end_id=-1)
    return {"text_input": STORY, "max_tokens": 1900, "end_id": -1, "stream": True}


def test_greedy_text_is_that_of_the_embedded_engine(
    triton: RunningTriton, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    with running_engine(STARTER, tmp_path / "cache") as embedded:
        for prompt in PROMPTS:
            expected = embedded.complete(prompt, max_tokens=24, temperature=0).json()["choices"][0]["text"]
            asked = {"text_input": prompt, "max_tokens": 24, "exclude_input_in_output": True}
            assert triton.text("ensemble", **asked) == expected
            assert triton.text("tensorrt_llm_bls", **asked) == expected
            core = triton.whole("tensorrt_llm", **core_inputs(tokenizer, prompt, 24, exclude_input_in_output=True))
            assert tokenizer.decode(core["output_ids"][0][0]) == expected


@TEXT_MODELS
def test_the_prompt_is_echoed_unless_it_is_excluded(triton: RunningTriton, model: str) -> None:
    answer = triton.whole(
        model, text_input="1 2 3", max_tokens=4, return_num_input_tokens=True, return_num_output_tokens=True
    )
    assert answer["text_output"][0].startswith("1 2 3")
    excluded = triton.whole(
        model, text_input="1 2 3", max_tokens=4, exclude_input_in_output=True, return_num_output_tokens=True
    )
    assert answer["text_output"][0] == "1 2 3" + excluded["text_output"][0]
    # As in TensorRT-LLM: the size of output_ids, so an echoed prompt counts.
    assert excluded["num_output_tokens"] == [[4]]
    assert answer["num_output_tokens"] == [[4 + answer["num_input_tokens"][0][0]]]


def test_a_stream_of_the_core_brings_only_new_tokens_and_joins_to_the_whole(
    triton: RunningTriton, tokenizer: Tokenizer
) -> None:
    asked = core_inputs(tokenizer, STORY, 40)
    whole = triton.whole("tensorrt_llm", **asked, exclude_input_in_output=True)["output_ids"][0][0]
    events = triton.ask("tensorrt_llm", **asked, streaming=True)
    pieces = [event["outputs"]["output_ids"][0][0] for event in events]
    assert list(itertools.chain(*pieces)) == whole
    assert all(pieces[:-1])
    assert tokenizer.token_to_id("<|im_end|>") not in whole  # the end token ends and is not put out
    assert [event["final"] for event in events] == [False] * (len(events) - 1) + [True]


def test_the_ensembles_stream_is_made_of_pieces_and_its_last_data_is_final(triton: RunningTriton) -> None:
    whole = triton.text("ensemble", text_input=STORY, max_tokens=40, exclude_input_in_output=True)
    events = triton.ask("ensemble", text_input=STORY, max_tokens=40, stream=True)
    assert "".join(event["outputs"]["text_output"][0] for event in events) == whole
    assert [event["final"] for event in events] == [False] * (len(events) - 1) + [True]


def test_the_bls_stream_grows_and_ends_with_an_empty_final_response(triton: RunningTriton) -> None:
    whole = triton.text("tensorrt_llm_bls", text_input=STORY, max_tokens=40, exclude_input_in_output=True)
    *events, last = triton.ask("tensorrt_llm_bls", text_input=STORY, max_tokens=40, stream=True)
    assert last == {"call": 0, "outputs": {}, "final": True}
    texts = [event["outputs"]["text_output"][0] for event in events]
    assert texts[-1] == whole
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))


def test_no_character_stays_broken_in_the_bls_stream(triton: RunningTriton, tokenizer: Tokenizer) -> None:
    prompt = "<|user|>法国的首都是哪里？<|im_end|><|assistant|>"
    wild = {"temperature": 2.0, "seed": 3, "end_id": -1}
    ids = triton.whole(
        "tensorrt_llm", **core_inputs(tokenizer, prompt, 100, exclude_input_in_output=True, runtime_top_p=1.0, **wild)
    )["output_ids"][0][0]
    broken = "\N{REPLACEMENT CHARACTER}"
    assert any(tokenizer.decode([token]).endswith(broken) for token in ids), "no token ends inside a character"
    *events, _ = triton.ask("tensorrt_llm_bls", text_input=prompt, max_tokens=100, stream=True, top_p=1.0, **wild)
    texts = [event["outputs"]["text_output"][0] for event in events]
    assert texts[-1] == tokenizer.decode(ids)
    stable = [text.rstrip(broken) for text in texts]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(stable))


@pytest.mark.parametrize("model", ["tensorrt_llm", "tensorrt_llm_bls"])
def test_eight_streams_share_the_engine_at_once(triton: RunningTriton, tokenizer: Tokenizer, model: str) -> None:
    """None is over when all have begun."""
    stream = {"model": model, "inputs": long_inputs(tokenizer, model), "leave_after": "all"}
    events = triton.talk(*[stream] * 8)
    assert [event["ended"] for event in events if "left" in event] == [False] * 8
    triton.wait_until_idle()


def test_eight_streams_of_the_ensemble_share_the_engine_at_once(triton: RunningTriton, tokenizer: Tokenizer) -> None:
    stream = {"model": "ensemble", "inputs": long_inputs(tokenizer, "ensemble")}
    stop = {"model": "tensorrt_llm", "inputs": STOP, "after": "all"}
    ids = [f"s{number}" for number in range(8)]
    events = triton.talk(*({**stream, "id": one} for one in ids), *({**stop, "id": one} for one in ids))
    first = {event["call"]: place for place, event in reversed(list(enumerate(events)))}
    last = {event["call"]: place for place, event in enumerate(events)}
    assert max(first[call] for call in range(8)) < min(last[call] for call in range(8))
    assert all(events[last[call]]["final"] for call in range(8))
    triton.wait_until_idle()


@pytest.mark.parametrize("model", ["tensorrt_llm", "tensorrt_llm_bls"])
def test_a_client_that_leaves_frees_the_engine(triton: RunningTriton, tokenizer: Tokenizer, model: str) -> None:
    leaving = [{"model": model, "inputs": long_inputs(tokenizer, model), "leave_after": 3} for _ in range(8)]
    events = triton.talk(*leaving)
    assert sum("left" in event for event in events) == 8
    # Eight whole answers are 15,200 tokens; none was finished, so that the engine is idle means that it stopped.
    triton.wait_until_idle()
    assert triton.text("ensemble", text_input=FRANCE, max_tokens=5, exclude_input_in_output=True) == " Paris"


@pytest.mark.parametrize("model", ["tensorrt_llm", "tensorrt_llm_bls"])
def test_the_server_outlives_clients_that_come_go_and_err_at_once(
    triton: RunningTriton, tokenizer: Tokenizer, model: str
) -> None:
    """The server used to crash, within a hundred such requests, asked about a client whose answer had just ended."""
    asked: dict[str, Any] = {"text_input": STORY, "max_tokens": 20}
    if model == "tensorrt_llm":
        asked = core_inputs(tokenizer, STORY, 20)
    calls = [
        {"model": model, "inputs": asked},
        {"model": model, "inputs": long_inputs(tokenizer, model), "leave_after": 1},
        {"model": model, "inputs": asked | {"beam_width": 2}},
    ]
    for _ in range(10):
        events = triton.talk(*calls * 4)
        kinds = [{key for event in events if event["call"] == place for key in event} for place in range(12)]
        assert ["left" in kind for kind in kinds] == [False, True, False] * 4
        assert ["error" in kind for kind in kinds] == [False, False, True] * 4
    assert triton.process.poll() is None


@pytest.mark.parametrize("model", ["tensorrt_llm", "ensemble"])
def test_a_request_is_stopped_by_its_id(triton: RunningTriton, tokenizer: Tokenizer, model: str) -> None:
    asked = long_inputs(tokenizer, model) | {"return_num_output_tokens": True}
    length = "request_output_len" if model == "tensorrt_llm" else "max_tokens"
    events = triton.talk(
        {"model": model, "inputs": asked, "id": "mine"},
        {"model": model, "inputs": asked | {length: 60}, "id": "other"},
        {"model": "tensorrt_llm", "inputs": STOP, "id": "mine", "after": 0},
    )
    by_call = [[event for event in events if event["call"] == call] for call in range(3)]
    assert by_call[2] == [{"call": 2, "outputs": {}, "final": True}]
    assert by_call[0][-1]["final"]
    counts = [sum(event["outputs"].get("num_output_tokens", [[0]])[0][0] for event in one) for one in by_call[:2]]
    assert counts[0] < 1900
    assert counts[1] == 60, "the other request did not go on"
    triton.wait_until_idle()


def test_stop_without_an_id_is_refused(triton: RunningTriton) -> None:
    assert triton.refusal("tensorrt_llm", **STOP) == "'stop' cancels by request id, and this request has none"


@TEXT_MODELS
@pytest.mark.parametrize("stream", [False, True])
def test_stop_words_end_the_answer_and_stay_in_it(triton: RunningTriton, model: str, stream: bool) -> None:
    asked = {"text_input": STORY, "max_tokens": 60, "exclude_input_in_output": True}
    whole = triton.text(model, **asked)
    word = whole.split()[1]
    expected = whole[: whole.index(word) + len(word)]
    events = triton.ask(model, **asked, stop_words=[f" {word}"], stream=stream)
    texts = [event["outputs"]["text_output"][0] for event in events if event["outputs"]]
    assert (texts[-1] if model == "tensorrt_llm_bls" else "".join(texts)) == expected
    assert events[-1]["final"]


def test_the_bls_finds_a_stop_word_that_no_run_of_tokens_spells(triton: RunningTriton) -> None:
    asked = {"text_input": STORY, "max_tokens": 60, "exclude_input_in_output": True}
    whole = triton.text("tensorrt_llm_bls", **asked)
    middle = whole[2:4]
    assert triton.text("tensorrt_llm_bls", **asked, stop_words=[middle]) == whole[:4]
    *events, last = triton.ask("tensorrt_llm_bls", **asked, stop_words=[middle], stream=True)
    assert events[-1]["outputs"]["text_output"] == [whole[:4]]
    assert last["final"]
    triton.wait_until_idle()


@TEXT_MODELS
def test_a_seed_repeats_and_another_one_differs(triton: RunningTriton, model: str) -> None:
    def said(**more: Any) -> str:
        return triton.text(
            model, text_input=STORY, max_tokens=30, exclude_input_in_output=True, temperature=1.5, top_p=1.0, **more
        )

    assert said(seed=1) == said(seed=1) != said(seed=2)
    assert said() == said(seed=0), "TensorRT-LLM's seed is 0 when none is given"


def test_without_top_k_and_top_p_it_is_greedy(triton: RunningTriton) -> None:
    asked = {"text_input": STORY, "max_tokens": 30, "exclude_input_in_output": True}
    greedy = triton.text("ensemble", **asked)
    assert triton.text("ensemble", **asked, temperature=1.5, seed=5) == greedy
    assert triton.text("ensemble", **asked, temperature=1.5, seed=5, top_k=1) == greedy
    assert triton.text("ensemble", **asked, temperature=1.5, seed=5, top_k=100) != greedy


def test_log_probs_come_with_the_new_tokens(triton: RunningTriton, tokenizer: Tokenizer) -> None:
    asked = core_inputs(tokenizer, STORY, 12, return_log_probs=True, exclude_input_in_output=True)
    whole = triton.whole("tensorrt_llm", **asked)
    [log_probs], [total] = whole["output_log_probs"][0], whole["cum_log_probs"][0]
    assert len(log_probs) == len(whole["output_ids"][0][0])
    assert all(value <= 0 for value in log_probs)
    assert total == pytest.approx(sum(log_probs), abs=1e-4)
    events = triton.ask("tensorrt_llm", **asked, streaming=True)
    pieces = [event["outputs"]["output_log_probs"][0][0] for event in events]
    assert list(itertools.chain(*pieces)) == pytest.approx(log_probs, abs=1e-5)
    assert events[-1]["outputs"]["cum_log_probs"][0][0] == pytest.approx(total, abs=1e-4)
    assert "output_log_probs" in triton.whole("ensemble", text_input=STORY, max_tokens=3, return_log_probs=True)


@TEXT_MODELS
def test_several_sequences_differ_and_say_which_they_are(triton: RunningTriton, model: str) -> None:
    events = triton.ask(model, text_input=STORY, max_tokens=8, num_return_sequences=3, top_p=1.0, temperature=2.0)
    outputs = [event["outputs"] for event in events if event["outputs"]]
    answers = {output["sequence_index"][0][0]: output["text_output"][0] for output in outputs}
    assert sorted(answers) == [0, 1, 2]
    assert len(set(answers.values())) > 1


def test_guided_decoding_holds_over_twenty_seeds(triton: RunningTriton) -> None:
    asked = {"text_input": FRANCE, "max_tokens": 80, "exclude_input_in_output": True, "temperature": 1.5, "top_p": 1.0}
    guide = {"guided_decoding_guide_type": "json_schema", "guided_decoding_guide": json.dumps(SCHEMA)}
    calls = [{"model": "ensemble", "inputs": asked | guide | {"seed": seed}} for seed in range(20)]
    answers = [event["outputs"]["text_output"][0] for event in triton.talk(*calls)]
    values = [json.loads(answer) for answer in answers]
    assert all(value["city"] in ("Oslo", "Paris") and value["sunny"] in (True, False) for value in values)
    assert len(set(answers)) > 1


@TEXT_MODELS
@pytest.mark.parametrize(
    ("kind", "guide", "fits"), [("regex", "[ab]{3}c", r"[ab]{3}c"), ("ebnf_grammar", 'root ::= "x" [0-9] "y"', r"x\dy")]
)
def test_every_kind_of_guide_is_kept(triton: RunningTriton, model: str, kind: str, guide: str, fits: str) -> None:
    said = triton.text(
        model, text_input=STORY, max_tokens=40, exclude_input_in_output=True, top_p=1.0, seed=7,
        guided_decoding_guide_type=kind, guided_decoding_guide=guide,
    )  # fmt: skip
    assert re.fullmatch(fits, said)


@TEXT_MODELS
@pytest.mark.parametrize(
    ("kind", "guide"),
    [
        ("json_schema", '{"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}}'),
        ("json_schema", '{"enum": []}'),
        ("json_schema", "not JSON"),
        ("regex", "(["),
        ("ebnf_grammar", "root ::= nothing"),
    ],
)
def test_an_impossible_guide_is_refused_and_the_next_request_works(
    triton: RunningTriton, model: str, kind: str, guide: str
) -> None:
    refusal = triton.refusal(
        model, text_input=STORY, max_tokens=10, guided_decoding_guide_type=kind, guided_decoding_guide=guide
    )
    assert "'guided_decoding_guide' cannot be turned into a grammar: " in refusal
    assert triton.text(model, text_input=FRANCE, max_tokens=5, exclude_input_in_output=True) == " Paris"


REFUSED = [
    ({"beam_width": 4}, "'beam_width' is not supported"),
    ({"bad_words": ["nice"]}, "'bad_words_list' is not supported"),
    ({"lora_task_id": 3}, "'lora_task_id' is not supported"),
    ({"embedding_bias_words": ["a"], "embedding_bias_weights": [2.0]}, "'embedding_bias' is not supported"),
    ({"embedding_bias_words": ["a"]}, "belong together"),
    ({"return_context_logits": True}, "'return_context_logits' is not supported"),
    ({"return_perf_metrics": True}, "'return_perf_metrics' is not supported"),
    ({"length_penalty": 2.0}, "'len_penalty' is not supported"),
    ({"decoder_text_input": "x"}, "'decoder_input_"),
    ({"guided_decoding_guide_type": "structural_tag", "guided_decoding_guide": "x"}, "json, json_schema, regex"),
    ({"guided_decoding_guide": "x"}, "needs a guided_decoding_guide_type"),
    ({"max_tokens": 0}, "'request_output_len' must be between 1"),
    ({"max_tokens": 3000}, "maximum context length is 2048 tokens"),
    ({"temperature": -1.0}, "'temperature' must be between 0 and 100"),
    ({"top_p": 1.5}, "'runtime_top_p' must be between 0 and 1"),
    ({"min_tokens": 50}, "'min_tokens' must be between 0 and 10"),
    ({"text_input": ""}, "'input_"),
]


@TEXT_MODELS
@pytest.mark.parametrize(("given", "complaint"), REFUSED, ids=[next(iter(given)) for given, _ in REFUSED])
def test_what_is_not_acted_on_is_refused_by_name(
    triton: RunningTriton, model: str, given: dict[str, Any], complaint: str
) -> None:
    assert complaint in triton.refusal(model, **({"text_input": STORY, "max_tokens": 10} | given))


@TEXT_MODELS
def test_a_value_that_asks_for_nothing_is_no_reason_to_refuse(triton: RunningTriton, model: str) -> None:
    nothing = {
        "beam_width": 1, "bad_words": [""], "stop_words": [""], "length_penalty": 1.0, "return_context_logits": False,
        "return_perf_metrics": False, "repetition_penalty": 1.0, "top_k": 0, "min_tokens": 0,
    }  # fmt: skip
    plain = triton.text(model, text_input=STORY, max_tokens=10)
    assert triton.text(model, text_input=STORY, max_tokens=10, **nothing) == plain


def test_an_unknown_model_and_a_wrong_tensor_are_errors_and_the_stream_goes_on(triton: RunningTriton) -> None:
    assert "nonesuch" in triton.refusal("nonesuch", text_input="x", max_tokens=1)
    assert "nonesuch" in triton.refusal("ensemble", text_input="x", max_tokens=1, nonesuch=1)
    missing = triton.refusal("ensemble", text_input="x")
    assert "max_tokens" in missing or "missing" in missing or "expected" in missing
    assert triton.text("ensemble", text_input=FRANCE, max_tokens=5, exclude_input_in_output=True) == " Paris"


@TEXT_MODELS
def test_http_generate_and_generate_stream_say_the_same(triton: RunningTriton, model: str) -> None:
    asked = {"text_input": STORY, "max_tokens": 20, "exclude_input_in_output": True}
    answer = triton.generate(model, **asked)
    assert answer.status_code == 200
    whole = answer.json()["text_output"]
    texts = [event["text_output"] for event in triton.generate_stream(model, **asked, stream=True)]
    assert (texts[-1] if model == "tensorrt_llm_bls" else "".join(texts)) == whole
    assert whole == triton.text(model, **asked)


def test_http_errors_keep_their_status_before_the_first_response(triton: RunningTriton) -> None:
    refused = triton.generate("tensorrt_llm_bls", text_input=STORY, max_tokens=5, beam_width=3)
    assert "'beam_width' is not supported" in refused.json()["error"]
    assert triton.client.post("/v2/models/nonesuch/generate", json={}).status_code in (400, 404)


def test_more_than_one_response_is_more_than_generate_can_carry(triton: RunningTriton) -> None:
    answer = triton.generate("ensemble", text_input=STORY, max_tokens=20, stream=True)
    assert "exactly 1 response" in answer.json()["error"]


def test_a_model_that_is_not_decoupled_answers_whole_and_a_full_engine_refuses(tmp_path: Path) -> None:
    tree = yaml.safe_load((REPOSITORIES / "cpu.yaml").read_text())
    tree |= {"decoupled": False, "engine": {"kind": "cpu", "max_running": 1, "max_waiting": 1}}
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(tree))
    quiet = {"max_tokens": 5, "exclude_input_in_output": True}
    with running_triton(str(path), tmp_path) as triton:
        for model in ("ensemble", "tensorrt_llm_bls"):
            assert triton.text(model, text_input=FRANCE, **quiet) == " Paris"
            streaming = triton.refusal(model, text_input=FRANCE, stream=True, **quiet)
            assert "'streaming' needs a decoupled model" in streaming
            several = triton.refusal(model, text_input=FRANCE, num_return_sequences=2, **quiet)
            assert "'num_return_sequences' needs a decoupled model" in several
        long = {"model": "ensemble", "inputs": {"text_input": STORY, "max_tokens": 1500, "end_id": -1}}
        events = triton.talk(*[long] * 4)
        errors = [event["error"] for event in events if "error" in event]
        assert 1 <= len(errors) <= 2
        assert all("the engine is full (2 answers running or waiting)" in error for error in errors)
        infer = {
            "inputs": [
                {"name": "text_input", "shape": [1, 1], "datatype": "BYTES", "data": [FRANCE]},
                {"name": "max_tokens", "shape": [1, 1], "datatype": "INT32", "data": [5]},
            ]
        }
        answer = triton.client.post("/v2/models/tensorrt_llm_bls/infer", json=infer).json()
        assert answer["outputs"][0]["data"][0].endswith(" Paris")


def test_sigterm_ends_the_server_and_its_models(tmp_path: Path) -> None:
    with running_triton("cpu.yaml", tmp_path) as triton:
        assert triton.text("ensemble", text_input=FRANCE, max_tokens=5, exclude_input_in_output=True) == " Paris"
        assert len(_children(triton.process.pid)) >= 4
        children = _children(triton.process.pid)
        triton.client.close()  # the server would wait for an idle connection until its grace is over
        triton.process.send_signal(signal.SIGTERM)
        assert triton.process.wait(60) == 0
        deadline_s = time.monotonic() + 60
        while left := [pid for pid in children if Path(f"/proc/{pid}").exists()]:
            assert time.monotonic() < deadline_s, left
            time.sleep(0.05)


def test_a_server_that_loses_a_model_as_soon_as_it_is_ready_ends(tmp_path: Path) -> None:
    with running_triton("cpu.yaml", tmp_path) as triton:
        os.kill(_core(triton), signal.SIGKILL)
        assert triton.process.wait(60) == -signal.SIGKILL


def test_a_model_whose_process_is_lost_ends_the_server_and_its_open_streams(tmp_path: Path) -> None:
    with running_triton("cpu.yaml", tmp_path) as triton:
        asked = {"input_ids": [1, 2], "input_lengths": 2, "request_output_len": 1900, "streaming": True, "end_id": -1}
        stream = {"model": "tensorrt_llm", "inputs": asked}
        with concurrent.futures.ThreadPoolExecutor() as pool:
            talking = pool.submit(triton.talk, *[stream] * 8)
            deadline_s = time.monotonic() + 60
            while triton.requests("active") < 8:
                assert time.monotonic() < deadline_s
            os.kill(_core(triton), signal.SIGKILL)
            events = talking.result()
        assert triton.process.wait(60) in (-signal.SIGKILL, -signal.SIGABRT)  # it may also crash of itself
        last = {event["call"]: event for event in events}
        assert len(last) == 8
        assert any("error" in event for event in last.values())


def _core(triton: RunningTriton) -> int:
    """The process of the core model."""
    wanted = b"/tensorrt_llm/1/model.py"
    children = _children(triton.process.pid)
    return next(pid for pid in children if wanted in Path(f"/proc/{pid}/cmdline").read_bytes())


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]
