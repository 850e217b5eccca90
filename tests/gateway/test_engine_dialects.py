"""One client, five engines: whatever stands behind the gateway, a client sees the same; the engine gets its own words.

Each engine is played by a fake that follows its contract to the letter (docs/engines/fake.md), a process of its own.
"""

import concurrent.futures
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from tokenizers import Tokenizer

from fakes import FakeHandle, start_fake
from gateway.backends.constraint import alternatives
from gateways import GatewayHandle, config, start_gateway

KINDS = ("vllm", "sglang", "trtllm", "lightllm", "mnn")
SAMPLING = tuple(kind for kind in KINDS if kind != "mnn")  # MNN acts on no other field than the messages
PICTURE = "data:image/png;base64," + (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


class Side(NamedTuple):
    """One engine and the gateway in front of it."""

    kind: str
    fake: FakeHandle
    gateway: GatewayHandle

    def ask(self, **fields: Any) -> httpx.Response:
        messages = [{"role": "user", "content": "hi"}]
        body = {"model": "public", "messages": messages} | fields
        return httpx.post(f"{self.gateway.url}/v1/chat/completions", json=body, timeout=60)

    def got(self) -> dict[str, Any]:
        """What the engine was sent last."""
        body: dict[str, Any] = self.fake.stats()["last_requests"][-1]["body"]
        return body

    def events(self, **fields: Any) -> list[dict[str, Any]]:
        answer = self.ask(stream=True, **fields)
        assert answer.status_code == 200, answer.text
        assert answer.text.endswith("data: [DONE]\n\n")
        return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]


@pytest.fixture(scope="module")
def sides() -> Iterator[dict[str, Side]]:
    """All engines behind a gateway each; started together, so that it takes as long as one."""
    running: list[Any] = []
    try:
        found = {}
        for kind in KINDS:
            fake = start_fake("--engine", kind, "--model", "served")
            running.append(fake)
            deployment = {"engine": kind, "model": "served"}
            gateway = start_gateway(config(fake.url, model="public", deployment=deployment), ready=False)
            running.append(gateway)
            found[kind] = Side(kind, fake, gateway)
        for side in found.values():
            side.gateway.wait_ready()
        yield found
    finally:
        for one in reversed(running):
            one.stop()


@pytest.fixture
def side(sides: dict[str, Side], request: pytest.FixtureRequest) -> Side:
    """The engine a test is parametrized with, nothing scripted, nothing counted."""
    chosen = sides[getattr(request, "param", None) or request.node.callspec.params["kind"]]
    chosen.fake.reset_script()
    chosen.fake.reset_stats()
    return chosen


every_kind = pytest.mark.parametrize("kind", KINDS)


# ---- what clients see ----


@every_kind
def test_an_answer_has_openais_members(side: Side, kind: str) -> None:
    answer = side.ask()
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["object"] == "chat.completion"
    assert body["model"] == "public"
    (choice,) = body["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == "Water runs through the penstock."
    assert choice["finish_reason"] == "stop"


@every_kind
def test_a_stream_says_what_the_whole_answer_says(side: Side, kind: str) -> None:
    events = side.events()
    whole = side.ask().json()["choices"][0]["message"]["content"]
    said = "".join(c["delta"].get("content") or "" for event in events for c in event["choices"])
    assert said == whole
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert {event["id"] for event in events} == {events[0]["id"]}
    assert {event["created"] for event in events} == {events[0]["created"]}
    assert {event["model"] for event in events} == {"public"}
    reasons = [choice["finish_reason"] for event in events for choice in event["choices"]]
    assert reasons == [None] * (len(reasons) - 1) + ["stop"]


@every_kind
def test_every_event_of_a_stream_has_a_choice_unless_it_is_the_usage_asked_for(side: Side, kind: str) -> None:
    side.fake.script({"extra_events": True})
    assert all(event["choices"] and not event.get("usage") for event in side.events())
    if kind != "mnn":  # it counts nothing, and here nobody counts for it
        *spoken, last = side.events(stream_options={"include_usage": True})
        assert all(event["choices"] and not event.get("usage") for event in spoken)
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 6


@pytest.mark.parametrize("kind", SAMPLING)
def test_reasoning_comes_under_one_name(side: Side, kind: str) -> None:
    side.fake.script({"reasoning": ["Let", " me"], "tokens": ["Yes"]})
    message = side.ask().json()["choices"][0]["message"]
    assert message["reasoning"] == "Let me"
    deltas = [choice["delta"] for event in side.events() for choice in event["choices"]]
    assert "".join(delta.get("reasoning") or "" for delta in deltas) == "Let me"
    assert "".join(delta.get("content") or "" for delta in deltas) == "Yes"


@every_kind
@pytest.mark.parametrize(("status", "seen"), [(400, 400), (500, 500), (503, 503)])
def test_an_error_has_openais_shape(side: Side, kind: str, status: int, seen: int) -> None:
    side.fake.script({"error": {"status": status, "message": "the engine's words"}})
    answer = side.ask()
    assert answer.status_code == seen
    error = answer.json()["error"]
    assert error["message"] == "the engine's words"
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["code"] is None or isinstance(error["code"], str)


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_an_aborted_answer_is_an_error_and_no_short_answer(side: Side, kind: str) -> None:
    side.fake.script({"finish_reason": "abort"})
    assert side.ask().status_code == 502
    answer = side.ask(stream=True)
    assert '"finish_reason":"abort"' not in answer.text
    errors = [line for line in answer.text.splitlines() if line.startswith('data: {"error"')]
    assert ["aborted" in json.loads(error[6:])["error"]["message"] for error in errors] == [True]


@pytest.mark.parametrize("kind", SAMPLING)
def test_the_engine_stops_when_the_client_leaves(side: Side, kind: str) -> None:
    _leave_early(side)
    assert side.fake.wait(lambda stats: stats["active"] == 0)["aborted"] == 1


def _leave_early(side: Side) -> None:
    side.fake.script({"tokens": 40, "itl_s": 0.02})
    body = {"model": "public", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    with httpx.stream("POST", f"{side.gateway.url}/v1/chat/completions", json=body, timeout=60) as answer:
        next(answer.iter_lines())


# ---- what engines get ----

ASKED: dict[str, dict[str, Any]] = {
    "json_object": {"response_format": {"type": "json_object"}},
    "json": {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
    "json by its other name": {"structured_outputs": {"json": SCHEMA}},
    "regex": {"structured_outputs": {"regex": "[a-z]+"}},
    "choice": {"structured_outputs": {"choice": ["1+1", "a b"]}},
    "grammar": {"structured_outputs": {"grammar": 'root ::= "x"'}},
}
_OPENAI_JSON = {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}}
TOLD: dict[str, dict[str, dict[str, Any] | None]] = {
    "vllm": dict(ASKED.items()),
    "sglang": {
        "json_object": {"response_format": {"type": "json_object"}},
        "json": _OPENAI_JSON,
        "json by its other name": _OPENAI_JSON,
        "regex": {"regex": "[a-z]+"},
        "choice": {"regex": r"(1\+1|a b)"},
        "grammar": {"ebnf": 'root ::= "x"'},
    },
    "trtllm": {
        "json_object": {"response_format": {"type": "json_object"}},
        "json": {"response_format": {"type": "json", "schema": SCHEMA}},
        "json by its other name": {"response_format": {"type": "json", "schema": SCHEMA}},
        "regex": {"response_format": {"type": "regex", "regex": "[a-z]+"}},
        "choice": {"response_format": {"type": "regex", "regex": r"(1\+1|a b)"}},
        "grammar": {"response_format": {"type": "ebnf", "ebnf": 'root ::= "x"'}},
    },
    "lightllm": {
        "json_object": {"response_format": {"type": "json_object"}},
        "json": _OPENAI_JSON,
        "json by its other name": _OPENAI_JSON,
        "regex": None,
        "choice": None,
        "grammar": None,
    },
    "mnn": dict.fromkeys(ASKED),
}
_SPELLINGS = {"response_format", "structured_outputs", "regex", "ebnf", "json_schema"}


@every_kind
@pytest.mark.parametrize("wish", ASKED)
def test_a_constraint_reaches_the_engine_in_its_own_words_or_is_refused(side: Side, kind: str, wish: str) -> None:
    answer = side.ask(**ASKED[wish])
    told = TOLD[kind][wish]
    if told is None:
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "unsupported_parameter"
        assert side.fake.stats()["requests"] == 0
    else:
        assert answer.status_code == 200, answer.text
        assert {name: value for name, value in side.got().items() if name in _SPELLINGS} == told


def test_choices_become_a_pattern_that_matches_them_and_nothing_else() -> None:
    choices = ["a.b", "(x)", "[y]|{z}", "1+1=2?", "back\\slash", "tab\t 世界", "^$"]
    pattern = re.compile(alternatives(choices))
    assert all(pattern.fullmatch(choice) for choice in choices)
    assert not any(pattern.fullmatch(other) for other in ("axb", "x", "y", "1+1=2", "", "^"))


@pytest.mark.parametrize(
    ("kind", "told"), [("vllm", -3), ("sglang", 3), ("trtllm", 0.65), ("lightllm", None), ("mnn", None)]
)
def test_more_priority_is_sooner_on_every_engine(side: Side, kind: str, told: float | None) -> None:
    answer = side.ask(priority=3)
    if told is None:
        assert answer.json()["error"]["param"] == "priority"
    else:
        assert side.got()["priority"] == pytest.approx(told)


def test_the_most_urgent_request_stays_within_what_trtllm_takes(sides: dict[str, Side]) -> None:
    for urgency, told in ((1000, 1.0), (-1000, 0.0)):
        assert sides["trtllm"].ask(priority=urgency).status_code == 200
        assert sides["trtllm"].got()["priority"] == told


@every_kind
def test_nulls_and_identifiers_are_no_reason_to_fail(side: Side, kind: str) -> None:
    answer = side.ask(temperature=None, n=None, user="me", safety_identifier="x", tools=None, response_format=None)
    assert answer.status_code == 200, answer.text


def test_trtllm_gets_no_field_it_does_not_know(sides: dict[str, Side]) -> None:
    """Its fake refuses every unknown one, at every depth."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {}, "strict": True}}
    answer = sides["trtllm"].ask(
        tools=[tool], top_k=-1, max_tokens=3, max_completion_tokens=4, stream=True,
        stream_options={"include_usage": True, "include_obfuscation": False},
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    got = sides["trtllm"].got()
    assert got["tools"] == [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    assert got["stream_options"] == {"include_usage": True, "continuous_usage_stats": False}
    assert (got["top_k"], got["max_completion_tokens"], "max_tokens" in got) == (0, 4, False)


@pytest.mark.parametrize(("temperature", "samples"), [(0, False), (0.0, False), (0.7, True), (None, True)])
def test_lightllm_is_always_told_whether_to_sample(
    sides: dict[str, Side], temperature: float | None, samples: bool
) -> None:
    assert sides["lightllm"].ask(temperature=temperature).status_code == 200
    assert sides["lightllm"].got()["do_sample"] is samples


def test_lightllms_word_for_a_bad_request_is_400_for_clients(sides: dict[str, Side]) -> None:
    answer = sides["lightllm"].ask(messages=[{"role": "user", "content": '{"fake": {"no_such_field": 1}} x'}])
    assert answer.status_code == 400
    assert "no_such_field" in answer.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["sglang"])
def test_sglang_keeps_the_stop_text_by_its_own_name(side: Side, kind: str) -> None:
    assert side.ask(stop="x", include_stop_str_in_output=True).status_code == 200
    assert side.got()["no_stop_trim"] is True
    assert "include_stop_str_in_output" not in side.got()


@every_kind
def test_a_header_that_would_steer_the_engine_stops_at_the_gateway(side: Side, kind: str) -> None:
    headers = {"x-override-rid": "evil", "x-override-priority": "9", "x-data-parallel-rank": "3"}
    body = {"model": "public", "messages": [{"role": "user", "content": "hi"}]}
    httpx.post(f"{side.gateway.url}/v1/chat/completions", json=body, headers=headers).raise_for_status()
    assert headers.keys().isdisjoint(side.fake.stats()["last_requests"][-1]["headers"])


@pytest.mark.parametrize("flags", [[], ["--deterministic"]])
def test_a_seed_that_sglang_would_ignore_is_refused(flags: list[str]) -> None:
    deployment = {"engine": "sglang", "model": "served"}
    with (
        start_fake("--engine", "sglang", "--model", "served", *flags) as fake,
        start_gateway(config(fake.url, model="public", deployment=deployment)) as gateway,
    ):
        side = Side("sglang", fake, gateway)
        answer = side.ask(seed=7)
        if flags:
            assert (answer.status_code, side.got()["seed"]) == (200, 7)
        else:
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "seed")
            assert side.ask(seed=None).status_code == 200


# ---- SGLang's adapters ----


def test_an_adapter_of_sglang_is_never_answered_by_the_base_model(tmp_path: Any) -> None:
    with start_fake("--engine", "sglang", "--model", "served", "--enable-lora") as fake:
        settings = config(fake.url, model="public", deployment={"engine": "sglang", "model": "served"})
        adapter = str(tmp_path)
        loaded = httpx.post(f"{fake.url}/load_lora_adapter", json={"lora_name": "tuned", "lora_path": adapter})
        assert loaded.json()["success"] is True
        plain = {"messages": [{"role": "user", "content": "hi"}]}
        httpx.post(f"{fake.url}/v1/chat/completions", json=plain | {"model": "tuned"}).raise_for_status()
        assert fake.stats()["weights"] == {"base": 1}, "the trap this test is about"
        settings["models"]["public"]["adapters"] = {"tuned": {"path": adapter}}
        with start_gateway(settings) as gateway:
            fake.reset_stats()
            answer = httpx.post(f"{gateway.url}/v1/chat/completions", json=plain | {"model": "tuned"})
            assert answer.status_code == 200, answer.text
            assert answer.json()["model"] == "tuned"
            assert fake.stats()["weights"] == {"tuned": 1}


def test_adapters_of_sglang_come_and_go_and_a_refused_one_is_told_in_its_words(tmp_path: Any) -> None:
    with start_fake("--engine", "sglang", "--model", "served", "--enable-lora") as fake:
        settings = config(fake.url, model="public", deployment={"engine": "sglang", "model": "served"})
        with start_gateway(settings) as gateway:
            side = Side("sglang", fake, gateway)
            url = f"{gateway.url}/admin/adapters"
            refused = httpx.post(url, json={"name": "a", "model": "public", "path": str(tmp_path / "nowhere")})
            assert (refused.status_code, "No adapter found" in refused.text) == (400, True)
            httpx.post(url, json={"name": "a", "model": "public", "path": str(tmp_path)}).raise_for_status()
            assert side.ask(model="a").status_code == 200
            httpx.delete(f"{url}/a").raise_for_status()
            assert side.ask(model="a").status_code == 404
            assert [card["id"] for card in httpx.get(f"{fake.url}/v1/models").json()["data"]] == ["served"]


def test_an_adapter_of_trtllm_goes_with_every_request_and_a_wrong_path_is_told_at_once(tmp_path: Any) -> None:
    with start_fake("--engine", "trtllm", "--model", "served") as fake:
        settings = config(fake.url, model="public", deployment={"engine": "trtllm", "model": "served"})
        settings["models"]["public"]["adapters"] = {"tuned": {"path": str(tmp_path)}}
        with start_gateway(settings) as gateway:
            fake.reset_stats()
            side = Side("trtllm", fake, gateway)
            answer = side.ask(model="tuned")
            assert answer.status_code == 200, answer.text
            assert answer.json()["model"] == "tuned"
            assert side.got()["model"] == "served"
            assert side.got()["lora_request"]["lora_path"] == str(tmp_path)
            assert fake.stats()["weights"] == {"tuned": 1}
            order = {"name": "other", "model": "public", "path": str(tmp_path / "nowhere")}
            refused = httpx.post(f"{gateway.url}/admin/adapters", json=order)
            assert (refused.status_code, "nowhere" in refused.text) == (400, True)
            assert side.ask(model="other").status_code == 404
            assert side.ask().status_code == 200
            assert "lora_request" not in side.got()


def test_each_replica_of_trtllm_is_tried_with_an_adapter_before_it_is_ready(tmp_path: Any) -> None:
    """The path may be there on one machine and not on the next."""
    with (
        start_fake("--engine", "trtllm", "--model", "served") as one,
        start_fake("--engine", "trtllm", "--model", "served") as two,
    ):
        settings = config(one.url, two.url, model="public", deployment={"engine": "trtllm", "model": "served"})
        settings["models"]["public"]["adapters"] = {"tuned": {"path": str(tmp_path)}}
        with start_gateway(settings, ready=False) as gateway:
            assert one.wait(lambda stats: stats["weights"].get("tuned", 0))["weights"]["tuned"] == 1
            assert two.wait(lambda stats: stats["weights"].get("tuned", 0))["weights"]["tuned"] == 1
            gateway.wait_ready()


# ---- MNN ----


def test_mnn_is_asked_one_thing_at_a_time(sides: dict[str, Side]) -> None:
    side = sides["mnn"]
    side.fake.reset_stats()
    side.fake.script({"tokens": 5, "itl_s": 0.02})
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: side.ask(), range(4)))
    assert [answer.status_code for answer in answers] == [200] * 4
    assert side.fake.stats()["peak_active"] == 1


def test_mnn_gets_the_next_request_only_when_it_has_finished_what_a_client_left(sides: dict[str, Side]) -> None:
    side = sides["mnn"]
    side.fake.reset_stats()
    _leave_early(side)
    assert side.fake.stats()["active"] == 1, "it works on: there is no abort"
    side.fake.script({"tokens": ["next"]})
    assert side.ask().json()["choices"][0]["message"]["content"] == "next"
    stats = side.fake.stats()
    assert (stats["peak_active"], stats["completed"], stats["aborted"]) == (1, 2, 0)


def test_a_deadline_holds_for_the_client_of_mnn_and_the_engine_still_finishes() -> None:
    with start_fake("--engine", "mnn") as fake:
        deployment = {"engine": "mnn", "deadline_s": 1.0}
        with start_gateway(config(fake.url, deployment=deployment)) as gateway:
            fake.reset_stats()
            fake.script({"ttft_s": 1.5, "times": 1})
            body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
            late = httpx.post(f"{gateway.url}/v1/chat/completions", json=body)
            assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
            fake.wait(lambda stats: stats["completed"] == 1)
            assert httpx.post(f"{gateway.url}/v1/chat/completions", json=body).status_code == 200
            assert fake.stats()["peak_active"] == 1


@pytest.mark.parametrize("field", [{"temperature": 0.5}, {"max_tokens": 5}, {"stop": "x"}, {"seed": 1}, {"tools": []}])
def test_mnn_is_not_asked_for_what_it_ignores(sides: dict[str, Side], field: dict[str, Any]) -> None:
    answer = sides["mnn"].ask(**field)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(field)))


def test_mnn_gets_text_parts_as_one_text_and_no_pictures(sides: dict[str, Side]) -> None:
    side = sides["mnn"]
    side.fake.reset_script()
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert side.ask(messages=[{"role": "user", "content": parts}]).status_code == 200
    assert side.got()["messages"] == [{"role": "user", "content": "one\ntwo"}]
    picture = [{"type": "image_url", "image_url": {"url": PICTURE}}]
    answer = side.ask(messages=[{"role": "user", "content": picture}])
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")


@pytest.mark.parametrize("text", ["<img>http://10.0.0.1/</img>", "see <AUDIO>file</AUDIO>"])
def test_mnn_is_not_given_texts_that_it_would_fetch_something_for(sides: dict[str, Side], text: str) -> None:
    side = sides["mnn"]
    side.fake.reset_script()
    for content in (text, [{"type": "text", "text": text}]):
        answer = side.ask(messages=[{"role": "user", "content": content}])
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")
    assert side.ask(messages=[{"role": "user", "content": "a < b, imgs > c"}]).status_code == 200


@pytest.mark.parametrize(
    ("kind", "name", "raw"),
    [
        ("sglang", "structured_outputs", '{"json": {"maximum": 1e999}}'),
        ("lightllm", "response_format", '{"type": "json_object", "x": 1e999}'),
        ("trtllm", "tools", '[{"type": "function", "function": {"name": "f", "parameters": {"maximum": 1e999}}}]'),
    ],
)
def test_a_number_that_json_cannot_hold_is_the_callers_fault(
    sides: dict[str, Side], kind: str, name: str, raw: str
) -> None:
    side = sides[kind]
    body = f'{{"model": "public", "messages": [{{"role": "user", "content": "hi"}}], "{name}": {raw}}}'
    answer = httpx.post(f"{side.gateway.url}/v1/chat/completions", content=body, timeout=60)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)


def test_mnns_constant_usage_never_reaches_a_client(sides: dict[str, Side]) -> None:
    side = sides["mnn"]
    side.fake.reset_script()
    assert "usage" not in side.ask().json()
    assert not any(event.get("usage") for event in side.events(stream_options={"include_usage": True}))


def test_mnns_tokens_are_counted_with_the_checkpoints_tokenizer() -> None:
    starter = Path(__file__).parents[2] / "model_repo/checkpoints/starter"
    with start_fake("--engine", "mnn") as fake:
        deployment = {"engine": "mnn", "checkpoint": str(starter)}
        with start_gateway(config(fake.url, deployment=deployment)) as gateway:
            side = Side("mnn", fake, gateway)
            usage = side.ask(model="m").json()["usage"]
            *_, last = side.events(model="m", stream_options={"include_usage": True})
            tokenizer = Tokenizer.from_file(str(starter / "tokenizer.json"))
            said = len(tokenizer.encode("Water runs through the penstock.", add_special_tokens=False).ids)
            assert usage["completion_tokens"] == said
            assert usage["prompt_tokens"] > len(tokenizer.encode("hi").ids)  # the template's words as well
            assert usage["total_tokens"] == usage["prompt_tokens"] + said
            assert last["usage"] == usage
            assert gateway.metric("penstock_output_tokens_total", model="m") == 2 * said
