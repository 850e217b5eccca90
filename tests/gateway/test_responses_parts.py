"""Parts of /v1/responses on their own: how long things are remembered, and log probabilities."""

import json
import time
from typing import Any

import pytest

from gateway.api.responses_answer import ResponseTranslator
from gateway.api.responses_store import ResponseStore
from gateway.core.call import Reply
from gateway.core.errors import NotFound, PenstockError


class Sheet:
    """A transport that keeps what was said."""

    started = False
    paused = False

    def __init__(self) -> None:
        self.data = b""

    async def drained(self) -> None:
        raise AssertionError("never behind")

    def reply(self, reply: Reply) -> None:
        self.data = reply.body

    def open_stream(self, first: bytes) -> None:
        self.started = True
        self.data += first

    def send(self, data: bytes) -> None:
        self.data += data

    close_stream = send

    def refuse(self, error: PenstockError, body: bytes) -> None:
        self.data = body

    break_off = send

    def fail(self, error: PenstockError) -> None:
        raise AssertionError("the translator speaks")

    def events(self) -> list[dict[str, Any]]:
        lines = self.data.decode().split("\n")
        return [json.loads(line[6:]) for line in lines if line.startswith("data: ")]


def test_log_probabilities_are_told_with_their_text_and_kept_in_the_object() -> None:
    sheet = Sheet()
    translator = ResponseTranslator(sheet, {"output": []}, logprobs=True, on_done=lambda _: None)
    known = {"token": "Hi", "logprob": -0.5, "bytes": [72, 105], "top_logprobs": [{"token": "Ho", "logprob": -1.0}]}
    chunk = {"choices": [{"index": 0, "delta": {"content": "Hi"}, "logprobs": {"content": [known]}}]}
    data = b"data: %b\n\n" % json.dumps(chunk).encode()
    translator.open_stream(data)
    translator.close_stream(b"data: [DONE]\n\n")
    told = {**known, "top_logprobs": [{"token": "Ho", "logprob": -1.0, "bytes": []}]}
    events = {event["type"]: event for event in sheet.events()}
    assert events["response.output_text.delta"]["logprobs"] == [told]
    assert events["response.output_text.done"]["logprobs"] == [told]
    assert events["response.completed"]["response"]["output"][0]["content"][0]["logprobs"] == [told]


def test_calls_whose_fragments_interleave_keep_their_places() -> None:
    sheet = Sheet()
    translator = ResponseTranslator(sheet, {"output": []}, logprobs=False, on_done=lambda _: None)
    for index, fields in enumerate(({"index": 0, "id": "a"}, {"index": 1, "id": "b"}, {"index": 0}, {"index": 1})):
        call = {**fields, "function": {"name": "f", "arguments": str(index)}}
        data = b"data: %b\n\n" % json.dumps({"choices": [{"delta": {"tool_calls": [call]}}]}).encode()
        translator.send(data) if index else translator.open_stream(data)
    translator.close_stream()
    events = sheet.events()
    output = events[-1]["response"]["output"]
    assert [(item["call_id"], item["arguments"]) for item in output] == [("a", "02"), ("b", "13")]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


def test_the_store_forgets_the_oldest_beyond_its_count() -> None:
    store = ResponseStore(limit_count=2)
    for name in "abc":
        store.put(None, name, b"{}", [], [])
    with pytest.raises(NotFound):
        store.get(None, "a")
    assert store.get(None, "c").body == b"{}"
    assert len(store) == 2


def test_the_store_forgets_the_oldest_beyond_its_bytes() -> None:
    store = ResponseStore(limit_bytes=100)
    store.put(None, "a", b"x" * 40, [b"y" * 20], [])
    store.put(None, "b", b"x" * 40, [], ["y" * 8])
    assert len(store) == 1
    assert store.size_bytes == 50
    store.put(None, "too large", b"x" * 101, [], [])
    assert len(store) == 0
    assert store.size_bytes == 0


def test_the_store_forgets_what_is_old() -> None:
    store = ResponseStore(keep_s=0.01)
    store.put(None, "a", b"{}", [], [])
    time.sleep(0.02)
    with pytest.raises(NotFound):
        store.get(None, "a")
    assert store.size_bytes == 0


def test_a_store_of_nothing_keeps_nothing() -> None:
    store = ResponseStore(limit_count=0)
    store.put(None, "a", b"{}", [], [])
    with pytest.raises(NotFound):
        store.get(None, "a")
