"""Multiple choice: prompts byte for byte, averages by hand, and scorers whose result is known beforehand."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.quality.load import load_dense
from compressor.quality.multiple_choice import Counted, ModelScorer, Scorer, averages, run
from compressor.quality.prompts import STYLES, Style, build
from compressor.quality.questions import LETTERS, SAMPLES, Benchmark, Question, Subject, load_subjects, read_questions
from compressor.quality.tokens import BadDataError
from starter import STARTER

BENCHMARKS: tuple[Benchmark, ...] = ("ceval", "cmmlu")
SHOT = Question("0", "一加一等于几？", ("1", "2", "3", "4"), "B")
ASKED = Question("7", "二加二等于几？", ("1", "2", "3", "4"), "D")
SUBJECT = Subject("arithmetic", "算术", "STEM", None, (SHOT,), (ASKED,))
EXPECTED = {
    ("ceval", "official"): (
        "以下是中国关于算术考试的单项选择题，请选出其中的正确答案。\n\n"
        "一加一等于几？\nA. 1\nB. 2\nC. 3\nD. 4\n答案：B\n\n"
        "二加二等于几？\nA. 1\nB. 2\nC. 3\nD. 4\n答案："
    ),
    ("ceval", "opencompass"): (
        "以下是中国关于算术考试的单项选择题，请选出其中的正确答案。\n"
        "一加一等于几？\nA. 1\nB. 2\nC. 3\nD. 4\n答案: B\n"
        "以下是中国关于算术考试的单项选择题，请选出其中的正确答案。\n"
        "二加二等于几？\nA. 1\nB. 2\nC. 3\nD. 4\n答案: "
    ),
    ("ceval", "lm_eval"): (
        "以下是中国关于算术的单项选择题，请选出其中的正确答案。\n\n"
        "一加一等于几？\nA. 1\nB. 2\nC. 3\nD. 4\n答案： B\n\n"
        "二加二等于几？\nA. 1\nB. 2\nC. 3\nD. 4\n答案："
    ),
    ("cmmlu", "official"): (
        "以下是关于算术的单项选择题，请直接给出正确答案的选项。\n\n"
        "题目：一加一等于几？\nA. 1\nB. 2\nC. 3\nD. 4\n答案是：B\n\n"
        "题目：二加二等于几？\nA. 1\nB. 2\nC. 3\nD. 4\n答案是："
    ),
    ("cmmlu", "opencompass"): (
        "以下是关于算术的单项选择题，请直接给出正确答案的选项。\n"
        "题目：一加一等于几？\nA. 1\nB. 2\nC. 3\nD. 4\n答案是: B\n"
        "以下是关于算术的单项选择题，请直接给出正确答案的选项。\n"
        "题目：二加二等于几？\nA. 1\nB. 2\nC. 3\nD. 4\n答案是: "
    ),
    ("cmmlu", "lm_eval"): (
        "以下是关于算术的单项选择题，请直接给出正确答案的选项。\n\n"
        "一加一等于几？\nA. 1\nB. 2\nC. 3\nD. 4\n答案： B\n\n"
        "二加二等于几？\nA. 1\nB. 2\nC. 3\nD. 4\n答案："
    ),
}


@pytest.mark.parametrize(("benchmark", "style"), EXPECTED)
def test_prompts_are_byte_for_byte_those_of_their_convention(benchmark: Benchmark, style: Style) -> None:
    prompt = build(benchmark, style, SUBJECT, ASKED, 5)
    assert prompt.text == EXPECTED[benchmark, style]
    assert prompt.choices == ((" A", " B", " C", " D") if style == "lm_eval" else LETTERS)
    assert prompt.shots == 1


def test_the_longest_examples_are_left_out_first() -> None:
    lengths = (3, 30, 10, 20)
    dev = tuple(Question(str(length), "字" * length, ("1", "2", "3", "4"), "A") for length in lengths)
    subject = Subject("s", "算术", "STEM", None, dev, (ASKED,))
    all_of_them = build("cmmlu", "official", subject, ASKED, 5)
    assert all_of_them.shots == 4
    fewer = build("cmmlu", "official", subject, ASKED, 5, lambda text: len(text) <= len(all_of_them.text) - 80)
    assert fewer.shots == 2  # without the 30 it is still too long, so the 20 goes too
    assert [length for length in lengths if f"题目：{'字' * length}\n" in fewer.text] == [3, 10]
    assert build("cmmlu", "official", subject, ASKED, 5, lambda _: False).shots == 0


# ---------------------------------------------------------------- scorers with a known result
def oracle(benchmark: Benchmark) -> Scorer:
    """Knows every answer by the text of its question."""
    known: dict[str, str] = {}
    for subject in load_subjects(SAMPLES / benchmark, benchmark, "val" if benchmark == "ceval" else "test"):
        known |= {question.question: question.answer for question in subject.asked}

    def score(prompt: str, choices: Sequence[str]) -> list[float]:
        last = max(known, key=prompt.rfind)
        return [0.0 if choice.strip() == known[last] else -1.0 for choice in choices]

    return score


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_an_oracle_is_always_right(benchmark: Benchmark, style: Style) -> None:
    found = run(SAMPLES / benchmark, benchmark, oracle(benchmark), style=style)
    assert found["macro"] == found["micro"] == 100
    assert set(found["categories"].values()) == {100}
    assert found["questions"] == 18
    assert found["protocol"] == {
        "benchmark": benchmark,
        "split": {"ceval": "val", "cmmlu": "test"}[benchmark],
        "prompt_style": style,
        "shots": 5,
        "shots_left_out": 0,
        "scoring": "log-likelihood of A, B, C, D",
        "subjects": 3,
    }


@pytest.mark.parametrize("benchmark", BENCHMARKS)
@pytest.mark.parametrize("letter", LETTERS)
def test_who_always_says_one_letter_gets_its_share(benchmark: Benchmark, letter: str) -> None:
    def score(_prompt: str, choices: Sequence[str]) -> list[float]:
        return [float(choice == letter) for choice in choices]

    split = {"ceval": "val", "cmmlu": "test"}[benchmark]
    answers = [q.answer for s in load_subjects(SAMPLES / benchmark, benchmark, split) for q in s.asked]
    found = run(SAMPLES / benchmark, benchmark, score)
    assert found["micro"] == pytest.approx(100 * answers.count(letter) / len(answers))
    assert {one for chosen in found["submission"].values() for one in chosen.values()} == {letter}


def test_averages_are_macro_over_subjects_and_micro_over_questions() -> None:
    counts = [
        Counted(Subject("computer_network", "计算机网络", "STEM", None, (), ()), 10, 19),
        Counted(Subject("accountant", "注册会计师", "Other", None, (), ()), 40, 49),
        Counted(Subject("college_physics", "大学物理", "STEM", "Hard", (), ()), 3, 12),
    ]
    found = averages(counts)
    assert round(found["macro"], 3) == 53.088
    assert round(found["micro"], 3) == 66.250
    assert found["categories"] == {
        "STEM": pytest.approx(100 * (10 / 19 + 3 / 12) / 2),
        "Other": pytest.approx(100 * 40 / 49),
    }
    assert found["groups"] == {"Hard": 25.0}


def test_a_test_split_without_answers_gives_a_submission_and_no_score() -> None:
    found = run(SAMPLES / "ceval", "ceval", lambda _, choices: [1.0, 3.0, 2.0, 0.0][: len(choices)], split="test")
    assert "macro" not in found
    assert found["submission"]["logic"] == {"0": "B", "1": "B"}


# ---------------------------------------------------------------- files
def test_all_subjects_of_both_benchmarks_are_known_with_their_categories() -> None:
    known = json.loads((SAMPLES / "subjects.json").read_text("utf-8"))

    def count(benchmark: str, key: str, value: str) -> int:
        return sum(facts.get(key) == value for facts in known[benchmark].values())

    assert [len(known[benchmark]) for benchmark in BENCHMARKS] == [52, 67]
    categories = ("STEM", "Social Science", "Humanities", "Other")
    assert [count("ceval", "category", name) for name in categories] == [20, 10, 11, 11]
    assert [count("cmmlu", "category", name) for name in categories] == [17, 22, 13, 15]
    assert count("ceval", "group", "Hard") == 8
    assert count("cmmlu", "group", "China specific") == 15


def test_samples_have_five_examples_and_six_questions_in_the_files_own_columns() -> None:
    for benchmark, split in (("ceval", "val"), ("cmmlu", "test")):
        subjects = load_subjects(SAMPLES / benchmark, benchmark, split)  # type: ignore[arg-type]
        assert [(len(subject.dev), len(subject.asked)) for subject in subjects] == [(5, 6)] * 3
    heads = {path.parent.name: path.read_text("utf-8").splitlines()[0] for path in (SAMPLES / "ceval").glob("*/*.csv")}
    assert heads == {
        "dev": "id,question,A,B,C,D,answer,explanation",
        "val": "id,question,A,B,C,D,answer",
        "test": "id,question,A,B,C,D",
    }
    assert {path.read_text("utf-8").splitlines()[0] for path in (SAMPLES / "cmmlu").glob("*/*.csv")} == {
        ",Question,A,B,C,D,Answer"
    }


def test_commas_quotes_and_line_breaks_in_questions_are_read(tmp_path: Path) -> None:
    path = tmp_path / "logic_val.csv"
    path.write_bytes('\ufeffid,question,A,B,C,D,answer\r\n3,"甲说""是"",\n乙说不是","1,2",b,c,d,A\r\n'.encode())
    assert read_questions(path, "ceval") == (Question("3", '甲说"是",\n乙说不是', ("1,2", "b", "c", "d"), "A"),)


@pytest.mark.parametrize(
    ("benchmark", "text", "message"),
    [
        ("ceval", "id,question,A,B,C,D,answer\n0,q,a,b,c,d,E\n", "answer is 'E'"),
        ("ceval", "id,question,A,B,C,answer\n0,q,a,b,c,A\n", "no column D"),
        ("ceval", "id,question,A,B,C,D,answer\n0,q,a,b,c\n", "5 columns under a header of 7"),
        ("ceval", "id,question,A,B,C,D,answer\n", "no questions"),
        ("cmmlu", "Question,A,B,C,D,Answer\nq,a,b,c,d,A\n", "seven columns"),
    ],
)
def test_a_broken_file_is_told_with_its_line(benchmark: Benchmark, text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(BadDataError, match=message):
        read_questions(path, benchmark)


def test_a_folder_without_files_or_with_an_unknown_subject_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match="has no val"):
        load_subjects(tmp_path, "ceval", "val")
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "alchemy_val.csv").write_text("id,question,A,B,C,D,answer\n0,q,a,b,c,d,A\n")
    with pytest.raises(BadDataError, match="alchemy"):
        load_subjects(tmp_path, "ceval", "val")


# ---------------------------------------------------------------- a real model
@pytest.fixture(scope="module")
def starter() -> tuple[Any, Any]:
    return load_dense(STARTER)


@pytest.mark.parametrize("style", STYLES)
def test_log_likelihoods_are_those_of_the_whole_sequence(style: Style, starter: tuple[Any, Any]) -> None:
    model, tokenizer = starter
    prompt = build("ceval", style, SUBJECT, ASKED, 1)
    found = ModelScorer(model, tokenizer, 2048)(prompt.text, prompt.choices)
    expected = []
    for choice in prompt.choices:
        ids = torch.tensor([tokenizer(prompt.text + choice)["input_ids"]])
        with torch.no_grad():
            log_p = model(ids).logits[0].log_softmax(-1)
        expected.append(sum(float(log_p[at, ids[0, at + 1]]) for at in range(ids.shape[1] - 1)))
    # What all four have in common cancels out of their differences.
    differences = [value - found[0] for value in found]
    assert differences == pytest.approx([value - expected[0] for value in expected], abs=1e-3)


def test_a_prompt_that_begins_as_the_last_one_scores_as_if_it_were_the_first(starter: tuple[Any, Any]) -> None:
    model, tokenizer = starter
    prompts = ["Which is larger, 3 or 9?", "Which is larger, 3 or 5?", "Which", "北京", "Which is larger, 3 or 5?"]
    kept = ModelScorer(model, tokenizer, 2048)
    for prompt in prompts:
        fresh = ModelScorer(model, tokenizer, 2048)(prompt, [" 3", " 9", " yes"])
        assert kept(prompt, [" 3", " 9", " yes"]) == pytest.approx(fresh, abs=1e-3)


def test_choices_of_several_tokens_are_summed(starter: tuple[Any, Any]) -> None:
    model, tokenizer = starter
    scorer = ModelScorer(model, tokenizer, 2048)
    long = scorer("The", [" capital of", " xylophone"])
    with torch.no_grad():
        ids = tokenizer("The capital of")["input_ids"]
        log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    start = len(tokenizer("The")["input_ids"])
    assert long[0] == pytest.approx(sum(float(log_p[at - 1, ids[at]]) for at in range(start, len(ids))), abs=1e-3)


def test_the_starter_answers_a_sample_with_real_log_likelihoods(starter: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = starter
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "logic_val.csv").write_bytes((SAMPLES / "ceval" / "val" / "logic_val.csv").read_bytes())
    scorer = ModelScorer(model, tokenizer, 2048)
    found = run(tmp_path, "ceval", scorer, fits=scorer.fits)
    assert found["questions"] == 6
    assert 0 <= found["macro"] <= 100
    assert found["macro"] == pytest.approx(found["micro"])
