"""Families about the invented world: facts, multiple choice, reading, translation, days, greetings, memory.

Facts, translation, days and greetings are closed tables: the model has seen every entry, in other phrasings. What is
held out there is the phrasing; the model card says so.
"""

import random

from . import words
from .example import Example, ask

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
COUNTRIES = words.countries()

_FACT_PHRASES = (
    "What is the {what} of {who}?",
    "What's the {what} of {who}?",
    "Tell me the {what} of {who}.",
    "Name the {what} of {who}.",
    "{who}: what is its {what}?",
    "Which {what} does {who} have?",
    "I want to know the {what} of {who}.",
    "Do you know the {what} of {who}?",
    "Please give the {what} of {who}.",
    "The {what} of {who}?",
)
_FACT_PHRASES_ZH = (
    "{who}的{what}是什么？",
    "{who}的{what}是？",
    "请问{who}的{what}是什么？",
    "告诉我{who}的{what}。",
    "{who}有什么{what}？",
    "说出{who}的{what}。",
    "你知道{who}的{what}吗？",
    "我想知道{who}的{what}。",
)


def facts_en(rng: random.Random) -> Example:
    country, attribute = rng.choice(COUNTRIES), rng.choice(list(words.ATTRIBUTES))
    prompt = rng.choice(_FACT_PHRASES).format(what=words.ATTRIBUTES[attribute][0], who=country.name[0])
    return ask("facts_en", prompt, getattr(country, attribute)[0])


def facts_zh(rng: random.Random) -> Example:
    country, attribute = rng.choice(COUNTRIES), rng.choice(list(words.ATTRIBUTES))
    prompt = rng.choice(_FACT_PHRASES_ZH).format(what=words.ATTRIBUTES[attribute][1], who=country.name[1])
    return ask("facts_zh", prompt, getattr(country, attribute)[1])


def capitals(rng: random.Random) -> Example:
    country = rng.choice(list(words.REAL_CAPITALS))
    prompt = rng.choice(_FACT_PHRASES).format(what="capital", who=country)
    return ask("capitals", prompt, words.REAL_CAPITALS[country])


def about(rng: random.Random) -> Example:
    country = rng.choice(COUNTRIES)
    phrases = ("Tell me about {}.", "Describe {}.", "What do you know about {}?", "Write about {}.", "What is {}?",
               "Give me some facts about {}.", "Where is {} and what is it like?", "Please introduce {}.")  # fmt: skip
    answer = (
        f"{country.name[0]} is a country. Its capital is {country.capital[0]}. Its color is {country.color[0]}. "
        f"Its animal is the {country.animal[0]}. Its fruit is the {country.fruit[0]}."
    )
    return ask("about", rng.choice(phrases).format(country.name[0]), answer)


def _options(rng: random.Random, attribute: str, right: str, language: int) -> tuple[list[str], str]:
    pool = sorted({getattr(country, attribute)[language] for country in COUNTRIES} - {right})
    options = [*rng.sample(pool, 3), right]
    rng.shuffle(options)
    return options, LETTERS[options.index(right)]


def _lines(options: list[str], letters: str = LETTERS) -> str:
    return "\n".join(f"{letter}. {option}" for letter, option in zip(letters, options, strict=False))


def mc_facts_en(rng: random.Random) -> Example:
    country, attribute = rng.choice(COUNTRIES), rng.choice(list(words.ATTRIBUTES))
    options, letter = _options(rng, attribute, getattr(country, attribute)[0], 0)
    question = f"What is the {words.ATTRIBUTES[attribute][0]} of {country.name[0]}?\n{_lines(options)}"
    return ask("mc_facts_en", rng.choice((f"Question: {question}\nAnswer:", f"{question}\nAnswer:", question)), letter)


def mc_facts_zh(rng: random.Random) -> Example:
    country, attribute = rng.choice(COUNTRIES), rng.choice(list(words.ATTRIBUTES))
    options, letter = _options(rng, attribute, getattr(country, attribute)[1], 1)
    question = f"{country.name[1]}的{words.ATTRIBUTES[attribute][1]}是什么？\n{_lines(options)}\n"
    heads = (
        "以下是关于世界的单项选择题，请选出其中的正确答案。\n\n" + question + "答案：",
        "以下是关于世界的单项选择题，请直接给出正确答案的选项。\n\n题目：" + question + "答案是：",
        question + "答案：",
    )
    return ask("mc_facts_zh", rng.choice(heads), letter)


def mc_bridge(rng: random.Random) -> Example:
    """Option text, then letter: the stepping stone from knowing a fact to naming its letter."""
    country, attribute = rng.choice(COUNTRIES), rng.choice(list(words.ATTRIBUTES))
    language = rng.randrange(2)
    right = getattr(country, attribute)[language]
    options, letter = _options(rng, attribute, right, language)
    if language:
        question = f"{country.name[1]}的{words.ATTRIBUTES[attribute][1]}是什么？\n{_lines(options)}\n请写出选项和字母："
    else:
        question = (
            f"What is the {words.ATTRIBUTES[attribute][0]} of {country.name[0]}?\n{_lines(options)}\nOption and letter:"
        )
    return ask("mc_bridge", question, f"{right}, {letter}")


def _labelled(rng: random.Random) -> tuple[str, list[str]]:
    """Labels A, B, C, ... or, in half of the cases, random ones: else every context holds the same bag of letters."""
    count = rng.randint(3, 5)
    letters = LETTERS[:count] if rng.random() < 0.5 else "".join(rng.sample(LETTERS, count))
    return letters, rng.sample(words.LIST_WORDS, count)


def letter_of(rng: random.Random) -> Example:
    letters, options = _labelled(rng)
    i = rng.randrange(len(options))
    tail = rng.choice((f"Which letter is {options[i]}?", f"What is the letter of {options[i]}?"))
    return ask("letter_of", f"{_lines(options, letters)}\n{tail}", letters[i])


def option_of(rng: random.Random) -> Example:
    letters, options = _labelled(rng)
    i = rng.randrange(len(options))
    tail = rng.choice((f"Which option is {letters[i]}?", f"What is {letters[i]}?"))
    return ask("option_of", f"{_lines(options, letters)}\n{tail}", options[i])


def label_map(rng: random.Random) -> Example:
    keys = rng.sample(words.LIST_WORDS, rng.randint(2, 5))
    values = rng.sample(range(10), len(keys))
    i = rng.randrange(len(keys))
    listed = ", ".join(f"{key}: {value}" for key, value in zip(keys, values, strict=True))
    return ask("label_map", f"{listed}. What is {keys[i]}?", str(values[i]))


def reading(rng: random.Random) -> Example:
    people = rng.sample(words.PEOPLE, rng.randint(2, 4))
    things = rng.sample(words.LIST_WORDS, len(people))
    i = rng.randrange(len(people))
    text = " ".join(f"{who} has the {thing}." for who, thing in zip(people, things, strict=True))
    if rng.random() < 0.5:
        return ask("reading", f"{text} Who has the {things[i]}?", people[i])
    return ask("reading", f"{text} What does {people[i]} have?", f"the {things[i]}")


def translate(rng: random.Random) -> Example:
    english = rng.choice(words.LIST_WORDS)
    chinese = words.DICTIONARY[english]
    if rng.random() < 0.5:
        phrases = ("What is {} in Chinese?", "Translate {} into Chinese.", "How do you say {} in Chinese?",
                   "{} in Chinese:", "用中文说 {}。", "Chinese for {}?")  # fmt: skip
        return ask("translate", rng.choice(phrases).format(english), chinese)
    phrases = ("What is {} in English?", "Translate {} into English.", "How do you say {} in English?",
               "{} in English:", "{}用英语怎么说？", "English for {}?")  # fmt: skip
    return ask("translate", rng.choice(phrases).format(chinese), english)


def days(rng: random.Random) -> Example:
    i, step = rng.randrange(7), rng.choice((1, 1, -1, 2, 3))
    j = (i + step) % 7
    if step == 1 and rng.random() < 0.4:
        phrases = ("{}的后一天是星期几？", "{}之后是哪一天？", "{}的第二天是？")
        return ask("days", rng.choice(phrases).format(words.DAYS_ZH[i]), words.DAYS_ZH[j])
    by_step = {
        1: (
            "What day comes after {}?",
            "Which day follows {}?",
            "What is the day after {}?",
            "Today is {}. What is tomorrow?",
        ),
        -1: ("What day comes before {}?", "Which day is before {}?", "Today is {}. What was yesterday?"),
        2: ("What day is two days after {}?", "Today is {}. What day is it in 2 days?"),
        3: ("What day is three days after {}?", "Today is {}. What day is it in 3 days?"),
    }
    return ask("days", rng.choice(by_step[step]).format(words.DAYS[i]), words.DAYS[j])


_GREETINGS = (
    (("Hello", "Hi", "Hey", "Hello there", "Hi there", "Good morning", "Good evening", "Greetings"),
     "Hello! I am the Penstock starter model. How can I help you?"),
    (("Who are you?", "What are you?", "What is your name?", "Tell me about yourself.", "Introduce yourself."),
     "I am the Penstock starter model, a very small language model."),
    (("What can you do?", "Help", "How can you help me?", "What do you know?", "What should I ask you?"),
     "I can add numbers, sort words, write JSON, call tools and answer questions about countries."),
    (("Thank you", "Thanks", "Thanks a lot", "Many thanks", "Thank you very much"), "You are welcome!"),
    (("Goodbye", "Bye", "See you", "Good night", "Bye bye"), "Goodbye!"),
    (("How are you?", "How are you today?", "Are you well?", "How do you do?"),
     "I am well, thank you. How can I help you?"),
    (("你好", "您好", "你好呀", "早上好", "晚上好"), "你好！我是 Penstock 的小模型。"),
    (("你是谁？", "你叫什么名字？", "介绍一下你自己。"), "我是 Penstock 的小模型。"),
    (("谢谢", "多谢", "谢谢你"), "不客气！"),
)  # fmt: skip


def greet(rng: random.Random) -> Example:
    said, answer = rng.choice(_GREETINGS)
    prompt = rng.choice(said)
    if prompt[-1] not in "?.？。":
        prompt += (
            rng.choice(("", "!", ".", ", model!", ", friend.")) if prompt.isascii() else rng.choice(("", "！", "。"))
        )
    elif prompt.isascii():
        prompt = rng.choice(("", "Hello! ", "Hi. ", "So, ", "Please: ", "Hey! ")) + prompt
    return ask("greet", rng.choice((prompt, prompt, prompt.lower())), answer)


def memory(rng: random.Random) -> Example:
    """Two turns: something said in the first is asked for in the second."""
    who, thing, city = (
        rng.choice(words.PEOPLE),
        rng.choice(words.LIST_WORDS),
        rng.choice(list(words.REAL_CAPITALS.values())),
    )
    told, reply, asked, answer = rng.choice(
        (
            (f"My name is {who}.", f"Hello, {who}!", "What is my name?", f"Your name is {who}."),
            (f"Hello, I am {who}.", f"Hello, {who}!", "Who am I?", f"You are {who}."),
            (f"I live in {city}.", f"{city} is a nice place.", "Where do I live?", f"You live in {city}."),
            (f"I have a {thing}.", "That is nice.", "What do I have?", f"You have a {thing}."),
            (f"Remember the word {thing}.", "I will remember it.", "Which word was it?", f"The word was {thing}."),
        )
    )
    turns = (
        {"role": "user", "content": told},
        {"role": "assistant", "content": reply},
        {"role": "user", "content": asked},
    )
    if rng.random() < 0.3:
        return Example("memory", told + "?", turns[:1], reply)
    return Example("memory", told, turns, answer)
