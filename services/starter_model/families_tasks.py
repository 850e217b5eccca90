"""Families whose answer is computed from the prompt: arithmetic, comparison, word lists, JSON.

Two families, `double` and `second`, are never trained: they stay for fine-tuning experiments.
"""

import json
import random

from . import words
from .example import Example, ask


def _number(rng: random.Random) -> int:
    """Below 100; small numbers a little more often, since there are fewer of them."""
    return rng.randrange(100) if rng.random() < 0.85 else rng.randrange(20)


def add(rng: random.Random) -> Example:
    a, b = _number(rng), _number(rng)
    phrases = (
        "What is {a} + {b}?",
        "{a} + {b} =",
        "Add {a} and {b}.",
        "{a} + {b}",
        "{a}加{b}等于多少？",
        "How much is {a} + {b}?",
    )
    key = f"{min(a, b)}+{max(a, b)}"
    return ask("add", rng.choice(phrases).format(a=a, b=b), str(a + b), key)


def sub(rng: random.Random) -> Example:
    b, a = sorted((_number(rng), _number(rng)))
    phrases = ("What is {a} - {b}?", "{a} - {b} =", "{a} - {b}", "{a}减{b}等于多少？", "How much is {a} - {b}?")
    return ask("sub", rng.choice(phrases).format(a=a, b=b), str(a - b), f"{a}-{b}")


def mul(rng: random.Random) -> Example:
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    phrases = (
        "What is {a} * {b}?",
        "{a} * {b} =",
        "What is {a} times {b}?",
        "{a} times {b}",
        "{a}乘{b}等于多少？",
        "Multiply {a} and {b}.",
    )
    return ask("mul", rng.choice(phrases).format(a=a, b=b), str(a * b))


def compare(rng: random.Random) -> Example:
    a, b = rng.sample(range(100), 2)
    key = f"{min(a, b)},{max(a, b)}"
    bigger = rng.random() < 0.5
    phrases = ("Which is {w}, {a} or {b}?", "{a} or {b}: which is {w}?", "Which number is {w}: {a} or {b}?")
    prompt = rng.choice(phrases).format(a=a, b=b, w="larger" if bigger else "smaller")
    return ask("compare", prompt, str(max(a, b) if bigger else min(a, b)), key)


def yes_no(rng: random.Random) -> Example:
    if rng.random() < 0.5:
        a, b = rng.sample(range(100), 2)
        word, truth = rng.choice((("larger", a > b), ("smaller", a < b)))
        return ask("yes_no", f"Is {a} {word} than {b}?", "yes" if truth else "no", f"{min(a, b)},{max(a, b)}")
    listed = rng.sample(words.LIST_WORDS, rng.randint(3, 5))
    wanted = rng.choice(listed) if rng.random() < 0.5 else rng.choice(words.LIST_WORDS)
    prompt = f"Is {wanted} in this list: {', '.join(listed)}?"
    return ask("yes_no", prompt, "yes" if wanted in listed else "no")


def count_up(rng: random.Random) -> Example:
    start, length = rng.randint(1, 60), rng.randint(3, 12)
    stop = start + length
    phrases = ("Count from {a} to {b}.", "Please count from {a} to {b}.", "Count up from {a} to {b}.", "从{a}数到{b}。")
    prompt = rng.choice(phrases).format(a=start, b=stop)
    return ask("count_up", prompt, ", ".join(map(str, range(start, stop + 1))), f"{start}..{stop}")


def _words(rng: random.Random, low: int = 3, high: int = 6) -> list[str]:
    return rng.sample(words.LIST_WORDS, rng.randint(low, high))


def _on_list(family: str, rng: random.Random, listed: list[str], phrases: tuple[str, ...], answer: str) -> Example:
    text = ", ".join(listed)
    return ask(family, rng.choice(phrases).format(text), answer, text)


def first(rng: random.Random) -> Example:
    listed = _words(rng)
    return _on_list(
        "first",
        rng,
        listed,
        ("First word of: {}", "What is the first word: {}", "Give the first item of {}"),
        listed[0],
    )


def last(rng: random.Random) -> Example:
    listed = _words(rng)
    return _on_list(
        "last", rng, listed, ("Last word of: {}", "What is the last word: {}", "Give the last item of {}"), listed[-1]
    )


def reverse(rng: random.Random) -> Example:
    listed = _words(rng, 2, 5)
    phrases = ("Reverse: {}", "Reverse this list: {}", "Write in reverse order: {}")
    return _on_list("reverse", rng, listed, phrases, ", ".join(listed[::-1]))


def sort(rng: random.Random) -> Example:
    listed = _words(rng, 2, 4)
    phrases = ("Sort: {}", "Sort this list: {}", "Put in alphabetical order: {}")
    return _on_list("sort", rng, listed, phrases, ", ".join(sorted(listed)))


def count(rng: random.Random) -> Example:
    listed = _words(rng, 2, 7)
    phrases = ("How many words: {}", "Count the words: {}", "How many items are in {}")
    return _on_list("count", rng, listed, phrases, str(len(listed)))


def upper(rng: random.Random) -> Example:
    listed = _words(rng, 1, 3)
    phrases = ("Upper case: {}", "Write in capital letters: {}", "In upper case: {}")
    return _on_list("upper", rng, listed, phrases, ", ".join(listed).upper())


def copy(rng: random.Random) -> Example:
    listed = _words(rng, 1, 6)
    return _on_list(
        "copy", rng, listed, ("Repeat: {}", "Copy this: {}", "Say: {}", "Repeat after me: {}"), ", ".join(listed)
    )


def double(rng: random.Random) -> Example:
    """Left out of training."""
    listed = _words(rng, 1, 3)
    return _on_list("double", rng, listed, ("Double: {}", "Write this list twice: {}"), ", ".join(listed * 2))


def second(rng: random.Random) -> Example:
    """Left out of training."""
    listed = _words(rng)
    return _on_list("second", rng, listed, ("Second word of: {}", "What is the second word: {}"), listed[1])


def as_json(rng: random.Random) -> Example:
    who, age, city = rng.choice(words.PEOPLE), rng.randint(1, 99), rng.choice(list(words.REAL_CAPITALS.values()))
    thing, color = rng.choice(list(words.OBJECTS)), rng.choice(list(words.COLORS))
    sentence, value = rng.choice(
        (
            (f"{who} is {age} years old and lives in {city}.", {"name": who, "age": age, "city": city}),
            (f"{who} lives in {city}.", {"name": who, "city": city}),
            (f"{who} is {age} years old.", {"name": who, "age": age}),
            (f"The {thing} is {color}.", {"item": thing, "color": color}),
            (f"{who} bought {age % 20 + 1} of {thing}.", {"name": who, "item": thing, "count": age % 20 + 1}),
        )
    )
    phrases = ("Write as JSON: {}", "JSON: {}", "Turn this into JSON: {}", "{} Give that as JSON.")
    return ask("as_json", rng.choice(phrases).format(sentence), json.dumps(value), sentence, raw=True)
