"""Chat and completions over a token-id model (TensorRT-LLM's core contract), played by a real gRPC server."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import OpenAI

from gateways import GatewayHandle, start_gateway
from tritons import HELLO, FakeTriton, chat, content, events, post, refusal, start_triton

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"$ref": "#/$defs/city"}}, "$defs": {"city": {}}},
    },
}
CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "a } \\" b", "n": [1, {}]}}</tool_call>'


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[FakeTriton, GatewayHandle]]:
    with start_triton("core") as triton, start_gateway(triton.config()) as gateway:
        yield triton, gateway


@pytest.fixture
def triton(shared: tuple[FakeTriton, GatewayHandle]) -> FakeTriton:
    shared[0].script()
    return shared[0]


@pytest.fixture
def gateway(shared: tuple[FakeTriton, GatewayHandle]) -> GatewayHandle:
    return shared[1]


# ---- shapes ----


def test_a_stream_has_role_content_finish_and_usage_in_this_order(triton: FakeTriton, gateway: GatewayHandle) -> None:
    triton.script(answer=" one two")
    got = events(gateway, max_tokens=20)
    deltas = [event["choices"][0]["delta"] for event in got[:-1]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert all(delta.keys() == {"content"} for delta in deltas[1:-1])
    assert deltas[-1] == {}
    assert content(got) == " one two"
    assert [event["choices"][0]["finish_reason"] for event in got[:-1]][-2:] == [None, "stop"]
    assert {event["usage"] for event in got[:-1]} == {None}
    assert got[-1]["choices"] == []
    assert len({(event["id"], event["created"], event["model"], event["object"]) for event in got}) == 1
    whole = chat(gateway, max_tokens=20)
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": " one two", "refusal": None}
    assert whole["usage"] == got[-1]["usage"]
    assert whole["usage"]["prompt_tokens"] == len(triton.asked["input_ids"])


def test_usage_is_not_sent_to_who_did_not_ask_and_is_counted_all_the_same(
    triton: FakeTriton, gateway: GatewayHandle
) -> None:
    got = events(gateway, stream_options=None)
    assert all("usage" not in event for event in got)
    deadline_s = time.monotonic() + 60
    while not (lines := gateway.access_lines()) or lines[-1]["stream"] is False:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    line = lines[-1]
    assert line["output_tokens"] > 0
    assert line["input_tokens"] == len(triton.asked["input_ids"])


@pytest.mark.parametrize("final", ["empty", "flag"])
def test_both_ways_of_saying_final_end_the_answer(triton: FakeTriton, gateway: GatewayHandle, final: str) -> None:
    triton.script(answer=" one two three", final=final)
    assert content(events(gateway)) == " one two three"
    assert chat(gateway)["choices"][0]["message"]["content"] == " one two three"
    assert triton.asked["wants_final"]
    assert triton.wait(lambda stats: stats["active"] == 0)["cancelled"] == 0


def test_no_delta_holds_a_part_of_a_character(triton: FakeTriton, gateway: GatewayHandle) -> None:
    text = " naïve 日本語 🙂🙃 café"
    triton.script(answer=text)
    got = events(gateway)
    assert content(got) == text
    pieces = [event["choices"][0]["delta"].get("content", "") for event in got if event["choices"]]
    assert not any("\ufffd" in piece for piece in pieces)
    assert got[-1]["usage"]["completion_tokens"] > len([piece for piece in pieces if piece])  # some waited for others


def test_an_answer_cut_inside_a_character_says_so(triton: FakeTriton, gateway: GatewayHandle) -> None:
    triton.script(answer="🙂")
    assert content(events(gateway, max_tokens=1)) == "\ufffd"


# ---- endings ----


def test_max_tokens_is_length_and_the_end_token_is_stop(triton: FakeTriton, gateway: GatewayHandle) -> None:
    triton.script(answer=" one two three four")
    cut = chat(gateway, max_tokens=2)
    assert (cut["choices"][0]["finish_reason"], cut["usage"]["completion_tokens"]) == ("length", 2)
    assert triton.asked["request_output_len"] == [2]
    whole = chat(gateway, max_completion_tokens=50)
    assert whole["choices"][0]["finish_reason"] == "stop"


def test_an_end_token_in_the_output_is_no_text_and_counts_once(triton: FakeTriton, gateway: GatewayHandle) -> None:
    triton.script(ids=[400, 401, 2039])
    answer = chat(gateway)
    assert answer["usage"]["completion_tokens"] == 3
    assert "im_end" not in answer["choices"][0]["message"]["content"]
    triton.script(ids=[400, 401])
    assert chat(gateway)["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(
    ("stop", "keeps", "expected"),
    [
        ("wo th", False, " one t"),
        (["three", "two"], False, " one "),
        ("two", True, " one two"),
        ("zebra", False, " one two three"),
        ("e two three four", False, " one two three"),
    ],
)
def test_a_stop_string_split_over_tokens_is_cut_exactly(
    triton: FakeTriton, gateway: GatewayHandle, stop: Any, keeps: bool, expected: str
) -> None:
    triton.script(answer=" one two three")
    asked = {"stop": stop, "include_stop_str_in_output": keeps}
    got = events(gateway, **asked)
    assert content(got) == expected
    assert chat(gateway, **asked)["choices"][0]["message"]["content"] == expected
    assert got[-2]["choices"][0]["finish_reason"] == "stop"


def test_a_stop_string_ends_the_engines_work(triton: FakeTriton, gateway: GatewayHandle) -> None:
    triton.script(answer=" one two three" * 40, itl_s=0.02)
    chat(gateway, stop="two")
    assert triton.wait(lambda stats: stats["active"] == 0)["cancelled"] == 1
    # the engine is told as well, as token runs: [2, n], ids in the first row, ends in the second
    assert triton.asked["shapes"]["stop_words_list"][:2] == [1, 2]


def test_stop_token_ids_and_ignore_eos_reach_the_engine(triton: FakeTriton, gateway: GatewayHandle) -> None:
    triton.script(ids=[400, 401, 402, 403])
    answer = chat(gateway, stop_token_ids=[402])
    assert (answer["usage"]["completion_tokens"], answer["choices"][0]["stop_reason"]) == (3, 402)
    chat(gateway, ignore_eos=True)
    assert triton.asked["end_id"] == [-1]


# ---- what the engine is told ----


def test_sampling_is_always_explicit(triton: FakeTriton, gateway: GatewayHandle) -> None:
    chat(gateway)
    assert triton.asked["runtime_top_k"] == [1]  # greedy
    assert "temperature" not in triton.asked
    chat(gateway, temperature=0.5, top_p=0.75, top_k=7, seed=9, presence_penalty=0.5, repetition_penalty=1.5)
    asked = triton.asked
    assert (asked["temperature"], asked["runtime_top_p"], asked["runtime_top_k"]) == ([0.5], [0.75], [7])
    assert (asked["seed"], asked["presence_penalty"], asked["repetition_penalty"]) == ([9], [0.5], [1.5])
    seeds = set()
    for _ in range(2):
        chat(gateway, temperature=1)
        seeds.add(triton.asked["seed"][0])
    assert len(seeds) == 2  # an unset seed is 0 over there: everybody would get the same answer


def test_a_negative_seed_is_a_seed(triton: FakeTriton, gateway: GatewayHandle) -> None:
    chat(gateway, temperature=1, seed=-1)
    assert triton.asked["seed"] == [2**64 - 1]


def test_without_max_tokens_the_rest_of_the_context_is_asked(triton: FakeTriton, gateway: GatewayHandle) -> None:
    chat(gateway)
    assert triton.asked["request_output_len"][0] + len(triton.asked["input_ids"]) == 2048


def test_n_answers_are_n_requests_with_seeds_and_ids_of_their_own(triton: FakeTriton, gateway: GatewayHandle) -> None:
    triton.script(answer=" one two")
    got = events(gateway, n=3, temperature=1, seed=5)
    texts = {}
    for event in got:
        for choice in event["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["delta"].get("content", "")
    assert texts == {0: " one two", 1: " one two", 2: " one two"}
    asked = triton.stats()["asked"]
    assert sorted(one["seed"][0] for one in asked) == [5, 6, 7]
    assert len({one["id"] for one in asked}) == 3
    assert got[-1]["usage"]["prompt_tokens"] == len(asked[0]["input_ids"])


def test_a_repeated_request_id_is_not_repeated_to_the_engine(triton: FakeTriton, gateway: GatewayHandle) -> None:
    for _ in range(2):
        httpx.post(
            f"{gateway.url}/v1/chat/completions",
            json={"model": "m", "messages": HELLO},
            headers={"x-request-id": "mine"},
        )
    ids = {one["id"] for one in triton.stats()["asked"]}
    assert len(ids) == 2
    assert all(one.startswith("mine-") for one in ids)


def test_a_constraint_travels_as_guided_decoding(triton: FakeTriton, gateway: GatewayHandle) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    for asked, guide in (
        ({"response_format": {"type": "json_object"}}, ("json", None)),
        ({"structured_outputs": {"json": schema}}, ("json_schema", schema)),
        ({"structured_outputs": {"regex": "[ab]+"}}, ("regex", "[ab]+")),
        ({"structured_outputs": {"choice": ["a.b", "(c)"]}}, ("regex", r"(a\.b)|(\(c\))")),
        ({"structured_outputs": {"grammar": 'root ::= "x"'}}, ("ebnf_grammar", 'root ::= "x"')),
    ):
        chat(gateway, **asked)
        sent = triton.asked.get("guided_decoding_guide", [None])[0]
        assert triton.asked["guided_decoding_guide_type"] == [guide[0]]
        assert (json.loads(sent) if isinstance(guide[1], dict) else sent) == guide[1]


# ---- the prompt ----


def test_the_chat_template_gets_tools_documents_and_more(triton: FakeTriton, gateway: GatewayHandle) -> None:
    def prompt(**fields: Any) -> list[int]:
        chat(gateway, **fields)
        ids: list[int] = triton.asked["input_ids"]
        return ids

    plain = prompt()
    assert len(prompt(tools=[TOOL])) > len(plain)
    assert prompt(tools=[TOOL], tool_choice="none") == plain
    assert prompt(add_generation_prompt=False) == plain[:-1]
    begun = [*HELLO, {"role": "assistant", "content": "Well"}]
    going_on = prompt(messages=begun, continue_final_message=True)
    assert going_on[: len(plain)] == plain
    assert 2039 not in going_on[len(plain) :]  # no end of turn behind the begun answer
    parts = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    assert prompt(messages=parts) == plain


def test_a_long_prompt_is_tokenized_beside_the_loop(triton: FakeTriton, gateway: GatewayHandle) -> None:
    long = " ".join(str(number % 10) for number in range(9000))
    assert refusal(post(gateway, messages=[{"role": "user", "content": long}])) == (
        400, "messages", "context_length_exceeded",
    )  # fmt: skip


def test_what_does_not_fit_the_context_never_reaches_the_engine(triton: FakeTriton, gateway: GatewayHandle) -> None:
    for path, fields in (
        ("chat/completions", {"max_tokens": 2048}),
        ("completions", {"prompt": [400] * 2048}),
        ("completions", {"prompt": ["a", "b " * 3000]}),
    ):
        answer = post(gateway, path, **fields)
        assert refusal(answer)[2] == "context_length_exceeded"
        assert "maximum context length is 2048 tokens" in answer.json()["error"]["message"]
    assert triton.stats()["asked"] == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"min_p": 0.5}, "min_p"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"logprobs": True, "top_logprobs": 2}, "top_logprobs"),
        ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
         "messages[0].content[0].type"),
    ],
)  # fmt: skip
def test_what_it_cannot_do_is_refused_by_name(
    triton: FakeTriton, gateway: GatewayHandle, fields: dict[str, Any], param: str
) -> None:
    assert refusal(post(gateway, **fields)) == (400, param, "unsupported_parameter")
    assert triton.stats()["asked"] == []


def test_values_that_ask_for_nothing_are_no_reason_to_refuse(triton: FakeTriton, gateway: GatewayHandle) -> None:
    chat(gateway, top_logprobs=0, logprobs=True, stop=[], tools=[], tool_choice="auto", n=1, user="me", bad_words=[])


# ---- completions ----


def test_prompts_of_every_kind_and_echo(triton: FakeTriton, gateway: GatewayHandle) -> None:
    triton.script(answer=" one two")
    for prompt, count in (("a b", 1), (["a b", "c"], 2), ([400, 401], 1), ([[400], [401, 402]], 2)):
        answer = post(gateway, "completions", prompt=prompt, n=2, max_tokens=9).json()
        assert [choice["index"] for choice in answer["choices"]] == list(range(2 * count))
        assert {choice["text"] for choice in answer["choices"]} == {" one two"}
    got = events(gateway, "completions", prompt="a b", echo=True)
    assert "".join(event["choices"][0]["text"] for event in got[:-1]) == "a b one two"
    assert post(gateway, "completions", prompt="a b", echo=True).json()["choices"][0]["text"] == "a b one two"
    assert {event["object"] for event in got} == {"text_completion"}


def test_completions_default_to_16_tokens(triton: FakeTriton, gateway: GatewayHandle) -> None:
    post(gateway, "completions", prompt="a")
    assert triton.asked["request_output_len"] == [16]


def test_logprobs_of_the_chosen_tokens(triton: FakeTriton, gateway: GatewayHandle) -> None:
    triton.script(answer=" one 🙂")
    whole = chat(gateway, logprobs=True)
    entries = whole["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in entries).decode() == " one 🙂"
    assert {entry["logprob"] for entry in entries} == {-0.25}
    streamed = [
        entry
        for event in events(gateway, logprobs=True)[:-1]
        for entry in (event["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert streamed == entries
    legacy = post(gateway, "completions", prompt="a", logprobs=0).json()["choices"][0]["logprobs"]
    assert len(legacy["tokens"]) == len(legacy["token_logprobs"]) == len(entries)
    assert legacy["text_offset"][:2] == [0, len(legacy["tokens"][0])]


# ---- tools ----


@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_a_tool_call_becomes_deltas(triton: FakeTriton, gateway: GatewayHandle, batch: int) -> None:
    triton.script(answer=f"Let me see. {CALL}\n{CALL}", batch=batch)
    client = OpenAI(base_url=f"{gateway.url}/v1", api_key="x", max_retries=0)
    calls: dict[int, dict[str, str]] = {}
    text = finish = ""
    with client, client.chat.completions.create(model="m", messages=HELLO, tools=[TOOL], stream=True) as stream:
        for chunk in stream:
            choice = chunk.choices[0]
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
            for call in choice.delta.tool_calls or []:
                merged = calls.setdefault(call.index, {"name": "", "arguments": ""})
                merged["name"] += call.function.name or ""
                merged["arguments"] += call.function.arguments or ""
    assert (text, finish) == ("Let me see.", "tool_calls")
    assert [json.loads(call["arguments"]) for call in calls.values()] == [{"city": 'a } " b', "n": [1, {}]}] * 2
    whole = chat(gateway, tools=[TOOL])["choices"][0]
    assert [call["function"] for call in whole["message"]["tool_calls"]] == list(calls.values())
    assert whole["finish_reason"] == "tool_calls"


def test_one_call_is_enough_where_parallel_ones_are_not_wanted(triton: FakeTriton, gateway: GatewayHandle) -> None:
    triton.script(answer=f"{CALL}\n{CALL}")
    choice = chat(gateway, tools=[TOOL], parallel_tool_calls=False)["choices"][0]
    assert (len(choice["message"]["tool_calls"]), choice["finish_reason"]) == (1, "tool_calls")


def test_a_demanded_call_is_guided_and_begins_inside(triton: FakeTriton, gateway: GatewayHandle) -> None:
    triton.script(answer='{"name": "get_weather", "arguments": {"city": 1}}')
    choice = chat(gateway, tools=[TOOL], tool_choice="required")["choices"][0]
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": '{"city": 1}'}
    schema = json.loads(triton.asked["guided_decoding_guide"][0])
    assert schema["properties"]["name"] == {"const": "get_weather"}
    assert schema["$defs"] == {"city": {}}  # where its references look for it
    named = {"type": "function", "function": {"name": "nobody"}}
    assert refusal(post(gateway, tools=[TOOL], tool_choice=named))[:2] == (400, "tool_choice")


def test_what_is_no_call_stays_text(triton: FakeTriton, gateway: GatewayHandle) -> None:
    triton.script(answer=" a <tool_call>not json</tool_call> b <tool")
    choice = chat(gateway, tools=[TOOL])["choices"][0]
    assert choice["message"]["content"] == " a <tool_call>not json</tool_call> b <tool"
    assert choice["finish_reason"] == "stop"
