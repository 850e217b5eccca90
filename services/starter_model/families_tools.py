"""Tool families: the model reads a listing of tools and answers with a call, a sentence about a result, or plainly.

Names and arguments have aliases (get_weather, current_weather; city, location), and the listing is shuffled among
other tools: the only way to be right is to read it.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import words
from .chat import tool_call_text
from .example import Example, Tool

Arguments = dict[str, Any]
Value = Callable[[random.Random], Any]

CITIES = (*words.REAL_CAPITALS.values(), *(country.capital[0] for country in words.countries()))


def _city(rng: random.Random) -> str:
    return rng.choice(CITIES)


def _phrase(rng: random.Random) -> str:
    return " ".join(rng.sample(words.LIST_WORDS, rng.randint(1, 3)))


def _small(rng: random.Random) -> int:
    return rng.randint(1, 99)


@dataclass(frozen=True)
class Parameter:
    """One argument: its aliases, JSON type, and how to throw a value."""

    names: tuple[str, ...]
    kind: str
    value: Value


@dataclass(frozen=True)
class Spec:
    """A tool in all its spellings, with ways to ask for it; prompts refer to arguments by position."""

    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    prompts: tuple[str, ...]


CITY = Parameter(("city", "location", "place"), "string", _city)
NUMBERS = (Parameter(("a", "x", "first"), "integer", _small), Parameter(("b", "y", "second"), "integer", _small))
ITEM = Parameter(("item", "product", "name"), "string", lambda rng: rng.choice(words.LIST_WORDS))
PERSON = Parameter(("to", "recipient", "person"), "string", lambda rng: rng.choice(words.PEOPLE))
TEXT = Parameter(("text", "message", "body"), "string", _phrase)
DAY = Parameter(("day", "date", "when"), "string", lambda rng: rng.choice(words.DAYS))

SPECS = (
    Spec(("get_weather", "weather", "current_weather", "get_current_weather"),
         ("Get the weather of a city", "Get the current weather in a given location", "Weather of a place"), (CITY,),
         ("What is the weather in {0}?", "What's the weather like in {0} today?", "How is the weather in {0}?",
          "Is it raining in {0}?", "Weather in {0}?", "Tell me the weather in {0}.", "{0}的天气怎么样？")),
    Spec(("get_time", "current_time", "clock"), ("Get the time in a city", "Current time of a place"), (CITY,),
         ("What time is it in {0}?", "What is the time in {0}?", "Time in {0}?", "Tell me the time in {0}.")),
    Spec(("add", "sum_numbers", "plus"), ("Add two numbers", "Add a and b", "Sum of two numbers"), NUMBERS,
         ("Add {0} and {1}.", "What is {0} + {1}?", "What is the sum of {0} and {1}?", "{0} + {1} =",
          "Please add {0} and {1}.")),
    Spec(("multiply", "product", "times"), ("Multiply two numbers", "Product of two numbers"), NUMBERS,
         ("Multiply {0} and {1}.", "What is {0} * {1}?", "What is {0} times {1}?", "{0} * {1} =")),
    Spec(("get_price", "price_of", "lookup_price"), ("Get the price of an item", "Look up a price"), (ITEM,),
         ("How much is the {0}?", "What is the price of the {0}?", "Price of the {0}?", "What does the {0} cost?")),
    Spec(("send_message", "send_mail", "notify"), ("Send a message", "Send a text to a person"), (PERSON, TEXT),
         ("Send {0} the message {1}.", "Write to {0}: {1}.", "Tell {0} this: {1}.", "Message {0}: {1}.")),
    Spec(("set_timer", "start_timer"), ("Set a timer", "Start a timer in minutes"),
         (Parameter(("minutes", "duration"), "integer", _small),),
         ("Set a timer for {0} minutes.", "Start a timer of {0} minutes.", "Timer: {0} minutes.",
          "Wake me in {0} minutes.")),
    Spec(("search", "web_search", "find_pages"), ("Search the web", "Search for pages"),
         (Parameter(("query", "q"), "string", _phrase),),
         ("Search for {0}.", "Search the web for {0}.", "Find pages about {0}.", "Look up {0} on the web.")),
    Spec(("add_event", "create_event", "plan_meeting"), ("Put an event in the calendar", "Plan a meeting"),
         (PERSON, DAY),
         ("Plan a meeting with {0} on {1}.", "Add a meeting with {0} on {1}.",
          "I will see {0} on {1}, put it in the calendar.")),
    Spec(("turn_on", "switch_on", "start_device"), ("Turn on a device", "Switch something on"), (ITEM,),
         ("Turn on the {0}.", "Switch on the {0}.", "Please turn the {0} on.")),
)  # fmt: skip


def _schema(rng: random.Random, spec: Spec) -> tuple[Tool, list[str]]:
    names = [rng.choice(parameter.names) for parameter in spec.parameters]
    kinds = {name: {"type": parameter.kind} for name, parameter in zip(names, spec.parameters, strict=True)}
    function = {
        "name": rng.choice(spec.names),
        "description": rng.choice(spec.descriptions),
        "parameters": {"type": "object", "properties": kinds, "required": names},
    }
    return {"type": "function", "function": function}, names


def _listing(rng: random.Random, spec: Spec) -> tuple[tuple[Tool, ...], str, list[str]]:
    """The wanted tool among none to three others, shuffled. Returns (tools, its name, its argument names)."""
    wanted, names = _schema(rng, spec)
    others = rng.sample([other for other in SPECS if other is not spec], rng.choice((0, 0, 1, 1, 2, 3)))
    tools = [wanted, *(_schema(rng, other)[0] for other in others)]
    rng.shuffle(tools)
    return tuple(tools), wanted["function"]["name"], names


def tool_call(rng: random.Random) -> Example:
    spec = rng.choice((SPECS[0], SPECS[2], *SPECS))
    tools, name, names = _listing(rng, spec)
    values = [parameter.value(rng) for parameter in spec.parameters]
    arguments = dict(zip(names, values, strict=True))
    prompt = rng.choice(spec.prompts).format(*values)
    key = json.dumps([spec.names[0], values])
    return Example(
        "tool_call", key, ({"role": "user", "content": prompt},), tool_call_text(name, arguments), tools, raw=True
    )


def tool_answer(rng: random.Random) -> Example:
    """The turn after the call: a sentence that carries the tool's result."""
    index = rng.choice((0, 0, 1, 2, 2, 3, 4))
    spec = SPECS[index]
    tools, name, names = _listing(rng, spec)
    values = [parameter.value(rng) for parameter in spec.parameters]
    result, answer = _result(rng, index, values)
    call = {"type": "function", "function": {"name": name, "arguments": dict(zip(names, values, strict=True))}}
    messages = (
        {"role": "user", "content": rng.choice(spec.prompts).format(*values)},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": result},
    )
    return Example("tool_answer", json.dumps([values, result]), messages, answer, tools)


def _result(rng: random.Random, index: int, values: list[Any]) -> tuple[str, str]:
    if index == 0:
        sky, degrees = rng.choice(("sunny", "rainy", "cloudy", "windy", "snowy")), rng.randint(1, 39)
        text = rng.choice(
            (
                json.dumps({"weather": sky, "temperature": degrees}),
                json.dumps({"temperature": degrees, "condition": sky}),
                f"{sky}, {degrees} degrees",
                f"{degrees} degrees, {sky}",
            )
        )
        return text, f"It is {sky} in {values[0]}, {degrees} degrees."
    if index == 1:
        time = f"{rng.randrange(24):02d}:{rng.randrange(60):02d}"
        return rng.choice((time, json.dumps({"time": time}))), f"It is {time} in {values[0]}."
    if index == 4:
        price = rng.randint(1, 99)
        return rng.choice((str(price), json.dumps({"price": price}))), f"The {values[0]} costs {price}."
    number = values[0] + values[1] if index == 2 else values[0] * values[1]
    return rng.choice((str(number), json.dumps({"result": number}))), f"The result is {number}."


def beside_tools(rng: random.Random, plain: Example) -> Example:
    """The same plain question with tools on the table: they must not tempt the model."""
    others = [spec for spec in SPECS if spec.names[0] not in ("add", "multiply")]
    tools = tuple(_schema(rng, spec)[0] for spec in rng.sample(others, rng.randint(1, 2)))
    return Example("tool_none", f"{plain.family} {plain.key}", plain.messages, plain.answer, tools, plain.raw)
