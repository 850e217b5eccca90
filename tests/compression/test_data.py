"""The data files that ship are what their command writes, and what is measured by was never trained on."""

import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import pytest

from compressor.calibration import load_rows, load_tokenizer
from compressor.quality.tokens import DATA
from compressor.recipe import CalibrationSettings
from starter import STARTER
from starter_model import corpus, datasets, prose

MANIFEST = json.loads((DATA / "manifest.json").read_text("utf-8"))
IS_SAME_PYTHON = platform.python_version() == MANIFEST["python"]


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text("utf-8").splitlines()]


@pytest.mark.parametrize("name", MANIFEST["files"])
def test_a_file_is_the_one_that_was_written(name: str) -> None:
    assert hashlib.sha256((DATA / name).read_bytes()).hexdigest() == MANIFEST["files"][name]["sha256"]


@pytest.mark.matrix  # reads the whole standard library
@pytest.mark.skipif(not IS_SAME_PYTHON, reason="the prose is another Python's documentation")
def test_the_command_writes_the_same_files_again(tmp_path: Path) -> None:
    assert datasets.write(tmp_path, MANIFEST["seed"]) == MANIFEST


def test_tasks_do_not_depend_on_the_python_and_are_held_out() -> None:
    assert datasets.task_rows(MANIFEST["seed"]) == rows("tasks.jsonl")
    asked = {row["family"] for row in rows("tasks.jsonl")}
    assert asked == set(corpus.FAMILIES)


def test_no_task_is_among_the_calibration_rows() -> None:
    """Whole conversations; closed tables are known by heart, and their entries are asked in any wording."""
    seen = {spoken(row["messages"][:-1]) for row in rows("calibration.jsonl") if "messages" in row}
    asked = {spoken(row["messages"]) for row in rows("tasks.jsonl") if row["family"] not in corpus.CLOSED}
    assert len(seen) > 300
    assert len(asked) > 1000
    assert not seen & asked


def spoken(messages: list[dict[str, Any]]) -> str:
    return json.dumps([message for message in messages if message["role"] != "system"])


def test_no_calibration_prose_is_in_the_prose_to_measure_by() -> None:
    held_out = (DATA / "prose.txt").read_text("utf-8")
    texts = [row["text"] for row in rows("calibration.jsonl") if "text" in row]
    assert len(texts) > 100
    assert not any(text in held_out for text in texts)
    assert not any(prose.held_out(text) for text in texts)


def test_calibration_mixes_tasks_and_prose_and_fills_the_default_windows() -> None:
    kinds = ["text" in row for row in rows("calibration.jsonl")]
    assert 0.2 < sum(kinds) / len(kinds) < 0.5
    _, used = load_rows(CalibrationSettings(), load_tokenizer(STARTER), 2048)
    assert (used.samples, used.tokens) == (128, 128 * 512)
