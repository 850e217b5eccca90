"""Questions in the files of C-Eval (arXiv 2305.08322) and CMMLU (arXiv 2306.09212), and what their subjects are called.

The benchmarks' own questions may not be shipped (CC BY-NC-SA 4.0): a user gives a folder. compression/data/mcq holds a
few of our own in the same formats. Names and categories of subjects are data: compression/data/mcq/subjects.json.

    C-Eval   {dev,val,test}/{subject}_{split}.csv   columns by name: id,question,A,B,C,D[,answer[,explanation]]
    CMMLU    {dev,test}/{subject}.csv               seven columns by place: (index),Question,A,B,C,D,Answer
"""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from compressor.quality.tokens import DATA, BadDataError

Benchmark = Literal["ceval", "cmmlu"]
SAMPLES = DATA / "mcq"
LETTERS = ("A", "B", "C", "D")


@dataclass(frozen=True, slots=True)
class Question:
    """`options`: texts of A to D. `answer`: a letter, "" where the file keeps it secret (C-Eval's test split)."""

    id: str
    question: str
    options: tuple[str, str, str, str]
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """`name`: in Chinese, as prompts say it. `group`: "Hard" (C-Eval), "China specific" (CMMLU) or None."""

    handle: str
    name: str
    category: str
    group: str | None
    dev: tuple[Question, ...]
    asked: tuple[Question, ...]


def load_subjects(folder: Path, benchmark: Benchmark, split: str) -> list[Subject]:
    """Every subject that has a file in `folder`/`split`, in the benchmark's own order. Raises BadDataError."""
    suffix = f"_{split}" if benchmark == "ceval" else ""
    found = {path.stem.removesuffix(suffix): path for path in sorted((folder / split).glob(f"*{suffix}.csv"))}
    if not found:
        raise BadDataError(f"{folder} has no {split}/*{suffix}.csv: give the folder of {benchmark}'s CSV files")
    known = json.loads((SAMPLES / "subjects.json").read_text("utf-8"))[benchmark]
    if unknown := sorted(found.keys() - known.keys()):
        raise BadDataError(f"{found[unknown[0]]}: {benchmark} has no subject {unknown[0]!r}")
    dev_suffix = "_dev" if benchmark == "ceval" else ""
    subjects = []
    for handle, facts in known.items():
        if handle in found:
            dev = folder / "dev" / f"{handle}{dev_suffix}.csv"
            subjects.append(
                Subject(
                    handle=handle,
                    name=facts["name"],
                    category=facts["category"],
                    group=facts.get("group"),
                    dev=read_questions(dev, benchmark) if dev.is_file() else (),
                    asked=read_questions(found[handle], benchmark),
                )
            )
    return subjects


def read_questions(path: Path, benchmark: Benchmark) -> tuple[Question, ...]:
    """One file. Raises BadDataError with file and line."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            rows = [_question(row, header, benchmark, f"{path}:{reader.line_num}") for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadDataError(f"{path} cannot be read: {error}") from error
    if not rows:
        raise BadDataError(f"{path} has no questions")
    return tuple(rows)


def _question(row: list[str], header: list[str], benchmark: Benchmark, where: str) -> Question:
    if len(row) != len(header):
        raise BadDataError(f"{where}: {len(row)} columns under a header of {len(header)}")
    if benchmark == "cmmlu":
        if len(row) != 7:
            raise BadDataError(f"{where}: CMMLU has seven columns (index,Question,A,B,C,D,Answer), not {len(row)}")
        fields = dict(zip(("id", "question", *LETTERS, "answer"), row, strict=True))
    else:
        fields = dict(zip(header, row, strict=True))
        if missing := {"id", "question", *LETTERS} - fields.keys():
            raise BadDataError(f"{where}: the header has no column {', '.join(sorted(missing))}")
    answer = fields.get("answer", "").strip()
    if answer not in ("", *LETTERS):
        raise BadDataError(f"{where}: the answer is {answer!r}, not one of A, B, C, D")
    a, b, c, d = (fields[letter] for letter in LETTERS)
    return Question(fields["id"], fields["question"], (a, b, c, d), answer)
