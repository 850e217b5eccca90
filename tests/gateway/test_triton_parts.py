"""The pure parts of the Triton backend: however an answer is cut into pieces, it comes out the same."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from gateway.backends.triton.answer import Answer, Step
from gateway.backends.triton.asked import Ending
from gateway.backends.triton.checkpoint import Checkpoint, read_checkpoint
from gateway.backends.triton.contracts.base import word_list
from gateway.backends.triton.template import ChatTemplate, until_final_message
from gateway.backends.triton.tensors import CODES, Inputs, ModelInfo, Spec, Tensor, from_raw, to_raw
from gateway.backends.triton.tool_calls import ToolCalls
from gateway.core.errors import InvalidRequest, UpstreamError

STARTER = Path(__file__).parents[2] / "model_repo/checkpoints/starter"
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "} \\" </tool_call> {", "b": [{}, "\\\\"]}}\n</tool_call>'


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return read_checkpoint(STARTER)


def answer(checkpoint: Checkpoint, steps: list[Step], **ending: Any) -> tuple[str, str | None, int]:
    """Text, finish reason and count of an answer that comes in `steps`."""
    one = Answer(Ending(**{"max_tokens": None} | ending), checkpoint, ending.get("max_tokens", 10_000))
    text = ""
    for step in steps:
        text += one.take(step)
        if one.finish is not None:
            break
    asyncio.run(one.recount())
    if one.finish is None:
        text += one.end()
    return text, one.finish, one.count


def cut(whole: Any, random_: random.Random) -> list[Any]:
    """`whole` in pieces of random sizes, empty ones among them."""
    pieces, at = [], 0
    while at < len(whole):
        size = random_.choice((0, 1, 1, 2, 5))
        pieces.append(whole[at : at + size])
        at += size
    return pieces


def test_pieces_of_every_size_join_to_the_same_text(checkpoint: Checkpoint) -> None:
    random_ = random.Random(1)
    text = " naïve 日本語 🙂🙃 end\n\nstop"
    ids = checkpoint.tokens.encode(text)
    for stops in ((), ("op",), ("本語 🙂",), ("d\n\nst", "never"), ("nowhere",)):
        expected = answer(checkpoint, [Step(ids)], strings=stops)
        shown = min((text.find(stop) for stop in stops if stop in text), default=len(text))
        assert expected[0] == text[:shown]
        for _ in range(30):
            assert answer(checkpoint, [Step(piece) for piece in cut(ids, random_)], strings=stops) == expected
            texts = [Step(text=piece) for piece in cut(text, random_)]
            assert answer(checkpoint, texts, strings=stops)[:2] == expected[:2]


def test_a_stop_before_the_least_number_of_tokens_is_text(checkpoint: Checkpoint) -> None:
    ids = checkpoint.tokens.encode(" one two one two")
    assert answer(checkpoint, [Step(ids)], strings=("two",), min_tokens=len(ids) - 1)[0] == " one two one "
    assert answer(checkpoint, [Step([400, 2039, 401])], min_tokens=2)[2] == 4  # an early end token does not end it


def test_a_tool_call_is_found_however_it_is_cut() -> None:
    random_ = random.Random(2)
    text = f" Let me see. {CALL}\n{CALL} and {CALL[:40]}"
    for _ in range(200):
        parser = ToolCalls()
        pieces = [piece for part in cut(text, random_) for piece in parser.feed(part)] + parser.finish()
        assert "".join(piece.value for piece in pieces if piece.kind == "text") == " Let me see. and"
        assert [piece.value for piece in pieces if piece.kind == "call"] == ["f", "f", "f"]
        arguments = "".join(piece.value for piece in pieces if piece.kind == "arguments")
        assert arguments.startswith('{"a": "} \\" </tool_call> {", "b": [{}, "\\\\"]}' * 2)


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', ["f"]),
        ('<tool_call>{"name":"f","arguments":{}}</tool_call>', ["f"]),
        ('<tool_call>{"name": "f"}</tool_call>', ["f"]),
        ("<tool_call>f(1)</tool_call>", []),
        ("<tool_call>", []),
    ],
)
def test_calls_in_other_words(text: str, calls: list[str]) -> None:
    parser = ToolCalls()
    pieces = parser.feed(text) + parser.finish()
    assert [piece.value for piece in pieces if piece.kind == "call"] == calls


@pytest.mark.parametrize("datatype", sorted(CODES))
def test_tensors_go_over_the_wire_and_back(datatype: str) -> None:
    values = [True, False] if datatype == "BOOL" else [0, 1, 100]
    raw = to_raw(Tensor("x", datatype, (len(values),), values))
    assert list(from_raw(datatype, raw)) == values
    if len(raw) > len(values):
        with pytest.raises(UpstreamError):
            from_raw(datatype, raw[:-1])


def test_strings_go_over_the_wire_and_back() -> None:
    values = ["naïve 日本語".encode(), b"", b"x"]
    raw = to_raw(Tensor("x", "BYTES", (3,), values))
    assert from_raw("BYTES", raw) == values
    for broken in (raw[:-1], raw[:2], raw + b"\x09\x00\x00\x00a"):
        with pytest.raises(UpstreamError):
            from_raw("BYTES", broken)


def test_shapes_are_filled_up_to_the_metadatas_rank() -> None:
    inputs = Inputs(ModelInfo("m", {"a": Spec("INT32", 1), "b": Spec("INT32", 2), "c": Spec("INT32", 3)}, {}))
    inputs.put("a", 1)
    inputs.put("b", 1, 2)
    inputs.put("c", 1, 2, 3, 4, width=2)
    inputs.put_known("d", 1)
    assert [tensor.shape for tensor in inputs.tensors] == [(1,), (1, 2), (1, 2, 2)]
    with pytest.raises(UpstreamError, match="'d'"):
        inputs.put("d", 1)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([[1, 2], [3]], [1, 2, 3, 2, 3, -1]),
        ([[7]], [7, 1]),
        ([[1, 2, 3]], [1, 2, 3, 3, -1, -1]),
    ],
)
def test_word_lists_as_tensorrt_llm_wants_them(words: list[list[int]], expected: list[int]) -> None:
    assert word_list(words) == (expected, len(expected) // 2)


def test_templates_are_sandboxed_and_cut_behind_the_last_message() -> None:
    with pytest.raises(InvalidRequest, match="chat template"):
        ChatTemplate("{{ ''.__class__.__mro__ }}", {}).render([{"role": "user", "content": "x"}])
    with pytest.raises(InvalidRequest, match="no tools here"):
        ChatTemplate("{{ raise_exception('no tools here') }}", {}).render([])
    assert until_final_message("<u>a</u><a>so far</a>", {"content": "so far"}) == "<u>a</u><a>so far"
    with pytest.raises(InvalidRequest):
        until_final_message("<u>a</u>", {"content": "elsewhere"})
