"""The chat template is the training format, and the tokenizer loses nothing."""

import json
from collections.abc import Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from jinja2 import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

from starter_model import batches, chat, corpus, prose, tokenizer
from starter_model.example import ask, dice

CHECKPOINT = Path(__file__).parents[2] / "model_repo" / "checkpoints" / "starter"


@cache
def template() -> Template:
    """As transformers and vLLM compile it."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(chat.CHAT_TEMPLATE)


def render(messages: Sequence[Any], tools: Sequence[Any] | None = None) -> str:
    return str(template().render(messages=messages, tools=tools, add_generation_prompt=True))


def test_the_template_renders_exactly_what_training_saw() -> None:
    for example in islice(corpus.training_stream(dice("template"), corpus.weights({})), 3000):
        assert render(list(example.messages), list(example.tools) or None) == chat.render_prompt(
            example.messages, example.tools
        )


def test_an_answered_turn_in_the_history_looks_like_the_answer_that_was_trained() -> None:
    said = {"role": "assistant", "content": "Paris"}
    history = render(
        [{"role": "user", "content": "What is the capital of France?"}, said, {"role": "user", "content": "Thanks"}]
    )
    assert history.startswith(
        "<|user|> What is the capital of France?<|im_end|><|assistant|> Paris<|im_end|><|user|> Thanks"
    )


def test_a_call_in_the_history_is_the_same_from_a_string_and_from_an_object() -> None:
    def history(arguments: object) -> str:
        call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": arguments}}
        turns = [
            {"role": "user", "content": "Add 1 and 2."},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ]
        return render(turns)

    assert history('{"a": 1, "b": 2}') == history({"a": 1, "b": 2})
    assert '<|assistant|><tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call><|im_end|>' in history(
        {"a": 1, "b": 2}
    )


def test_tools_without_parameters_types_or_descriptions_are_listed_all_the_same() -> None:
    odd = {"type": "object", "properties": {"a": {"type": ["string", "null"]}, "b": {"enum": [1]}}}
    tools = [{"function": {"name": "now"}}, {"name": "flat", "description": "Bare", "parameters": odd}]
    text = render([{"role": "developer", "content": "Be kind."}, {"role": "user", "content": "Hi"}], tools)
    assert text.startswith("<|system|> Be kind.\nTools:\nnow()\nflat(a: any, b: any): Bare<|im_end|><|user|> Hi")


def test_the_prompt_ends_at_the_assistant_with_no_space_after_it() -> None:
    assert render([{"role": "user", "content": " Hi \n"}]) == "<|user|> Hi<|im_end|><|assistant|>"


@pytest.fixture(scope="module")
def tok() -> Any:
    return tokenizer.load_tokenizer(CHECKPOINT)


def test_any_unicode_comes_back_as_it_went_in(tok: Any) -> None:
    rng = dice("unicode")
    for _ in range(300):
        points = [
            rng.choice((rng.randrange(0x20, 0x7F), rng.randrange(0x80, 0xD800), rng.randrange(0xE000, 0x110000)))
            for _ in range(30)
        ]
        text = "".join(map(chr, points))
        assert tok.decode(tok.encode(text).ids) == text
    combining = "e\u0301 \ufb01 \u212b\r\n\t  \u200d  x"
    assert tok.decode(tok.encode(combining).ids) == combining


def test_every_word_of_a_list_is_one_token_with_its_space_and_digits_stand_alone(tok: Any) -> None:
    from starter_model import words

    for word in (*words.LIST_WORDS, *words.PEOPLE):
        assert len(tok.encode(f" {word}").ids) == 1, word
    assert tok.encode("1234").tokens == ["1", "2", "3", "4"]


def test_role_marks_and_tool_marks_are_single_tokens_and_only_tool_marks_survive_decoding(tok: Any) -> None:
    for token in (*chat.SPECIAL_TOKENS, *chat.TOOL_TOKENS):
        assert len(tok.encode(token).ids) == 1
    text = f"<|user|>a{chat.TOOL_TOKENS[0]}b"
    assert tok.decode(tok.encode(text).ids) == f"a{chat.TOOL_TOKENS[0]}b"


def test_twins_are_one_word_with_and_without_its_space(tok: Any) -> None:
    pairs = tokenizer.twins(tok)
    assert len(pairs) > 100
    assert all(tok.decode([spaced]) == " " + tok.decode([bare]) for bare, spaced in pairs)
    assert tuple(tok.token_to_id(t) for t in ("B", "ĠB")) in pairs


def test_only_the_answer_and_its_end_weigh_fully(tok: Any) -> None:
    ids, weights = batches.encode_example(tok, ask("t", "What is 2 + 2?", "4"))
    answer = [i for i, weight in zip(ids, weights, strict=True) if weight == batches.ANSWER_WEIGHT]
    assert tok.decode(answer, skip_special_tokens=False) == " 4<|im_end|>"
    assert set(weights) == {batches.ANSWER_WEIGHT, batches.PROMPT_WEIGHT}


def test_a_batch_depends_on_its_step_alone(tok: Any) -> None:
    mix = corpus.weights({})
    pieces = [f"Piece {i} of the documentation is this one." for i in range(100)]
    one, other = batches.Batches(tok, 3, pieces), batches.Batches(tok, 3, pieces)
    one.batch("s", 0, mix, 4, 128)
    ids, weights, documents = one.batch("s", 1, mix, 4, 128)
    again, again_weights, _ = other.batch("s", 1, mix, 4, 128)
    assert ids.shape == weights.shape == documents.shape == (4, 129)
    assert (documents[:, 0] == 0).all()
    assert set((documents[:, 1:] - documents[:, :-1]).flatten()) == {0, 1}
    assert (ids == again).all()
    assert (weights == again_weights).all()
    assert (ids != one.batch("s", 2, mix, 4, 128)[0]).any()


def test_prose_is_split_without_overlap_and_one_piece_in_sixteen_is_held_out() -> None:
    training, held_out = prose.split()
    assert not set(training) & set(held_out)
    assert 0.04 < len(held_out) / (len(training) + len(held_out)) < 0.09
    assert sum(map(len, training)) > 1_000_000
