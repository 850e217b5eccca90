"""Calibration rows: from a file of JSON lines to windows of tokens, seeded, with what was used written down."""

import hashlib
import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from compressor.errors import BadCalibrationError, BadCheckpointError
from compressor.passes import Rows
from compressor.recipe import CalibrationSettings

SHIPPED = Path(__file__).parents[1] / "data" / "calibration.jsonl"
# Windows that go through a block together: 8,192 tokens keep a 4096-wide MLP's activations below half a gigabyte.
BATCH_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Used:
    """What the manifest says of the data. `rows`: in the file; `samples`: windows made of them."""

    file: str
    sha256: str
    rows: int
    samples: int
    seq_len: int
    tokens: int
    seed: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def load_tokenizer(folder: Path) -> Any:
    """The checkpoint's tokenizer. Raises BadCheckpointError."""
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise BadCheckpointError(
            f"{folder} has no tokenizer (tokenizer.json): copy it from the checkpoint it was made of"
        )
    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the library raises whatever its parsers do
        raise BadCheckpointError(f"the tokenizer of {folder} cannot be loaded: {error}") from error


def load_rows(settings: CalibrationSettings, tokenizer: Any, context: int | None) -> tuple[list[Rows], Used]:
    """Batches of windows, all of `seq_len` tokens. Raises BadCalibrationError with file and line."""
    path = settings.file or SHIPPED
    if context is not None and settings.seq_len > context:
        raise BadCalibrationError(
            f"calibration.seq_len is {settings.seq_len}, and the model's context is {context} tokens: lower it"
        )
    rows = _read(path)
    order = list(range(len(rows)))
    random.Random(settings.seed).shuffle(order)  # noqa: S311 - an order, no secret
    wanted = settings.samples * settings.seq_len
    tokens: list[int] = []
    for number in order:
        if len(tokens) >= wanted:
            break
        tokens += _tokens(rows[number], tokenizer, path)
    samples = min(settings.samples, len(tokens) // settings.seq_len)
    if samples == 0:
        raise BadCalibrationError(
            f"{path} has {len(tokens)} tokens, not even one window of {settings.seq_len}: "
            "add rows, or lower calibration.seq_len"
        )
    ids = torch.tensor(tokens[: samples * settings.seq_len]).reshape(samples, settings.seq_len)
    step = max(1, BATCH_TOKENS // settings.seq_len)
    batches = [Rows(part, torch.ones_like(part, dtype=torch.bool)) for part in ids.split(step)]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return batches, Used(path.name, digest, len(rows), samples, settings.seq_len, ids.numel(), settings.seed)


@dataclass(frozen=True, slots=True)
class _Row:
    line: int
    value: dict[str, Any]


def _read(path: Path) -> list[_Row]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadCalibrationError(f"{path} cannot be read: {error}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise BadCalibrationError(f"{path}:{number}: the row is empty")
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadCalibrationError(f"{path}:{number}: not JSON: {error}") from error
        if not isinstance(value, dict) or not (value.get("messages") or value.get("text")):
            raise BadCalibrationError(
                f'{path}:{number}: a row is {{"messages": [...]}} or {{"text": "..."}}, not empty'
            )
        rows.append(_Row(number, value))
    if not rows:
        raise BadCalibrationError(f"{path} has no rows")
    return rows


def _tokens(row: _Row, tokenizer: Any, path: Path) -> list[int]:
    """A row's tokens and the end token, so that joined rows do not run into each other."""
    messages = row.value.get("messages")
    if messages is not None and not _are_messages(messages):
        raise BadCalibrationError(f"{path}:{row.line}: messages is a list of {{role, content}}, both text")
    try:
        text = row.value.get("text") or tokenizer.apply_chat_template(
            messages, tools=row.value.get("tools"), tokenize=False
        )
    except Exception as error:  # a template raises whatever it likes
        raise BadCalibrationError(f"{path}:{row.line}: the chat template refuses its messages: {error}") from error
    if not isinstance(text, str):
        raise BadCalibrationError(f"{path}:{row.line}: text is no string")
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    end = tokenizer.eos_token_id
    return ids if end is None or (ids and ids[-1] == end) else [*ids, end]


def _are_messages(value: Any) -> bool:
    parts = value if isinstance(value, list) else [None]
    return all(isinstance(part, dict) and isinstance(part.get("content"), str) and part.get("role") for part in parts)
