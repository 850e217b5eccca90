"""Measure an exported checkpoint: accuracy per family, perplexity with its protocol, acceptance of a draft.

Accuracy is greedy exact match. Greedy decoding gives the reference answer if and only if, fed the reference, the
model's best token is right at every place; so one forward pass decides. A right answer in another tokenization
counts as wrong.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from . import chat, corpus, prose
from .batches import encode_example, encode_prose
from .checkpoint import load_model
from .example import Example
from .model import Qwen3
from .tokenizer import load_tokenizer, token_id

WINDOW = 256
PROSE_PROMPTS, PROSE_PROMPT_TOKENS, PROSE_NEW_TOKENS = 12, 48, 48
PROPOSED = 4
PERPLEXITY_PROTOCOL = (
    f"held-out standard-library documentation, pieces joined by <|endoftext|>, windows of {WINDOW} tokens without "
    "overlap, the first token of a window not scored; float32 arithmetic on the bfloat16 weights"
)


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in memory, in float32."""

    model: Qwen3
    tokenizer: Tokenizer


def load(folder: Path) -> Loaded:
    return Loaded(load_model(folder), load_tokenizer(folder))


def evaluate(folder: Path, *, seed: int, limit: int) -> dict[str, Any]:
    """The quality report of one checkpoint: plain JSON values."""
    loaded = load(folder)
    families: dict[str, Any] = {}
    nats = tokens = 0.0
    for family in corpus.FAMILIES:
        right, examples, family_nats, family_tokens = _family(loaded, corpus.evaluation_set(family, seed, limit))
        nats, tokens = nats + family_nats, tokens + family_tokens
        families[family] = {
            "accuracy": round(right / examples, 4),
            "examples": examples,
            "closed": family in corpus.CLOSED,
        }
    left_out = {}
    for family in corpus.LEFT_OUT:
        right, examples, _, _ = _family(loaded, corpus.evaluation_set(family, seed, limit))
        left_out[family] = {"accuracy": round(right / examples, 4), "examples": examples}
    return {
        "seed": seed,
        "families": families,
        "mean_accuracy": round(sum(f["accuracy"] for f in families.values()) / len(families), 4),
        "left_out": left_out,
        "answer_perplexity": round(math.exp(nats / tokens), 4),
        "prose": prose_perplexity(loaded),
        "protocol": "held-out problems (1 in 16 by hash), greedy, exact match of the whole answer, no system prompt",
    }


def _family(loaded: Loaded, examples: list[Example]) -> tuple[int, int, float, int]:
    """(right, all, nats on answers, tokens of answers). Raises ValueError on an empty family."""
    if not examples:
        raise ValueError("a family without held-out examples cannot be measured")
    right, nats, tokens = 0, 0.0, 0
    for example in examples:
        ids, weights = encode_example(loaded.tokenizer, example)
        answer = sum(weight == 1.0 for weight in weights)
        logits = logits_of(loaded.model, ids)[-answer - 1 : -1]
        wanted = torch.tensor(ids[-answer:])
        right += int((logits.argmax(-1) == wanted).all())
        nats += float(F.cross_entropy(logits, wanted, reduction="sum"))
        tokens += answer
    return right, len(examples), nats, tokens


def right_answers(loaded: Loaded, examples: list[Example]) -> int:
    """How many are answered exactly, word for word."""
    return _family(loaded, examples)[0]


@torch.no_grad()
def logits_of(model: Qwen3, ids: list[int]) -> Tensor:
    """logits_LV of one sequence."""
    out: Tensor = model(torch.tensor([ids]))[0]
    return out


@torch.no_grad()
def prose_perplexity(loaded: Loaded) -> dict[str, Any]:
    """Perplexity per token and bits per byte: the second can be compared between tokenizers."""
    _, held_out = prose.split()
    ids = torch.from_numpy(encode_prose(loaded.tokenizer, held_out))
    windows = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)
    nats = 0.0
    for rows in windows.split(8):
        logits = loaded.model(rows[:, :-1])
        nats += float(F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum"))
    scored = windows[:, 1:].flatten().tolist()
    size_bytes = len(loaded.tokenizer.decode(scored).encode())
    return {
        "perplexity": round(math.exp(nats / len(scored)), 3),
        "bits_per_byte": round(nats / math.log(2) / size_bytes, 4),
        "tokens": len(scored),
        "protocol": PERPLEXITY_PROTOCOL,
    }


@torch.no_grad()
def generate(loaded: Loaded, prompt: str, max_tokens: int) -> list[int]:
    """Greedy tokens after a rendered prompt, <|im_end|> included when it comes. Without a KV cache: for short texts."""
    ids = loaded.tokenizer.encode(prompt, add_special_tokens=False).ids
    end = token_id(loaded.tokenizer, chat.IM_END)
    made: list[int] = []
    while len(made) < max_tokens and (not made or made[-1] != end):
        made.append(int(logits_of(loaded.model, ids + made)[-1].argmax()))
    return made


def answer(loaded: Loaded, messages: list[dict[str, Any]], tools: list[dict[str, Any]], max_tokens: int = 128) -> str:
    """The model's answer as text, without the final <|im_end|>."""
    made = generate(loaded, chat.render_prompt(messages, tools), max_tokens)
    return str(loaded.tokenizer.decode(made)).replace(chat.IM_END, "")


def acceptance(target: Loaded, draft: Loaded, *, seed: int, per_family: int) -> dict[str, Any]:
    """How well the draft guesses the target's greedy tokens, PROPOSED at a time.

    A proposal after accepted tokens sees the target's own text, so the draft's best token at every place of that
    text decides every round: no second decoding loop is needed.
    """
    tasks = [
        chat.render_prompt(example.messages, example.tools)
        for family in corpus.FAMILIES
        for example in corpus.evaluation_set(family, seed, per_family)
    ]
    _, held_out = prose.split()
    starts = [target.tokenizer.encode(piece, add_special_tokens=False).ids[:PROSE_PROMPT_TOKENS] for piece in held_out]
    texts = [target.tokenizer.decode(ids) for ids in starts[:: max(1, len(starts) // PROSE_PROMPTS)]]
    return {
        "proposed_tokens": PROPOSED,
        "tasks": _acceptance(target, draft, tasks, 64),
        "prose": _acceptance(target, draft, texts, PROSE_NEW_TOKENS),
        "protocol": f"greedy, {per_family} held-out prompts per family; {len(texts)} held-out prose prompts of "
        f"{PROSE_PROMPT_TOKENS} tokens with {PROSE_NEW_TOKENS} new tokens",
    }


def _acceptance(target: Loaded, draft: Loaded, prompts: list[str], max_tokens: int) -> dict[str, Any]:
    accepted = proposed = rounds = produced = 0
    for prompt in prompts:
        made = generate(target, prompt, max_tokens)
        ids = target.tokenizer.encode(prompt, add_special_tokens=False).ids
        guesses = logits_of(draft.model, ids + made)[len(ids) - 1 : -1].argmax(-1).tolist()
        a, p, r = rounds_of([guess == token for guess, token in zip(guesses, made, strict=True)], PROPOSED)
        accepted, proposed, rounds, produced = accepted + a, proposed + p, rounds + r, produced + len(made)
    return {"rate": round(accepted / proposed, 4), "tokens_per_round": round(produced / rounds, 3)}


def rounds_of(hits: list[bool], proposed: int) -> tuple[int, int, int]:
    """(accepted, proposed, rounds) of greedy speculation over a text where `hits` says whether the draft is right.

    A round proposes up to `proposed` tokens (no more than are left), keeps those before the first miss, and adds one
    token of the target itself.
    """
    accepted = offered = rounds = place = 0
    while place < len(hits):
        window = hits[place : place + proposed]
        kept = next((i for i, hit in enumerate(window) if not hit), len(window))
        accepted, offered, rounds = accepted + kept, offered + len(window), rounds + 1
        place += kept + 1
    return accepted, offered, rounds
