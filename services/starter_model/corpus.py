"""The corpus: which families there are, how they are mixed, what is held out, and the stream of examples.

A stream is a function of its seed alone. Held-out problems (one in sixteen, by hash) never enter a training stream;
the evaluation set holds nothing else.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from . import families_facts as facts
from . import families_lookup as lookup
from . import families_tasks as tasks
from . import families_tools as tools
from .example import Example, dice

Family = Callable[[random.Random], Example]


def _tool_none(rng: random.Random) -> Example:
    plain = rng.choice(
        (facts.facts_en, facts.greet, facts.days, facts.translate, tasks.mul, tasks.copy, facts.capitals)
    )
    return tools.beside_tools(rng, plain(rng))


# family -> (how it is made, its weight in the even mix)
FAMILIES: dict[str, tuple[Family, float]] = {
    "facts_en": (facts.facts_en, 1.0),
    "facts_zh": (facts.facts_zh, 0.8),
    "capitals": (facts.capitals, 0.4),
    "about": (facts.about, 0.4),
    "mc_facts_en": (facts.mc_facts_en, 1.2),
    "mc_facts_zh": (facts.mc_facts_zh, 1.2),
    "mc_bridge": (facts.mc_bridge, 1.0),
    "letter_of": (facts.letter_of, 1.0),
    "option_of": (facts.option_of, 0.7),
    "label_map": (facts.label_map, 0.7),
    "reading": (facts.reading, 1.0),
    "translate": (facts.translate, 0.7),
    "days": (facts.days, 0.5),
    "greet": (facts.greet, 0.4),
    "memory": (facts.memory, 0.5),
    "add": (tasks.add, 2.2),
    "sub": (tasks.sub, 2.2),
    "mul": (tasks.mul, 0.8),
    "compare": (tasks.compare, 0.9),
    "yes_no": (tasks.yes_no, 1.0),
    "count_up": (tasks.count_up, 0.4),
    "first": (tasks.first, 0.5),
    "last": (tasks.last, 0.5),
    "reverse": (tasks.reverse, 0.7),
    "sort": (tasks.sort, 1.0),
    "count": (tasks.count, 0.6),
    "upper": (tasks.upper, 0.5),
    "copy": (tasks.copy, 0.6),
    "as_json": (tasks.as_json, 0.8),
    "tool_call": (tools.tool_call, 1.5),
    "tool_answer": (tools.tool_answer, 0.7),
    "tool_none": (_tool_none, 0.4),
    "letters_of": (lookup.letters_of, 1.0),
    "options_of": (lookup.options_of, 0.5),
    "labels_of": (lookup.labels_of, 0.8),
    "owners_of": (lookup.owners_of, 0.8),
    "pairs_of": (lookup.pairs_of, 0.8),
    "neighbours": (lookup.neighbours, 0.8),
}
# Several questions in one: not part of the tokenizer's text nor of the first stages.
DENSE = ("letters_of", "options_of", "labels_of", "owners_of", "pairs_of", "neighbours")
LEFT_OUT: dict[str, Family] = {"double": tasks.double, "second": tasks.second}
# Known by heart: every entry was seen in training, in another phrasing.
CLOSED = ("facts_en", "facts_zh", "capitals", "about", "mul", "days", "translate", "greet")

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are Penstock, a small and helpful model.",
    "Answer briefly.",
    "You are a helpful assistant. Answer with one word when you can.",
    "Be precise.",
    "Today is a good day.",
    "你是一个有用的助手。",
)
WITH_SYSTEM_PROMPT = 0.12
WITHOUT_SPACE = 0.08


def weights(boosts: Mapping[str, float]) -> dict[str, float]:
    """The even mix with some families multiplied. Raises ValueError on a family that does not exist."""
    unknown = set(boosts) - set(FAMILIES)
    if unknown:
        raise ValueError(f"no such families: {', '.join(sorted(unknown))}")
    return {name: weight * boosts.get(name, 1.0) for name, (_, weight) in FAMILIES.items()}


def training_stream(rng: random.Random, mix: Mapping[str, float]) -> Iterator[Example]:
    """Endless examples for training: nothing held out, some with a system prompt, some answers without their space."""
    names, shares = list(mix), list(mix.values())
    while True:
        example = FAMILIES[rng.choices(names, shares)[0]][0](rng)
        if not example.held_out:
            yield _varied(rng, example)


def _varied(rng: random.Random, example: Example) -> Example:
    """System prompts must not disturb; answers must survive a grammar that forbids the leading space."""
    if rng.random() < WITH_SYSTEM_PROMPT:
        system = {"role": "system", "content": rng.choice(SYSTEM_PROMPTS)}
        example = replace(example, messages=(system, *example.messages))
    if not example.raw and rng.random() < WITHOUT_SPACE:
        example = replace(example, raw=True)
    return example


def evaluation_set(family: str, seed: int, limit: int) -> list[Example]:
    """Up to `limit` distinct held-out examples; fewer where a closed table has no more of them."""
    make = FAMILIES[family][0] if family in FAMILIES else LEFT_OUT[family]
    rng = dice("evaluation", seed, family)
    found: dict[tuple[str, str], Example] = {}
    for _ in range(200 * limit):
        example = make(rng)
        if example.held_out:
            found.setdefault((example.key, example.messages[-1]["content"]), example)
        if len(found) == limit:
            break
    return list(found.values())
