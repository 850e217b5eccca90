"""Text into windows of tokens, and where the windows came from: the part of a perplexity that decides what it means."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compressor.errors import CompressorError

DATA = Path(__file__).parents[2] / "data"
PROSE = DATA / "prose.txt"
# The starter was trained on rows of this length; longer windows would measure positions it never saw.
PROSE_CTX = 256
JOIN = "\n\n"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")


class BadDataError(CompressorError):
    """Text, tasks or questions to measure by that cannot be used: the message names file and line."""


@dataclass(frozen=True, slots=True)
class Text:
    """`dataset`, `split`: what it is called in the protocol; `join`: what stands between its pieces."""

    dataset: str
    split: str
    text: str
    join: str = JOIN


@dataclass(frozen=True, slots=True)
class Protocol:
    """Everything that must be equal for two perplexities to be comparable. `ctx`, `stride`: tokens.

    `bos`: "once" where the tokenizer puts a beginning token before the whole text (OPT, Llama), else "none".
    `tokens`: of the windows, the first of each being read and not scored.
    """

    dataset: str
    split: str
    ctx: int
    stride: int
    bos: str
    join: str
    tokenizer_hash: str
    tokens: int
    text_sha256: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def shipped_prose() -> Text:
    """Held-out documentation of Python's standard library."""
    return Text("penstock-prose", "held-out", read_text(PROSE))


def read_file(path: Path) -> Text:
    """A file of the user's: text as it is, or JSON lines of {"text"} joined by an empty line. Raises BadDataError.

    WikiText-2 in GPTQ's protocol is the raw test split's lines joined by an empty line.
    """
    text = read_text(path)
    if path.suffix == ".jsonl":
        try:
            text = JOIN.join(str(json.loads(line)["text"]) for line in text.splitlines() if line.strip())
        except (ValueError, KeyError, TypeError) as error:
            raise BadDataError(f'{path}: a row is {{"text": "..."}}: {error!r}') from error
    return Text(path.stem, "user's file", text)


def read_text(path: Path) -> str:
    """Raises BadDataError."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadDataError(f"{path} cannot be read: {error}") from error
    if not text.strip():
        raise BadDataError(f"{path} is empty")
    return text


def windows(tokenizer: Any, text: Text, ctx: int, folder: Path) -> tuple[Tensor, Protocol]:
    """GPTQ's protocol (arXiv 2210.17323, section 4): tokenize the joined text once, cut it into windows of `ctx`
    tokens that do not overlap, drop the tail. Returns ids [windows, ctx] and the protocol. Raises BadDataError.
    """
    ids: list[int] = tokenizer(text.text, verbose=False)["input_ids"]
    count = len(ids) // ctx
    if count == 0 or ctx < 2:
        raise BadDataError(
            f"{text.dataset} has {len(ids)} tokens, not one window of {ctx}: give more text or a shorter --ctx"
        )
    has_bos = tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
    protocol = Protocol(
        dataset=text.dataset,
        split=text.split,
        ctx=ctx,
        stride=ctx,
        bos="once" if has_bos else "none",
        join=text.join,
        tokenizer_hash=tokenizer_hash(folder),
        tokens=count * ctx,
        text_sha256=hashlib.sha256(text.text.encode()).hexdigest(),
    )
    return torch.tensor(ids[: count * ctx]).view(count, ctx), protocol


def tokenizer_hash(folder: Path) -> str:
    """Of the file or files that decide how text is cut."""
    digest = hashlib.sha256()
    for name in _TOKENIZER_FILES:
        if (folder / name).is_file():
            digest.update((folder / name).read_bytes())
            if name in ("tokenizer.json", "tokenizer.model"):
                break
    return digest.hexdigest()
