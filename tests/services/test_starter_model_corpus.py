"""The corpus: the same everywhere, answers that an independent solver agrees with, nothing held out in training."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from itertools import islice
from pathlib import Path

import pytest

from starter_model import corpus, words
from starter_model.example import Example, dice

SERVICES = Path(__file__).parents[2] / "services"
SAMPLES = 150


def stream(seed: int, count: int) -> list[Example]:
    return list(islice(corpus.training_stream(dice("test", seed), corpus.weights({})), count))


def samples(family: str, count: int = SAMPLES) -> list[Example]:
    rng = dice("samples", family)
    return [corpus.FAMILIES[family][0](rng) for _ in range(count)]


def asked(example: Example) -> str:
    return str(example.messages[-1]["content"])


def digest(examples: list[Example]) -> str:
    return sha256("\n".join(map(repr, examples)).encode()).hexdigest()


def test_another_process_with_other_string_hashes_makes_the_same_corpus() -> None:
    code = (
        "from itertools import islice; from hashlib import sha256\n"
        "from starter_model import corpus; from starter_model.example import dice\n"
        "made = islice(corpus.training_stream(dice('test', 4), corpus.weights({})), 500)\n"
        "print(sha256('\\n'.join(map(repr, made)).encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": str(SERVICES)}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == digest(stream(4, 500))
    assert digest(stream(5, 500)) != digest(stream(4, 500))


def test_held_out_problems_never_reach_training_in_any_phrasing() -> None:
    held_out = {(family, e.key) for family in corpus.FAMILIES for e in corpus.evaluation_set(family, 1, 60)}
    trained = {(example.family, example.key) for example in stream(1, 20_000)}
    assert len(held_out) > 1000
    assert not held_out & trained


def test_about_one_problem_in_sixteen_is_held_out() -> None:
    sums = {e.key: e.held_out for e in samples("add", 4000)}
    assert 0.04 < sum(sums.values()) / len(sums) < 0.09


def test_the_two_left_out_families_are_never_trained_but_can_be_measured() -> None:
    assert not {example.family for example in stream(2, 20_000)} & set(corpus.LEFT_OUT)
    assert all(len(corpus.evaluation_set(family, 1, 50)) == 50 for family in corpus.LEFT_OUT)


def test_evaluation_sets_hold_distinct_problems_and_do_not_depend_on_each_other() -> None:
    for family in corpus.FAMILIES:
        examples = corpus.evaluation_set(family, 1, 40)
        assert examples, family
        assert len({(e.key, asked(e)) for e in examples}) == len(examples)
        assert examples[:5] == corpus.evaluation_set(family, 1, 40)[:5]


def test_a_mix_refuses_a_family_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="adding"):
        corpus.weights({"adding": 2.0})


def numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


@pytest.mark.parametrize(
    ("family", "solve"), [("add", lambda a, b: a + b), ("sub", lambda a, b: a - b), ("mul", lambda a, b: a * b)]
)
def test_arithmetic_is_right(family: str, solve) -> None:  # type: ignore[no-untyped-def]
    for example in samples(family):
        assert int(example.answer) == solve(*numbers(asked(example))), asked(example)


def test_comparisons_and_counting_are_right() -> None:
    for example in samples("compare"):
        assert int(example.answer) == (max if "larger" in asked(example) else min)(numbers(asked(example)))
    for example in samples("count_up"):
        low, high = numbers(asked(example))
        assert numbers(example.answer) == list(range(low, high + 1))


def listed(prompt: str) -> list[str]:
    """The words of the list, found by the dictionary alone."""
    return [word for word in re.findall(r"\b[a-z]+", prompt) if word in words.DICTIONARY]


LIST_SOLVERS: dict[str, Callable[[list[str]], str]] = {
    "first": lambda w: w[0],
    "last": lambda w: w[-1],
    "reverse": lambda w: ", ".join(reversed(w)),
    "sort": lambda w: ", ".join(sorted(w)),
    "count": lambda w: str(len(w)),
    "upper": lambda w: ", ".join(word.upper() for word in w),
    "copy": lambda w: ", ".join(w),
    "double": lambda w: ", ".join(w + w),
    "second": lambda w: w[1],
}


@pytest.mark.parametrize("family", LIST_SOLVERS)
def test_list_answers_follow_from_the_list(family: str) -> None:
    make = corpus.FAMILIES[family][0] if family in corpus.FAMILIES else corpus.LEFT_OUT[family]
    rng = dice("lists", family)
    for example in (make(rng) for _ in range(SAMPLES)):
        assert example.answer == LIST_SOLVERS[family](listed(asked(example))), asked(example)


def test_yes_and_no_are_right() -> None:
    for example in samples("yes_no"):
        prompt = asked(example)
        if "list" in prompt:
            wanted, *rest = listed(prompt)
            truth = wanted in rest
        else:
            a, b = numbers(prompt)
            truth = a > b if "larger" in prompt else a < b
        assert example.answer == ("yes" if truth else "no"), prompt


def options_of(prompt: str) -> dict[str, str]:
    return dict(re.findall(r"^([A-Z])\. (.+)$", prompt, re.MULTILINE))


def test_letters_point_at_their_options() -> None:
    for example in samples("letter_of"):
        options = options_of(asked(example))
        assert re.search(rf"(is|of) {options[example.answer]}\?$", asked(example))
    for example in samples("option_of"):
        letter = asked(example).removesuffix("?")[-1]
        assert options_of(asked(example))[letter] == example.answer


def test_multiple_choice_has_four_different_options_and_the_right_one_is_the_fact() -> None:
    facts = {(c.name[i], getattr(c, a)[i]) for c in words.countries() for a in words.ATTRIBUTES for i in (0, 1)}
    for family in ("mc_facts_en", "mc_facts_zh", "mc_bridge"):
        for example in samples(family):
            options = options_of(asked(example))
            assert len(set(options.values())) == 4
            letter = example.answer[-1]
            who = next(name for c in words.countries() for name in c.name if name in asked(example))
            assert (who, options[letter]) in facts


def test_reading_answers_stand_in_the_text() -> None:
    for example in samples("reading"):
        owners = dict(re.findall(r"(\w+) has the (\w+)\.", asked(example)))
        if example.answer.startswith("the "):
            who = re.search(r"What does (\w+) have", asked(example))
            assert who is not None
            assert owners[who[1]] == example.answer.removeprefix("the ")
        else:
            assert f"Who has the {owners[example.answer]}?" in asked(example)


def labels(prompt: str) -> dict[str, str]:
    """What is labelled -> its label, from any of the listings."""
    listing = prompt.rsplit("\n", 1)[0] if "\n" in prompt else prompt
    pairs = re.findall(r"(\w+) has the (\w+)\.", listing)
    pairs = pairs or [(value, key) for key, value in re.findall(r"(\w+): (\d)", listing)]
    pairs = pairs or re.findall(r"(\w+)\. (\w+)", listing)
    return {thing: label for label, thing in pairs or re.findall(r"(\w+) (\w+)", listing)}


@pytest.mark.parametrize("family", corpus.DENSE)
def test_dense_look_ups_answer_every_question_from_the_listing(family: str) -> None:
    for example in samples(family):
        by_thing = labels(asked(example))
        by_label = {label: thing for thing, label in by_thing.items()}
        known = {**by_thing, **by_label}
        question = re.split(r"\n|\. (?=Who|What|Thing)", asked(example))[-1]
        wanted = [word for word in re.findall(r"\w+", question) if word in known and word != "Letters"]
        answers = [part.removeprefix("the ") for part in example.answer.split(", ")]
        paired = " " in answers[0]
        assert answers == [f"{word} {known[word]}" if paired else known[word] for word in wanted], asked(example)


def test_json_answers_parse_and_take_every_value_from_the_sentence() -> None:
    for example in samples("as_json"):
        for value in json.loads(example.answer).values():
            assert str(value) in asked(example)


def test_tool_calls_name_a_listed_tool_with_its_arguments_taken_from_the_prompt() -> None:
    for example in samples("tool_call", 400):
        call = json.loads(example.answer.removeprefix("<tool_call>").removesuffix("</tool_call>"))
        schema = next(t["function"] for t in example.tools if t["function"]["name"] == call["name"])
        assert list(call["arguments"]) == schema["parameters"]["required"]
        for name, value in call["arguments"].items():
            assert isinstance(value, {"string": str, "integer": int}[schema["parameters"]["properties"][name]["type"]])
            assert str(value) in asked(example)


def test_answers_to_tool_results_carry_the_result() -> None:
    for example in samples("tool_answer"):
        result = str(example.messages[-1]["content"])
        assert set(numbers(result)) <= set(numbers(example.answer))


def test_countries_differ_in_name_and_capital_in_both_languages() -> None:
    countries = words.countries()
    for language in (0, 1):
        assert len({c.name[language] for c in countries}) == 40
        assert len({c.capital[language] for c in countries}) == 40
    assert len({c.color for c in countries}) == 8
    assert len({c.animal for c in countries}) >= 12
