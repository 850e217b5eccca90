"""Calibration rows: seeded windows of tokens, and the line of what cannot be used."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.calibration import load_rows, load_tokenizer
from compressor.errors import BadCalibrationError, BadCheckpointError
from compressor.recipe import CalibrationSettings
from starter import STARTER


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(STARTER)


def settings(path: Path | None = None, **values: Any) -> CalibrationSettings:
    return CalibrationSettings(file=path, **{"samples": 6, "seq_len": 16, "seed": 0, **values})


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def test_the_sample_that_ships_gives_the_windows_asked_for(tokenizer: Any) -> None:
    rows, used = load_rows(settings(samples=20, seq_len=64), tokenizer, 2048)
    ids = torch.cat([batch.ids_BT for batch in rows])
    assert ids.shape == (20, 64)
    assert used.tokens == 20 * 64
    assert all(bool(batch.real_BT.all()) for batch in rows)


def test_the_seed_decides_which_rows_are_seen(tokenizer: Any) -> None:
    first, again, other = (load_rows(settings(seed=seed), tokenizer, None)[0][0].ids_BT for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_chat_rows_go_through_the_chat_template_and_end(tokenizer: Any, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "What is 1 + 1?"}, {"role": "assistant", "content": "2"}]
    path = write(tmp_path / "rows.jsonl", *[{"messages": chat}] * 8)
    rows, _ = load_rows(settings(path, samples=1), tokenizer, None)
    text = tokenizer.decode(rows[0].ids_BT[0])
    assert "<|user|>" in text
    assert tokenizer.eos_token in text


def test_a_row_longer_than_a_window_goes_on_in_the_next(tokenizer: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"text": "one two three four five six seven eight nine ten " * 40})
    rows, used = load_rows(settings(path, samples=4, seq_len=32), tokenizer, None)
    assert used.samples == 4
    expected = tokenizer("one two three four five six seven eight nine ten " * 40, add_special_tokens=False)
    assert rows[0].ids_BT.reshape(-1).tolist() == expected["input_ids"][:128]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"text": "fine"}, "{broken"], "rows.jsonl:2: not JSON"),
        ([{"text": "fine"}, "", {"text": "fine"}], "rows.jsonl:2: the row is empty"),
        ([{"text": ""}], "rows.jsonl:1: a row is .* not empty"),
        ([{"messages": []}], "rows.jsonl:1: a row is .* not empty"),
        (["[1, 2]"], "rows.jsonl:1: a row is"),
        ([{"text": 5}], "rows.jsonl:1: text is no string"),
        ([{"messages": [{"role": "user"}]}], "rows.jsonl:1: messages is a list of {role, content}"),
        ([{"messages": [{"role": "user", "content": 1}]}], "rows.jsonl:1: messages is a list of {role, content}"),
        ([], "has no rows"),
        ([{"text": "too short"}], "not even one window of 16: add rows, or lower calibration.seq_len"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tokenizer: Any, tmp_path: Path, rows: list[object], words: str) -> None:
    with pytest.raises(BadCalibrationError, match=words):
        load_rows(settings(write(tmp_path / "rows.jsonl", *rows)), tokenizer, None)


def test_a_row_that_the_chat_template_refuses_is_named(tmp_path: Path) -> None:
    strict = load_tokenizer(STARTER)
    strict.chat_template = "{{ raise_exception('no system role here') }}"
    path = write(tmp_path / "rows.jsonl", {"messages": [{"role": "system", "content": "x"}]})
    with pytest.raises(BadCalibrationError, match=r"rows.jsonl:1: the chat template refuses .*no system role here"):
        load_rows(settings(path), strict, None)


def test_a_window_longer_than_the_context_is_refused(tokenizer: Any) -> None:
    with pytest.raises(BadCalibrationError, match="seq_len is 4096, and the model's context is 2048"):
        load_rows(settings(seq_len=4096), tokenizer, 2048)


def test_a_checkpoint_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpointError, match="has no tokenizer"):
        load_tokenizer(tmp_path)
