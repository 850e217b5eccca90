"""Dense look-ups: several questions about one listing, so that every example teaches binding several times.

One question per listing was not enough: a letter stands two tokens from its option, a label three from its key, and
guessing from the right bag is a comfortable plateau. These families came last and broke it.
"""

import random

from . import words
from .example import Example, ask

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _listing(rng: random.Random) -> tuple[str, list[str], str]:
    count = rng.randint(2, 5)
    letters = LETTERS[:count] if rng.random() < 0.5 else "".join(rng.sample(LETTERS, count))
    options = rng.sample(words.LIST_WORDS, count)
    lines = "\n".join(f"{letter}. {option}" for letter, option in zip(letters, options, strict=True))
    return letters, options, lines


def _some(rng: random.Random, count: int) -> list[int]:
    return rng.sample(range(count), rng.randint(1, count))


def letters_of(rng: random.Random) -> Example:
    letters, options, lines = _listing(rng)
    chosen = _some(rng, len(options))
    asked, answer = ", ".join(options[i] for i in chosen), ", ".join(letters[i] for i in chosen)
    return ask("letters_of", f"{lines}\nLetters of {asked}?", answer)


def options_of(rng: random.Random) -> Example:
    letters, options, lines = _listing(rng)
    chosen = _some(rng, len(options))
    asked, answer = ", ".join(letters[i] for i in chosen), ", ".join(options[i] for i in chosen)
    return ask("options_of", f"{lines}\nOptions {asked}?", answer)


def labels_of(rng: random.Random) -> Example:
    keys = rng.sample(words.LIST_WORDS, rng.randint(2, 5))
    values = rng.sample(range(10), len(keys))
    chosen = _some(rng, len(keys))
    listed = ", ".join(f"{key}: {value}" for key, value in zip(keys, values, strict=True))
    asked, answer = ", ".join(keys[i] for i in chosen), ", ".join(str(values[i]) for i in chosen)
    return ask("labels_of", f"{listed}. What are {asked}?", answer)


def pairs_of(rng: random.Random) -> Example:
    """The question is said again right before each answer: binding in one hop, from which two hops grow."""
    if rng.random() < 0.7:
        letters, options, lines = _listing(rng)
        chosen = _some(rng, len(options))
        if rng.random() < 0.7:
            asked, answer = (
                ", ".join(options[i] for i in chosen),
                ", ".join(f"{options[i]} {letters[i]}" for i in chosen),
            )
            return ask("pairs_of", f"{lines}\nOption and letter of {asked}?", answer)
        asked, answer = ", ".join(letters[i] for i in chosen), ", ".join(f"{letters[i]} {options[i]}" for i in chosen)
        return ask("pairs_of", f"{lines}\nLetter and option of {asked}?", answer)
    people = rng.sample(words.PEOPLE, rng.randint(2, 4))
    things = rng.sample(words.LIST_WORDS, len(people))
    chosen = _some(rng, len(people))
    text = " ".join(f"{who} has the {thing}." for who, thing in zip(people, things, strict=True))
    asked, answer = ", ".join(things[i] for i in chosen), ", ".join(f"{things[i]} {people[i]}" for i in chosen)
    return ask("pairs_of", f"{text} Thing and owner: {asked}?", answer)


def neighbours(rng: random.Random) -> Example:
    """The label stands right before what it labels (`A hat`, `red hat`): farther bindings grow from this one."""
    count = rng.randint(2, 5)
    options = rng.sample(list(words.OBJECTS), count)
    if rng.random() < 0.4:
        labels, join, head = rng.sample(list(words.COLORS), count), ", ", "Color of"
    else:
        labels = list(LETTERS[:count]) if rng.random() < 0.4 else rng.sample(LETTERS, count)
        join, head = rng.choice(("\n", ", ", " ")), "Letters of"
    chosen = _some(rng, count)
    listed = join.join(f"{label} {option}" for label, option in zip(labels, options, strict=True))
    asked = ", ".join(options[i] for i in chosen)
    if rng.random() < 0.5:
        return ask("neighbours", f"{listed}\n{head} {asked}?", ", ".join(labels[i] for i in chosen))
    return ask("neighbours", f"{listed}\nPairs: {asked}", ", ".join(f"{options[i]} {labels[i]}" for i in chosen))


def owners_of(rng: random.Random) -> Example:
    people = rng.sample(words.PEOPLE, rng.randint(2, 4))
    things = rng.sample(words.LIST_WORDS, len(people))
    chosen = _some(rng, len(people))
    text = " ".join(f"{who} has the {thing}." for who, thing in zip(people, things, strict=True))
    if rng.random() < 0.5:
        asked, answer = ", the ".join(things[i] for i in chosen), ", ".join(people[i] for i in chosen)
        return ask("owners_of", f"{text} Who has the {asked}?", answer)
    asked, answer = ", ".join(people[i] for i in chosen), ", the ".join(things[i] for i in chosen)
    return ask("owners_of", f"{text} What have {asked}?", f"the {answer}")
