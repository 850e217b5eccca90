"""How a question is put, byte for byte: three conventions are in circulation and move scores, so the style is a choice.

- official: as the benchmarks' authors print it; the letter follows the full-width colon at once.
- opencompass: half-width colon and a space, the instruction before every question.
- lm_eval: as lm-evaluation-harness joins it: no 考试 in C-Eval's instruction, 答案： in both, a space, the letter.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from compressor.quality.questions import LETTERS, Benchmark, Question, Subject

Style = Literal["official", "opencompass", "lm_eval"]
STYLES: tuple[Style, ...] = ("official", "opencompass", "lm_eval")


@dataclass(frozen=True, slots=True)
class _Form:
    """`head`: once before everything, or before every question; `lead`: before a question; `ask`: after the options;
    `delimiter`: between `ask` and the letter; `gap`: between questions."""

    head: str
    lead: str
    ask: str
    delimiter: str
    gap: str
    is_head_repeated: bool = False


_FORMS: dict[tuple[Benchmark, Style], _Form] = {
    ("ceval", "official"): _Form(
        "以下是中国关于{name}考试的单项选择题，请选出其中的正确答案。\n\n", "", "答案：", "", "\n\n"
    ),
    ("ceval", "opencompass"): _Form(
        "以下是中国关于{name}考试的单项选择题，请选出其中的正确答案。\n", "", "答案: ", "", "\n", is_head_repeated=True
    ),
    ("ceval", "lm_eval"): _Form(
        "以下是中国关于{name}的单项选择题，请选出其中的正确答案。\n\n", "", "答案：", " ", "\n\n"
    ),
    ("cmmlu", "official"): _Form(
        "以下是关于{name}的单项选择题，请直接给出正确答案的选项。\n\n", "题目：", "答案是：", "", "\n\n"
    ),
    ("cmmlu", "opencompass"): _Form(
        "以下是关于{name}的单项选择题，请直接给出正确答案的选项。\n",
        "题目：",
        "答案是: ",
        "",
        "\n",
        is_head_repeated=True,
    ),
    ("cmmlu", "lm_eval"): _Form(
        "以下是关于{name}的单项选择题，请直接给出正确答案的选项。\n\n", "", "答案：", " ", "\n\n"
    ),
}


@dataclass(frozen=True, slots=True)
class Prompt:
    """`choices`: what is scored after `text`, for A to D; `shots`: how many examples it holds."""

    text: str
    choices: tuple[str, ...]
    shots: int


def build(
    benchmark: Benchmark,
    style: Style,
    subject: Subject,
    asked: Question,
    shots: int,
    fits: Callable[[str], bool] = lambda _: True,
) -> Prompt:
    """The few-shot prompt of a question, its examples the first dev rows in file order.

    Where the whole does not fit, the longest examples are left out first (CMMLU's rule), equally long ones together
    no more than needed.
    """
    form = _FORMS[benchmark, style]
    examples = list(subject.dev[:shots])
    while True:
        text = _text(form, subject.name, examples, asked)
        if not examples or fits(text):
            return Prompt(text, tuple(form.delimiter + letter for letter in LETTERS), len(examples))
        examples.remove(max(examples, key=lambda example: len(_block(form, example))))


def _text(form: _Form, name: str, examples: Sequence[Question], asked: Question) -> str:
    head = form.head.format(name=name)
    again = head if form.is_head_repeated else ""
    shown = [f"{again}{_block(form, shot)}{form.delimiter}{shot.answer}{form.gap}" for shot in examples]
    return ("" if again else head) + "".join(shown) + again + _block(form, asked)


def _block(form: _Form, question: Question) -> str:
    options = "".join(f"{letter}. {text}\n" for letter, text in zip(LETTERS, question.options, strict=True))
    return f"{form.lead}{question.question}\n{options}{form.ask}"
