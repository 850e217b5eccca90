"""The engine's rules that need no model: stop strings, characters, tool-call parsing, JSON grammars, field checks."""

import json
import random
from collections.abc import Iterable
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from openvino_engine.errors import ApiError
from openvino_engine.fields import Fields
from openvino_engine.gguf_tokenizer import PRE_TOKENIZERS, TokenizerError
from openvino_engine.json_grammar import compact_grammar
from openvino_engine.messages import read_messages
from openvino_engine.sequence import Sequence, StopRules
from openvino_engine.template import ChatTemplate
from openvino_engine.text import FastTokenizer, tokenizer_from_gguf
from openvino_engine.tool_parser import ToolParser
from openvino_engine.tools import detect_frame

EOS, STOP = 256, 257


class Bytes:
    """A tokenizer whose first 256 ids are the bytes; 256 and 257 are special."""

    strips_first_space = False

    def __init__(self) -> None:
        self.pieces = [*(bytes([i]) for i in range(256)), b"", b""]
        self.names = [*(bytes([i]) for i in range(256)), b"<eos>", b"<stop>"]

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return list(text.encode())


def run(tokens: Iterable[int], **rules: Any) -> tuple[list[str], Sequence, Any]:
    """Feed one token a step; the pieces, the sequence, the last delta."""
    sequence = Sequence(Bytes(), StopRules(eos=frozenset({EOS}), **({"max_tokens": 1000} | rules)))
    deltas = []
    for token in tokens:
        deltas.append(sequence.feed([token], [0.0]))
        if deltas[-1].finish is not None:
            break
    return [delta.text for delta in deltas], sequence, deltas[-1]


@pytest.mark.parametrize(
    ("text", "stops", "kept", "stop_reason"),
    [
        ("hello world", ("wor",), "hello ", "wor"),
        ("aab", ("ab",), "a", "ab"),
        ("abcabd", ("abd",), "abc", "abd"),
        ("one\n\ntwo", ("\n\n",), "one", "\n\n"),
        ("first second", ("second", "first"), "", "first"),
        ("both ab", ("b", "ab"), "", "b"),
        ("好的再见", ("再",), "好的", "再"),
        ("no stop here", ("xyz",), "no stop here", None),
        ("ends like a sto", ("stop",), "ends like a sto", None),
    ],
)
def test_text_ends_right_before_the_stop_string(text: str, stops: tuple[str, ...], kept: str, stop_reason: str) -> None:
    pieces, _, last = run([*text.encode(), EOS], strings=stops)
    assert "".join(pieces) == kept
    assert (last.finish, last.stop_reason) == ("stop", stop_reason)


def test_no_piece_ever_shows_the_beginning_of_a_stop_string() -> None:
    pieces, _, _ = run(b"xENDy END", strings=("END",))
    assert pieces[:4] == ["x", "", "", ""]
    assert "".join(pieces) == "x"


def test_a_held_back_beginning_is_released_when_it_turns_out_harmless() -> None:
    pieces, _, _ = run([*b"sto-", EOS], strings=("stop",))
    assert pieces == ["", "", "", "sto-", ""]


def test_the_stop_string_is_kept_when_asked_for() -> None:
    pieces, _, _ = run(b"hello.", strings=("lo",), include_string=True)
    assert "".join(pieces) == "hello"


def test_tokens_behind_the_end_are_neither_shown_nor_counted() -> None:
    sequence = Sequence(Bytes(), StopRules(eos=frozenset({EOS}), max_tokens=100))
    delta = sequence.feed([*b"ab", EOS, *b"cd"], [0.0] * 5)
    assert (delta.text, delta.finish, sequence.token_count, len(delta.logprobs)) == ("ab", "stop", 3, 3)


def test_a_stop_token_is_named_and_an_end_token_is_not() -> None:
    assert run([*b"a", STOP], ids=frozenset({STOP}))[2].stop_reason == STOP
    assert run([*b"a", EOS])[2].stop_reason is None


def test_ignore_eos_keeps_the_clients_stop_tokens() -> None:
    pieces, sequence, last = run([EOS, *b"a", STOP, *b"b"], ids=frozenset({STOP}), ignore_eos=True)
    assert ("".join(pieces), last.finish, sequence.token_count) == ("a", "stop", 3)


def test_a_foreign_end_token_ends_text_but_not_a_call() -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {"a": "'
    text = [*b"hi", STOP]
    assert run(text, outside_calls=frozenset({STOP}))[2].finish == "stop"
    pieces, _, last = run([*call.encode(), STOP, *b'x"}}\n</tool_call>', STOP], outside_calls=frozenset({STOP}))
    assert "".join(pieces) == call + 'x"}}\n</tool_call>'
    assert last.finish == "stop"


def test_min_tokens_holds_off_stop_strings_and_stop_tokens() -> None:
    pieces, sequence, _ = run([*b"xx", STOP, *b"xx"], strings=("x",), ids=frozenset({STOP}), min_tokens=3)
    assert ("".join(pieces), sequence.token_count) == ("xx", 4)


def test_the_length_limit_says_length() -> None:
    pieces, sequence, last = run(b"abcdef", max_tokens=3)
    assert ("".join(pieces), last.finish, sequence.token_count) == ("abc", "length", 3)


def test_pieces_never_split_a_character_and_join_to_the_whole() -> None:
    text = "aé你👩‍👩‍👧‍👦 Ω\x00"
    pieces, _, _ = run([*text.encode(), EOS])
    assert "".join(pieces) == text
    assert "�" not in "".join(pieces)


def test_an_unfinished_character_at_the_end_becomes_one_replacement_mark() -> None:
    assert "".join(run([*"a你".encode()[:-1], EOS])[0]) == "a�"


def test_sentencepiece_tokens_become_spaces_and_bytes() -> None:
    vocab = {"▁Hello": 0, "▁world": 1, "<0xE4>": 2, "<0xBD>": 3, "<0xA0>": 4, "<unk>": 5}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast = FastTokenizer(tokenizer, 8)
    sequence = Sequence(fast, StopRules(eos=frozenset({5})))
    assert sequence.feed([0, 1, 2, 3, 4, 5], [0.0] * 6).text == "Hello world你"


@pytest.mark.parametrize("pre", ["gpt-2", "qwen2", "llama-bpe"])
def test_a_tokenizer_rebuilt_from_gguf_metadata_encodes_like_the_original(pre: str) -> None:
    original = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PRE_TOKENIZERS[pre]), behavior="isolated")
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    original.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_of])
    original.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    text = "It's 12345 o'clock, DON'T panic: das Öl 你好世界\n\n  def f(x):\n\treturn x**2   "
    original.train_from_iterator([text] * 20, trainer)
    original.add_special_tokens(["<|end|>"])
    content = json.loads(original.to_str())
    tokens = [token for token, _ in sorted(original.get_vocab().items(), key=lambda pair: pair[1])]
    merges = [" ".join(pair) for pair in content["model"]["merges"]]
    rebuilt = tokenizer_from_gguf(tokens, merges, [1] * (len(tokens) - 1) + [3], pre)
    for sample in (text, f"a<|end|>b {text}"):
        assert rebuilt.encode(sample).ids == original.encode(sample).ids
        assert FastTokenizer(rebuilt, 500).pieces == FastTokenizer(original, 500).pieces


def test_an_unknown_pre_tokenizer_is_refused_with_the_way_out() -> None:
    with pytest.raises(TokenizerError, match=r"put the model's tokenizer\.json beside"):
        tokenizer_from_gguf(["a"], [], [1], "deepseek-llm")


CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "}\\n</tool_call> \\" {"}}\n</tool_call>'


def parse(text: str, sizes: Iterable[int]) -> tuple[str, list[list[str]]]:
    """Text and calls, fed in pieces of the given sizes."""
    parser, at, pieces = ToolParser(), 0, []
    for size in sizes:
        pieces += parser.feed(text[at : at + size])
        at += size
    pieces += [*parser.feed(text[at:]), *parser.finish()]
    calls: list[list[str]] = []
    for piece in pieces:
        if piece.kind == "call":
            calls.append([piece.value, ""])
        elif piece.kind == "arguments":
            calls[-1][1] += piece.value
    return "".join(piece.value for piece in pieces if piece.kind == "text"), calls


@pytest.mark.parametrize("seed", range(20))
def test_calls_and_text_are_found_however_the_stream_is_cut(seed: int) -> None:
    text = f"Let me see. < <tool\n{CALL}\n{CALL.replace('add', 'sub.x')}"
    rng = random.Random(seed)
    said, calls = parse(text, [rng.randint(1, 9) for _ in range(40)])
    assert said == "Let me see. < <tool"
    assert [name for name, _ in calls] == ["add", "sub.x"]
    assert [json.loads(arguments) for _, arguments in calls] == [{"a": 1, "b": '}\n</tool_call> " {'}] * 2


def test_text_without_calls_is_unchanged() -> None:
    assert parse("  plain <text> \n", [1] * 20) == ("  plain <text> \n", [])


def test_a_call_cut_by_the_length_limit_keeps_what_came() -> None:
    assert parse(CALL[:50], [7, 7]) == ("", [["add", '{"a": 1, ']])


@pytest.mark.parametrize(("gap", "between"), [("\n", "\n"), ("", "")])
def test_the_frame_of_tool_calls_is_read_off_the_template(gap: str, between: str) -> None:
    source = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ '"
        + between.replace("\n", "\\n")
        + "' if not loop.first }}"
        "{{ '<tool_call>" + gap.replace("\n", "\\n") + '{"name": "\' + c.function.name + \'", "arguments": \' }}'
        "{{ c.function.arguments | tojson }}{{ '}" + gap.replace("\n", "\\n") + "</tool_call>' }}"
        "{% endfor %}{% endfor %}"
    )
    frame = detect_frame(ChatTemplate(source, {}))
    assert (frame.after_open, frame.before_close, frame.between) == (gap, gap, between)


def test_templates_run_in_a_sandbox() -> None:
    with pytest.raises(ApiError, match="refuses these messages"):
        ChatTemplate("{{ messages.__class__.__mro__ }}", {}).render([], None, {})


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "a+"},
        {"type": "bogus"},
        {"type": "integer", "minimum": 5, "maximum": 3},
        {"type": "object", "properties": {"a": {"type": "number", "minimum": 1}}},
        {"type": "object", "properties": {}, "required": ["a"]},
        {"$ref": "#/nowhere"},
        {"$ref": "#"},
        {"allOf": [{"type": "string"}]},
        {"type": "array", "items": [{"type": "string"}]},
        {"enum": []},
        5,
    ],
)
def test_schemas_beyond_the_compact_grammar_are_left_to_the_library(schema: Any) -> None:
    assert compact_grammar(json.dumps(schema)) is None


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ([], None, "invalid_json"),
        ({"x": 1}, "x", "unknown_parameter"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_parameter"),
        ({"user": 5}, "user", "invalid_type"),
    ],
)
def test_bodies_with_anything_unknown_are_refused_by_name(body: Any, param: str, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        Fields(body, frozenset({"n"}))
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)


def test_fields_that_ask_for_nothing_are_accepted() -> None:
    Fields(
        {"logit_bias": {}, "best_of": 1, "store": False, "user": "me", "functions": None, "x": None} | {},
        frozenset({"x"}),
    )


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        ("hi", "messages"),
        ([5], "messages[0]"),
        ([{"role": "alien", "content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "messages[0].content[0].type",
        ),
        ([{"role": "user", "content": "x", "mood": 1}], "messages[0].mood"),
        ([{"role": "user", "content": "x", "tool_calls": []}], "messages[0].tool_calls"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
            "messages[0].tool_calls[0].function.arguments",
        ),
    ],
)
def test_broken_messages_are_refused_by_their_place(messages: Any, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_messages(messages)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_message_parts_are_joined_and_arguments_become_objects() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    user, assistant = read_messages(
        [{"role": "user", "content": parts}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    )
    assert user["content"] == "a\nb"
    assert assistant["content"] == ""
    assert assistant["tool_calls"][0]["function"]["arguments"] == {"a": 1}
