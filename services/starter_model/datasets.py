"""Data files for programs that work on the starter model without knowing its recipe: what the compressor looks at and
what it measures by. Calibration comes from the training side, everything measured from the held-out side.

    calibration.jsonl  {"messages": [...]} with the answer as the last turn (and "tools"), or {"text": ...} prose
    tasks.jsonl        {"family", "messages", "answer"} (and "tools"): held-out problems, every trained family
    prose.txt          held-out documentation, pieces with an empty line between them
    manifest.json      what the files above are: rows, sha256, seed, Python (whose documentation the prose is)
"""

import hashlib
import json
import platform
from itertools import islice
from pathlib import Path
from typing import Any

from . import corpus, prose
from .example import Example, dice

CALIBRATION_TASKS, CALIBRATION_PROSE = 384, 160
PROSE_AT_LEAST = 500  # characters: a scrap of prose teaches little, and rows are few
TASKS_PER_FAMILY = 50
PROSE_CHARACTERS = 130_000
MANIFEST = "manifest.json"


def write(folder: Path, seed: int) -> dict[str, Any]:
    """Write all files into `folder`; returns the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "calibration.jsonl": _lines(calibration_rows(seed)),
        "tasks.jsonl": _lines(task_rows(seed)),
        "prose.txt": held_out_prose(seed),
    }
    files = {}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
        files[name] = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "lines": text.count("\n")}
    manifest = {
        "written_by": "python -m starter_model datasets",
        "seed": seed,
        "python": platform.python_version(),
        "prose_license": "PSF-2.0 (documentation of the Python standard library)",
        "files": files,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def calibration_rows(seed: int) -> list[dict[str, Any]]:
    """Training examples and training prose, shuffled together: with examples alone, prose would suffer."""
    rng = dice("datasets", "calibration", seed)
    rows = [_answered(example) for example in islice(_training(seed), CALIBRATION_TASKS)]
    training, _ = prose.split()
    long = [piece for piece in training if len(piece) >= PROSE_AT_LEAST]
    rows += [{"text": piece} for piece in rng.sample(long, CALIBRATION_PROSE)]
    rng.shuffle(rows)
    return rows


def task_rows(seed: int) -> list[dict[str, Any]]:
    """Held-out problems of every family, as many as there are up to a limit."""
    return [
        {"family": family, **_conversation(example), "answer": example.answer}
        for family in corpus.FAMILIES
        for example in corpus.evaluation_set(family, seed, TASKS_PER_FAMILY)
    ]


def held_out_prose(seed: int) -> str:
    """A seeded choice of held-out pieces."""
    _, pieces = prose.split()
    dice("datasets", "prose", seed).shuffle(pieces)
    kept, size = [], 0
    for piece in pieces:
        kept.append(piece)
        size += len(piece)
        if size >= PROSE_CHARACTERS:
            break
    return "\n\n".join(kept) + "\n"


def _training(seed: int) -> Any:
    return corpus.training_stream(dice("datasets", "training", seed), corpus.weights({}))


def _conversation(example: Example) -> dict[str, Any]:
    tools = {"tools": list(example.tools)} if example.tools else {}
    return {"messages": list(example.messages), **tools}


def _answered(example: Example) -> dict[str, Any]:
    row = _conversation(example)
    row["messages"] = [*row["messages"], {"role": "assistant", "content": example.answer}]
    return row


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
