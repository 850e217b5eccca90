"""What serving tells a client, taken apart: the pieces a translating door hears, from streams and whole answers."""

import json
from typing import Any

import pytest

from gateway.core.call import Reply
from gateway.core.errors import EngineRefused, UpstreamError
from gateway.serving.events import FullUsage, Listener, Logprobs, ToolCall


class Heard(Listener):
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.pieces: list[tuple[Any, ...]] = []
        self.flushes: list[tuple[bool, bool, int]] = []

    def on_open(self) -> None:
        self.pieces.append(("open",))

    def on_reasoning(self, index: int, text: str) -> None:
        self.pieces.append(("reasoning", index, text))

    def on_text(self, index: int, text: str, logprobs: Logprobs | None) -> None:
        tokens = None if logprobs is None else [one.token for one in logprobs.content or ()] or logprobs.tokens
        self.pieces.append(("text", index, text) if tokens is None else ("text", index, text, tokens))

    def on_refusal(self, index: int, text: str) -> None:
        self.pieces.append(("refusal", index, text))

    def on_tool_call(self, index: int, part: ToolCall) -> None:
        function = part.function
        self.pieces.append(
            ("tool", index, part.index, part.id, function and function.name, function and function.arguments)
        )

    def on_stop(self, index: int, text: str) -> None:
        self.pieces.append(("stop", index, text))

    def on_finish(self, index: int, reason: str) -> None:
        self.pieces.append(("finish", index, reason))

    def on_usage(self, usage: FullUsage) -> None:
        self.pieces.append(("usage", usage.prompt_tokens, usage.output, usage.cached, usage.thought))

    def on_end(self) -> None:
        self.pieces.append(("end",))

    def flush(self, *, is_first: bool, is_last: bool) -> None:
        self.flushes.append((is_first, is_last, len(self.pieces)))


def event(*, newline: str = "\n", **fields: Any) -> bytes:
    return f"data: {json.dumps(fields)}{newline}{newline}".encode()


def delta(index: int = 0, finish: str | None = None, **said: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": said, "finish_reason": finish}]}


def test_a_chat_stream_is_heard_piece_by_piece() -> None:
    heard = Heard()
    heard.open_stream(event(**delta(role="assistant", content="")))
    heard.send(event(**delta(reasoning="Hm")) + event(**delta(reasoning_content=", well")))
    heard.send(event(**delta(content="Yes")))
    heard.send(event(**delta(refusal="no")))
    heard.send(event(**delta(tool_calls=[{"index": 1, "id": "c1", "function": {"name": "f", "arguments": ""}}])))
    heard.send(event(**delta(tool_calls=[{"index": 1, "function": {"arguments": "{}"}}])))
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 2}}
    heard.send(event(**delta(finish="tool_calls")) + event(choices=[], usage=usage))
    heard.close_stream(b"data: [DONE]\n\n")
    assert heard.pieces == [
        ("open",),
        ("reasoning", 0, "Hm"),
        ("reasoning", 0, ", well"),
        ("text", 0, "Yes"),
        ("refusal", 0, "no"),
        ("tool", 0, 1, "c1", "f", ""),
        ("tool", 0, 1, None, None, "{}"),
        ("finish", 0, "tool_calls"),
        ("usage", 3, 5, 0, 2),
        ("end",),
    ]
    assert heard.flushes[0] == (True, False, 1)
    assert heard.flushes[-1] == (False, True, 10)


def test_the_stop_string_is_heard_before_the_finish_and_an_empty_reason_is_none() -> None:
    heard = Heard()
    for finish, extra in (("", {}), ("stop", {"stop_reason": "END"}), ("stop", {"matched_stop": 7})):
        heard.send(event(choices=[{"index": 0, "delta": {}, "finish_reason": finish, **extra}]))
    assert heard.pieces == [("stop", 0, "END"), ("finish", 0, "stop"), ("finish", 0, "stop")]


def test_a_whole_answer_is_heard_like_a_stream() -> None:
    heard = Heard()
    calls = [{"id": name, "type": "function", "function": {"name": name, "arguments": "{}"}} for name in "ab"]
    message = {"role": "assistant", "content": "Yes", "reasoning": "Hm", "tool_calls": calls}
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 1}}
    body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}
    heard.reply(Reply(json.dumps(body).encode()))
    assert heard.pieces == [
        ("reasoning", 0, "Hm"),
        ("text", 0, "Yes"),
        ("tool", 0, 0, "a", "a", "{}"),
        ("tool", 0, 1, "b", "b", "{}"),
        ("finish", 0, "stop"),
        ("usage", 3, 5, 1, 0),
        ("end",),
    ]
    assert heard.flushes == [(True, True, 7)]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_comments_and_other_newlines_are_heard_through(newline: str) -> None:
    heard = Heard()
    said = [event(newline=newline, choices=[{"index": i, "text": t}]) for i, t in enumerate(("one", "two"))]
    heard.open_stream(f": keep-alive{newline}{newline}".encode() + b"".join(said))
    assert heard.pieces == [("open",), ("text", 0, "one"), ("text", 1, "two")]


def test_logprobs_come_with_their_text_even_when_it_is_empty() -> None:
    heard = Heard()
    logprobs = {"content": [{"token": "Y", "logprob": -0.1, "bytes": [89], "top_logprobs": []}]}
    for content in ("Y", ""):
        heard.send(event(choices=[{"index": 0, "delta": {"content": content}, "logprobs": logprobs}]))
    heard.send(event(choices=[{"index": 0, "text": "Z", "logprobs": {"tokens": ["Z"], "token_logprobs": [-1.0]}}]))
    assert heard.pieces == [("text", 0, "Y", ["Y"]), ("text", 0, "", ["Y"]), ("text", 0, "Z", ["Z"])]


@pytest.mark.parametrize("data", [b"data: {nonsense\n\n", b'data: {"choices": 3}\n\n', b"data: \xff\n\n"])
def test_an_event_that_is_not_one_ends_the_stream_and_is_not_tried_elsewhere(data: bytes) -> None:
    with pytest.raises(EngineRefused, match="not the JSON it should be") as caught:
        Heard().open_stream(data)
    assert not caught.value.retryable


def test_a_whole_answer_that_is_not_one_may_be_tried_elsewhere() -> None:
    heard = Heard()
    with pytest.raises(UpstreamError) as caught:
        heard.reply(Reply(b'{"choices": [{"message": {"content": 3}}]}'))
    assert caught.value.retryable
    assert heard.pieces == []
