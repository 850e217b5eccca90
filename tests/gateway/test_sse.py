"""The stream reader, as properties: however a stream is cut into reads, the same bytes and the same counts.

The reference is slow and obvious: the whole stream at once, event by event, with Python's own JSON.
"""

import json
import random
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from gateway.backends.errors import engine_error, stream_error
from gateway.backends.sse import StreamReader
from gateway.core.errors import PenstockError

WORDS = [
    "a", " the", "\n\n", "\r\n\r\n", "data: x\n\n", '"model":"served"', '","model":"served', '"content":"no"', "[DONE]",
    "é", "世界", "😀", "\\", '"', "", "x" * 300, "\x00", "\u2028",
]  # fmt: skip
JUNK = [
    b"data: ", b"\n", b"\n\n", b"\r\n\r\n", b"{", b"}", b'"', b"\xff", b"[DONE", b'{"choices":[{}]}', b"[" * 2000,
]  # fmt: skip
SEEDS = range(40)
NEWLINES = ["\n", "\r\n", "\r"]


class Seen(NamedTuple):
    data: bytes
    contents: int
    usages: list[int]
    reasons: list[str]


def events(rng: random.Random, *, model: str = "served") -> Iterator[str]:
    """The `data` of an answer's events, in the shapes engines send: roles, words, tools, reasoning, finish, usage."""
    base: dict[str, Any] = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": model}
    compact = rng.random() < 0.7
    ascii_only = rng.random() < 0.5

    def text(**fields: Any) -> str:
        separators = (",", ":") if compact else (", ", ": ")
        return json.dumps(base | fields, separators=separators, ensure_ascii=ascii_only)

    def choice(delta: dict[str, Any], reason: str | None = None) -> list[dict[str, Any]]:
        return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]

    yield text(choices=choice({"role": "assistant", "content": ""}))
    for _ in range(rng.randrange(12)):
        word = rng.choice(WORDS)
        kind = rng.randrange(8)
        if kind == 0:
            yield text(choices=choice({"reasoning": word}))
        elif kind == 1:
            yield text(choices=choice({"tool_calls": [{"index": 0, "function": {"arguments": word}}]}))
        elif kind == 2:
            yield text(choices=choice({"content": word}), usage={"prompt_tokens": 3, "completion_tokens": 2})
        elif kind == 3:
            yield text(choices=[{"index": 0, "text": word, "finish_reason": None}])
        else:
            yield text(choices=choice({"content": word}))
    yield text(choices=choice({}, "stop"))
    if rng.random() < 0.7:
        yield text(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 7})


def stream(rng: random.Random) -> bytes:
    """A body with one of the three line ends, comments and other fields now and then."""
    newline = rng.choice(NEWLINES)
    space = rng.choice([" ", ""])
    parts = []
    for data in events(rng):
        if rng.random() < 0.1:
            parts.append(f": ping{newline}{newline}")
        before = f"event: message{newline}id: 5{newline}" if rng.random() < 0.1 else ""
        after = f"{newline}retry: 5" if rng.random() < 0.1 else ""
        parts.append(f"{before}data:{space}{data}{after}{newline}{newline}")
    if rng.random() < 0.9:
        parts.append(f"data:{space}[DONE]{newline}{newline}")
    return "".join(parts).encode()


def cut(rng: random.Random, body: bytes) -> list[bytes]:
    """Reads: one, byte by byte, or anything between."""
    size = rng.choice([1, 3, 20, 200, len(body)])
    reads = []
    while body:
        at = rng.randint(1, size)
        reads.append(body[:at])
        body = body[at:]
    return reads


def read(reads: list[bytes], **options: Any) -> Seen:
    reader = StreamReader(**options)
    data, contents, usages, reasons = b"", 0, [], []
    for number, piece in enumerate(reads):
        chunk = reader.feed(piece, float(number))
        if chunk is None:
            continue
        assert chunk.error is None
        assert chunk.at_s == number
        data += chunk.data
        contents += chunk.contents
        if chunk.usage is not None:
            usages.append(chunk.usage.completion_tokens or 0)
        if chunk.finish_reason is not None:
            reasons.append(chunk.finish_reason)
    assert not reader.has_partial_event
    return Seen(data, contents, usages, reasons)


def reference(body: bytes, *, drop_usage: bool) -> tuple[list[str], int]:
    """The events a client should get, as text without line ends, and how many of them have content."""
    kept, contents = [], 0
    for block in re.split(r"\n\n|\r\n\r\n|\r\r", body.decode())[:-1]:
        lines = re.split(r"\r\n|\n|\r", block)
        data = "".join(line[5:].removeprefix(" ") for line in lines if line.startswith("data:"))
        event = json.loads(data) if data.startswith("{") else {}
        if drop_usage and event.get("usage") and not event["choices"]:
            continue
        contents += any(map(speaks, event.get("choices", [])))
        kept.append("\n".join(lines))
    return kept, contents


def speaks(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta", {})
    tools = [call["function"]["arguments"] for call in delta.get("tool_calls", [])]
    return any([choice.get("text"), delta.get("content"), delta.get("reasoning"), *tools])


def blocks(data: bytes) -> list[str]:
    return ["\n".join(re.split(r"\r\n|\n|\r", b)) for b in re.split(r"\n\n|\r\n\r\n|\r\r", data.decode())[:-1]]


@pytest.mark.parametrize("seed", SEEDS)
def test_however_a_stream_is_cut_the_client_gets_the_engines_bytes(seed: int) -> None:
    rng = random.Random(seed)
    body = stream(rng)
    seen = read(cut(rng, body), rename=None, drop_usage=False)
    assert seen.data == body
    kept, contents = reference(body, drop_usage=False)
    assert (blocks(seen.data), seen.contents) == (kept, contents)
    assert seen.reasons == ["stop"]


@pytest.mark.parametrize("seed", SEEDS)
def test_only_the_usage_event_is_dropped_and_only_when_not_asked_for(seed: int) -> None:
    rng = random.Random(seed)
    body = stream(rng)
    seen = read(cut(rng, body), rename=None, drop_usage=True)
    kept, contents = reference(body, drop_usage=True)
    assert (blocks(seen.data), seen.contents) == (kept, contents)
    whole = read([body], rename=None, drop_usage=False)
    assert seen.usages[-1:] == whole.usages[-1:]  # dropped, but counted


@pytest.mark.parametrize("seed", SEEDS)
def test_a_rename_changes_the_model_and_not_a_byte_beside(seed: int) -> None:
    """The words hold the old name in every spelling; they are what must not change."""
    rng = random.Random(seed)
    body = stream(rng)
    seen = read(cut(rng, body), rename=("served", "public/name"), drop_usage=False)
    for before, after in zip(blocks(body), blocks(seen.data), strict=True):
        if "{" not in before:
            assert after == before
            continue
        old, new = (json.loads(block[block.index("{") : block.rindex("}") + 1]) for block in (before, after))
        assert new == old | {"model": "public/name"}
        assert len(after) - len(before) == len("public/name") - len("served")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("code", [500, 400, None, "bad_things"])
def test_an_error_ends_what_is_relayed_wherever_it_is_cut(seed: int, code: object) -> None:
    rng = random.Random(seed)
    before = [f"data: {data}\n\n" for data in events(rng)][: rng.randrange(6)]
    error = json.dumps({"error": {"message": "oh no", "type": "X", "code": code}})
    body = "".join([*before, f"data: {error}\n\n", "data: [DONE]\n\n"]).encode()
    reader = StreamReader(rename=None, drop_usage=False)
    relayed, found = b"", None
    for piece in cut(rng, body):
        chunk = reader.feed(piece, 0.0)
        if chunk is not None:
            relayed += chunk.data
            if chunk.error is not None:
                found = chunk.error
                break
    assert relayed == "".join(before).encode()
    assert isinstance(found, PenstockError)
    assert found.message == "oh no"
    assert found.status == (code if isinstance(code, int) else 500)


@pytest.mark.parametrize("seed", SEEDS)
def test_bytes_that_are_no_events_are_relayed_and_never_raise(seed: int) -> None:
    rng = random.Random(seed)
    body = b"".join(rng.choice(JUNK) for _ in range(200)) + b"\n\n"
    for rename in (None, ("a", "b")):
        reader = StreamReader(rename=rename, drop_usage=rename is None)
        chunks = [reader.feed(piece, 0.0) for piece in cut(rng, body)]
        relayed = b"".join(chunk.data for chunk in chunks if chunk is not None)
        assert body.startswith(relayed)
        assert not body[len(relayed) :].strip()  # at most a line end that begins no event


def test_nothing_is_relayed_after_done() -> None:
    for reads in ([b"data: [DONE]\n\ndata: late\n\n"], [b"data: [DONE]\n\nda", b"ta: late\n\n"]):
        reader = StreamReader(rename=None, drop_usage=True)
        first = reader.feed(reads[0], 0.0)
        assert first is not None
        assert (first.data, first.is_last, reader.is_done) == (b"data: [DONE]\n\n", True, True)


def test_an_event_that_never_ends_is_refused() -> None:
    reader = StreamReader(rename=None, drop_usage=True)
    for _ in range(16):
        assert reader.feed(b"x" * (2**20 - 1), 0.0) is None
    with pytest.raises(PenstockError, match="larger than"):
        reader.feed(b"x" * 2**20, 0.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_reasoning_has_one_name_whatever_the_engine_calls_it(seed: int) -> None:
    """The words hold the engine's name for it, as text: they stay."""
    rng = random.Random(seed)
    words = ['"reasoning_content":', "reasoning_content", *WORDS]
    beside = rng.choice([{}, {"reasoning": None}])
    told: list[dict[str, Any]] = [beside | {"reasoning_content": rng.choice(words) or "x"} for _ in range(5)]
    told += [{"content": rng.choice(words), "reasoning_content": None} for _ in range(5)]
    body = "".join(f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta}]})}\n\n" for delta in told).encode()
    seen = read(cut(rng, body), rename=None, drop_usage=False)
    deltas = [json.loads(block[6:])["choices"][0]["delta"] for block in blocks(seen.data)]
    assert [delta["reasoning"] for delta in deltas[:5]] == [delta["reasoning_content"] for delta in told[:5]]
    assert [delta["content"] for delta in deltas[5:]] == [delta["content"] for delta in told[5:]]


@pytest.mark.parametrize("seed", SEEDS)
def test_events_without_a_choice_are_left_out_where_the_engine_has_such(seed: int) -> None:
    rng = random.Random(seed)
    extra = ['data: {"choices":[],"sglext":{}}\n\n', 'event: sglext_ids\ndata: {"choices":[],"usage":null}\n\n']
    said = [f"data: {data}\n\n" for data in events(rng)]
    mixed = [piece for event in said for piece in (*rng.sample(extra, rng.randrange(3)), event)]
    seen = read(cut(rng, "".join(mixed).encode()), rename=None, drop_usage=False, drop_extras=True)
    assert seen.data == "".join(said).encode()
    kept = read(cut(rng, "".join(mixed).encode()), rename=None, drop_usage=False)
    assert kept.data == "".join(mixed).encode()


def test_numbers_that_are_none_in_an_engines_error_are_not_read() -> None:
    assert stream_error('{"error": {"message": "no", "code": "²"}}'.encode()).status == 500
    assert stream_error(b'{"error": {"message": "no", "code": "%b"}}' % (b"4" * 5000)).status == 500
    assert stream_error(b'{"error": {"message": "no", "code": "404"}}').status == 404
    assert engine_error(503, b"busy", b"9" * 5000).retry_after_s == 1
    assert engine_error(503, b"busy", b"7").retry_after_s == 7
