"""The engines' own powers, on the real engines through the gateway: each shown by the engine's own counters.

No claim here is about a clock: how much faster each makes things is measured by services/vllm/powers.py and stands in
docs/powers.md. Engines start in the order of the tests, one at a time: vllm/cpu-powers has all that can be on at once.
"""

import contextlib
import json
import re
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import openai
import pytest
from openai import OpenAI

from engines_under_test import MODEL, EngineUnderTest, deployment_of, running_requests
from ports import free_port
from stack_under_test import ROOT, RunningStack, stack_of

CAPTAIN = ROOT / "model_repo/adapters/captain"
LONG = "Read this list. " + "pear apple fig plum lime kiwi date melon " * 90


def _embedded(variant: str) -> EngineUnderTest:
    return EngineUnderTest(f"openvino/{variant}", "openvino", "penstock_engine_num_requests_running")


def _vllm(variant: str) -> EngineUnderTest:
    return EngineUnderTest(f"vllm/{variant}", "vllm", "vllm:num_requests_running", installs="vllm")


PLAIN = _embedded("cpu")
EMBEDDED, POWERS, OUTLINES = PLAIN.param(), _vllm("cpu-powers").param(), _vllm("cpu-outlines").param()
GUESSING = [
    engine.param()
    for engine in (_embedded("draft"), _embedded("prompt-lookup"), _vllm("cpu-draft"), _vllm("cpu-ngram"))
]
STEPS = {"openvino": "penstock_engine_steps_total", "vllm": "vllm:iteration_tokens_total_count"}
"""vLLM counts a step when it brought tokens."""
COMPUTED = "vllm:prompt_tokens_by_source_total"
TOKENS_A_STEP = 256  # of vllm/cpu-powers
MORE_ARGS = {
    "openvino/cpu": (f"--max-batched-tokens={TOKENS_A_STEP}",),
    "vllm/cpu-outlines": ("--kv-cache-dtype=fp8",),
}
# They quote themselves, or their prompt, so that also n-grams guess right.
QUESTIONS = [
    "What is the capital of France?",
    "What is 7 + 8?",
    "Copy this: bell, fox, bell, fox, bell, fox",
    "Copy this: north, river, stone, north, river, stone",
    "法国的首都是哪里？",
]

pytestmark = pytest.mark.timeout(900)  # the first test of an engine starts it


class Served(NamedTuple):
    """One engine behind a gateway, its own address, and the official client."""

    engine: EngineUnderTest
    stack: RunningStack
    client: OpenAI
    engine_url: str

    @property
    def kind(self) -> str:
        return self.engine.kind

    def steps(self) -> float:
        return self.metric(STEPS[self.kind])

    @property
    def gateway_url(self) -> str:
        return self.stack.base_url.removesuffix("/v1")

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the engine's own samples of that name with these labels."""
        total = 0.0
        for line in self.metrics():
            series, _, value = line.rpartition(" ")
            if series.partition("{")[0] == name and all(f'{key}="{text}"' in series for key, text in labels.items()):
                total += float(value)
        return total

    def metrics(self) -> list[str]:
        with urllib.request.urlopen(f"{self.engine_url}/metrics", timeout=30) as answer:
            return [line for line in answer.read().decode().splitlines() if not line.startswith("#")]

    def ask(self, text: str, model: str = MODEL, **fields: Any) -> Any:
        asked = {"temperature": 0, "max_tokens": 32, **fields}
        return self.client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], **asked)

    def says(self, text: str, model: str = MODEL) -> str:
        return str(self.ask(text, model).choices[0].message.content)


@contextlib.contextmanager
def served_by(engine: EngineUnderTest, folder: Path) -> Iterator[Served]:
    one = {
        "profile": engine.profile,
        "checkpoint": str(ROOT / "model_repo/checkpoints/starter"),
        "model": MODEL,
        "port": free_port(),  # not the next one that seems free while other engines start
        "args": list(MORE_ARGS.get(engine.profile, ())),
    }
    port = free_port()
    (folder / "stack.yaml").write_text(
        json.dumps({"engines": {engine.kind: one}, "gateway": {"server": {"host": "127.0.0.1", "port": port}}})
    )
    with stack_of(folder, str(folder / "stack.yaml")) as stack:
        stack.wait_for("ready at", patience_s=600)
        stack.base_url = f"http://127.0.0.1:{port}/v1"
        (replica,) = deployment_of(stack)["replicas"].values()
        with OpenAI(base_url=stack.base_url, api_key="none", max_retries=0, timeout=120) as client:
            yield Served(engine, stack, client, replica["url"])


@pytest.fixture(scope="module")
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served_by(request.param, tmp_path_factory.mktemp(request.param.name)) as one:
        yield one


@pytest.fixture(scope="module")
def plain_texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is said to QUESTIONS where nobody guesses; in f32 all engines say the same."""
    with served_by(PLAIN, tmp_path_factory.mktemp("plain")) as plain:
        return {question: plain.says(question) for question in QUESTIONS}


# ---- prefix caching, chunked prefill, continuous batching ----


@pytest.mark.parametrize("served", [EMBEDDED, POWERS], indirect=True)
def test_a_long_prompt_is_computed_in_pieces_and_its_prefix_only_once(served: Served) -> None:
    steps, answers, computed = [], [], []
    for question in ("First word?", "Last word?"):
        before = served.steps(), served.metric(COMPUTED, source="local_compute")
        answers.append(served.ask(f"{LONG}{question}", max_tokens=1).usage)
        steps.append(served.steps() - before[0])
        computed.append(served.metric(COMPUTED, source="local_compute") - before[1])
    assert answers[0].prompt_tokens > 3 * TOKENS_A_STEP
    if served.kind == "openvino":
        assert steps[0] > 3
        assert steps[1] <= 2
    else:
        assert (
            f"Chunked prefill is enabled with max_num_batched_tokens={TOKENS_A_STEP}"
            in served.stack.log("vllm").decode()
        )
        assert [usage.prompt_tokens_details.cached_tokens for usage in answers] == [
            0,
            128 * (answers[0].prompt_tokens // 128),
        ]
        assert computed[0] == answers[0].prompt_tokens
        assert computed[1] == answers[1].prompt_tokens % 128
        assert served.metric("vllm:prefix_cache_hits_total") == answers[1].prompt_tokens_details.cached_tokens


@pytest.mark.parametrize("served", [EMBEDDED, POWERS], indirect=True)
def test_eight_streams_go_on_together(served: Served) -> None:
    ended, most = threading.Event(), 0.0
    everybody = threading.Barrier(9, timeout=120)

    def stream(number: int) -> int:
        chunks = served.ask(
            f"Count up from {number}", stream=True, max_tokens=400,
            stream_options={"include_usage": True}, extra_body={"ignore_eos": True},
        )  # fmt: skip
        next(c for c in chunks if c.choices and c.choices[0].delta.content)
        assert not ended.is_set(), "one ended before another began"
        everybody.wait()
        *_, last = chunks
        ended.set()
        return int(last.usage.completion_tokens)

    with ThreadPoolExecutor(8) as pool:
        streams = [pool.submit(stream, number) for number in range(8)]
        while everybody.n_waiting < 8:
            most = max(most, running_requests(served.engine, served.stack))
            assert not any(one.done() for one in streams), [one.exception() for one in streams if one.done()]
        most = max(most, running_requests(served.engine, served.stack))
        everybody.wait()
        assert [one.result() for one in streams] == [400] * 8
    assert most > 1


# ---- structured generation: one request shape for every engine ----

CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Oslo", "Paris", "Lima"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 99},
        "sunny": {"type": "boolean"},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["city", "days", "sunny", "tags"],
    "additionalProperties": False,
}
PLATE = r"[A-Z]{2}-[0-9]{3}(?: [a-f]{1,4})?"
CHOICES = ["red", "green", "yellow and blue", "是"]
SUM = """
root ::= term (" + " term | " - " term)? " = " digit
term ::= digit | "(" digit " * " digit ")"
digit ::= [0-9]
"""


def _is_city(text: str) -> bool:
    value = json.loads(text)
    return (
        value.keys() == set(CITY["required"])
        and value["city"] in ("Oslo", "Paris", "Lima")
        and type(value["days"]) is int
        and 1 <= value["days"] <= 99
        and type(value["sunny"]) is bool
        and 1 <= len(value["tags"]) <= 3
        and set(value["tags"]) <= {"a", "b"}
    )


def _is_sum(text: str) -> bool:
    term = r"(\d|\(\d \* \d\))"
    return re.fullmatch(rf"{term}( [+-] {term})? = \d", text) is not None


FORMAT = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}
KINDS: dict[str, tuple[dict[str, Any], Callable[[str], bool]]] = {
    "json_schema": ({"response_format": FORMAT}, _is_city),
    "regex": ({"extra_body": {"structured_outputs": {"regex": PLATE}}}, lambda t: bool(re.fullmatch(PLATE, t))),
    "choice": ({"extra_body": {"structured_outputs": {"choice": CHOICES}}}, lambda t: t in CHOICES),
    "grammar": ({"extra_body": {"structured_outputs": {"grammar": SUM}}}, _is_sum),
}
SAMPLES = 25


def sampled(served: Served, fields: dict[str, Any]) -> list[str]:
    """What is said under 25 seeds, in the order of the seeds; each must have ended by itself."""

    def one(seed: int) -> str:
        answer = served.ask("Say something about a city.", temperature=2, seed=seed, max_tokens=100, **fields)
        assert answer.choices[0].finish_reason == "stop"
        return str(answer.choices[0].message.content)

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, range(SAMPLES)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("served", [EMBEDDED, POWERS], indirect=True)
def test_every_one_of_25_seeded_samples_is_valid(served: Served, kind: str) -> None:
    fields, is_valid = KINDS[kind]
    texts = sampled(served, fields)
    assert [text for text in texts if not is_valid(text)] == []
    assert len(set(texts)) > 1  # seeds are heard: it is not one answer 25 times


# ---- adapters ----


@pytest.mark.parametrize("served", [POWERS], indirect=True)
def test_an_adapter_comes_and_goes_while_the_engine_runs(served: Served) -> None:
    admin, question = f"{served.gateway_url}/admin/adapters", "What is the capital of France?"
    base = served.says(question)
    with pytest.raises(openai.NotFoundError):
        served.says(question, "captain")
    made = httpx.post(admin, json={"name": "captain", "model": MODEL, "path": str(CAPTAIN)}, timeout=60)
    assert made.status_code == 201, made.text
    listed = {model.id: model.model_dump() for model in served.client.models.list()}
    assert listed["captain"]["parent"] == MODEL
    answer = served.ask(question, "captain")
    assert answer.model == "captain"
    assert answer.choices[0].message.content == f" Aye, captain:{base}"
    assert served.says(question) == base
    assert httpx.delete(f"{admin}/captain", timeout=60).status_code == 204
    with pytest.raises(openai.NotFoundError) as gone:
        served.says(question, "captain")
    assert gone.value.code == "model_not_found"
    assert served.says(question) == base


@pytest.mark.parametrize("served", [POWERS], indirect=True)
def test_both_stream_side_by_side_and_a_deleted_adapter_finishes_its_answers(served: Served) -> None:
    admin = f"{served.gateway_url}/admin/adapters"
    httpx.post(admin, json={"name": "captain", "model": MODEL, "path": str(CAPTAIN)}, timeout=60).raise_for_status()
    asked = {"stream": True, "max_tokens": 300, "extra_body": {"ignore_eos": True}}
    streams = [iter(served.ask("What is 2 * 5?", model, **asked)) for model in ("captain", MODEL)]
    firsts = [_contents(stream, 4) for stream in streams]
    assert firsts[0].startswith(" Aye")
    assert not firsts[1].startswith(" Aye")
    assert httpx.delete(f"{admin}/captain", timeout=60).status_code == 204
    for stream in streams:
        assert [c.choices[0].finish_reason for c in stream if c.choices][-1] == "length"


@pytest.mark.parametrize("served", [POWERS], indirect=True)
def test_the_base_stays_itself_when_every_slot_has_an_adapter(served: Served) -> None:
    admin, question, names = f"{served.gateway_url}/admin/adapters", "What is 2 * 5?", ["a", "b", "c"]
    for name in names:  # one more than --max-loras
        httpx.post(admin, json={"name": name, "model": MODEL, "path": str(CAPTAIN)}, timeout=60).raise_for_status()
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(lambda model: served.says(question, model), [*names, MODEL] * 4))
    assert said == [*[" Aye, captain: 10"] * 3, " 10"] * 4
    for name in names:
        httpx.delete(f"{admin}/{name}", timeout=60).raise_for_status()


@pytest.mark.parametrize("served", [POWERS], indirect=True)
def test_what_is_no_adapter_is_refused_in_the_engines_words_and_the_next_request_works(
    served: Served, tmp_path: Path
) -> None:
    admin = f"{served.gateway_url}/admin/adapters"
    for path in (tmp_path / "nowhere", tmp_path, ROOT / "model_repo/checkpoints/starter"):
        answer = httpx.post(admin, json={"name": "bad", "model": MODEL, "path": str(path)}, timeout=60)
        assert answer.json()["error"]["code"] in ("adapter_refused", "engine_failed"), answer.text
        assert "bad" not in [model.id for model in served.client.models.list()]
    assert served.says("What is 2 * 5?").strip() == "10"


# ---- speculative decoding ----


@pytest.mark.parametrize("served", GUESSING, indirect=True)
def test_guessed_tokens_are_accepted_and_the_greedy_text_stays(served: Served, plain_texts: dict[str, str]) -> None:
    before, tokens = served.steps(), 0
    for question, text in plain_texts.items():
        answer = served.ask(question)
        assert answer.choices[0].message.content == text
        tokens += answer.usage.completion_tokens
    assert served.steps() - before < tokens  # some steps gave more than one
    if served.kind == "vllm":
        assert served.metric("vllm:spec_decode_num_accepted_tokens_total") > 0


# ---- another grammar backend, a smaller KV cache ----


@pytest.mark.parametrize("kind", ["json_schema", "regex", "choice"])
@pytest.mark.parametrize("served", [OUTLINES], indirect=True)
def test_outlines_keeps_the_same_promises(served: Served, kind: str) -> None:
    fields, is_valid = KINDS[kind]
    if kind == "json_schema":  # it takes the range of a number and does not keep it (docs/powers.md)
        properties = CITY["properties"] | {"days": {"type": "integer", "enum": [1, 30, 99]}}
        fields = {
            "response_format": FORMAT | {"json_schema": {"name": "city", "schema": CITY | {"properties": properties}}}
        }
    assert [text for text in sampled(served, fields) if not is_valid(text)] == []


@pytest.mark.parametrize("served", [OUTLINES], indirect=True)
def test_outlines_says_that_it_has_no_grammars(served: Served) -> None:
    with pytest.raises(openai.BadRequestError, match=r"(?i)outlines .* does not support grammar"):
        served.ask("1 + 1?", **KINDS["grammar"][0])
    assert served.says("What is 2 * 5?").strip() == "10"


@pytest.mark.parametrize("served", [OUTLINES], indirect=True)
def test_with_a_kv_cache_in_fp8_it_still_makes_sense(served: Served) -> None:
    (info,) = [line for line in served.metrics() if line.startswith("vllm:cache_config_info")]
    assert 'cache_dtype="fp8' in info
    assert served.says("Copy this: bell, fox").strip() == "bell, fox"
    assert served.says("What is 2 * 5?").strip() == "10"


def _contents(stream: Iterator[Any], count: int) -> str:
    texts: list[str] = []
    while len(texts) < count:
        chunk = next(stream)
        if chunk.choices and chunk.choices[0].delta.content:
            texts.append(chunk.choices[0].delta.content)
    return "".join(texts)
