"""Exact answers on held-out problems: the whole greedy answer, word for word, or it is wrong. By family, then the mean
over families, so that a family with many rows weighs no more than one with few.
"""

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compressor.quality.tokens import DATA, BadDataError

TASKS = DATA / "tasks.jsonl"
BATCH_ROWS = 64
# An answer may be spelled in more tokens than the tokenizer's own spelling of it, and must be ended.
SPARE_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Task:
    """One problem: a conversation (and tools) and the one right answer."""

    family: str
    messages: list[dict[str, Any]]
    answer: str
    tools: list[dict[str, Any]] | None = None


def load_tasks(path: Path, per_family: int, seed: int) -> list[Task]:
    """At most `per_family` rows of each family, chosen by `seed`. Raises BadDataError with file and line."""
    families: dict[str, list[Task]] = {}
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadDataError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            task = Task(str(row["family"]), list(row["messages"]), str(row["answer"]), row.get("tools"))
        except (ValueError, KeyError, TypeError) as error:
            raise BadDataError(f'{path}:{number}: a row is {{"family", "messages", "answer"}}: {error!r}') from error
        families.setdefault(task.family, []).append(task)
    if not families:
        raise BadDataError(f"{path} has no rows")
    dice = random.Random(seed)  # noqa: S311 - a choice of rows, no secret
    return [task for rows in families.values() for task in dice.sample(rows, min(per_family, len(rows)))]


def accuracy(model: torch.nn.Module, tokenizer: Any, tasks: Sequence[Task]) -> dict[str, float]:
    """The share of right answers of each family."""
    right: dict[str, list[bool]] = {}
    for task, answer in zip(tasks, answers(model, tokenizer, tasks), strict=True):
        right.setdefault(task.family, []).append(answer == task.answer)
    return {family: sum(found) / len(found) for family, found in right.items()}


def answers(model: torch.nn.Module, tokenizer: Any, tasks: Sequence[Task]) -> list[str | None]:
    """The greedy answer to each task without its end token and outer spaces; None where it had not ended in time."""
    prompts = [_prompt(tokenizer, task) for task in tasks]
    limits = [len(tokenizer(f" {task.answer}", add_special_tokens=False)["input_ids"]) + SPARE_TOKENS for task in tasks]
    ends = end_tokens(model, tokenizer)
    found: list[str | None] = [None] * len(tasks)
    # Rows of like length go together: the longest answer of a batch decides how many steps it takes.
    order = sorted(range(len(tasks)), key=lambda row: (limits[row], len(prompts[row])))
    for start in range(0, len(order), BATCH_ROWS):
        rows = order[start : start + BATCH_ROWS]
        made = greedy(model, [prompts[row] for row in rows], max(limits[row] for row in rows), ends)
        for row, ids in zip(rows, made, strict=True):
            has_ended = bool(ids) and ids[-1] in ends
            found[row] = tokenizer.decode(ids[:-1]).strip() if has_ended else None
    return found


@torch.inference_mode()
def greedy(
    model: torch.nn.Module, prompts: Sequence[list[int]], most_tokens: int, ends: frozenset[int]
) -> list[list[int]]:
    """The best next tokens of each prompt until an end token (which is kept) or `most_tokens`.

    One batch with a key/value cache; prompts are padded on the left, so that every row's next token is the last column.
    """
    device = next(model.parameters()).device
    ids_BT, mask_BT = _padded(prompts, device)
    made: list[list[int]] = [[] for _ in prompts]
    live = set(range(len(prompts)))
    cache = None
    positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
    for _ in range(most_tokens):
        out = model(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            position_ids=positions_BT,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = out.past_key_values
        next_B = out.logits[:, -1].argmax(-1)
        for row in tuple(live):
            made[row].append(int(next_B[row]))
            if made[row][-1] in ends:
                live.remove(row)
        if not live:
            break
        ids_BT = next_B[:, None]
        mask_BT = torch.cat((mask_BT, mask_BT.new_ones(len(prompts), 1)), dim=1)
        positions_BT = positions_BT[:, -1:] + 1
    return made


def end_tokens(model: torch.nn.Module, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer: the tokenizer's and those of generation_config.json."""
    told = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several: Iterable[int | None] = told if isinstance(told, list) else [told]
    return frozenset(token for token in (*several, tokenizer.eos_token_id) if token is not None)


def _prompt(tokenizer: Any, task: Task) -> list[int]:
    text = tokenizer.apply_chat_template(task.messages, tools=task.tools, add_generation_prompt=True, tokenize=False)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _padded(prompts: Sequence[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    longest = max(map(len, prompts))
    ids_BT = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask_BT = torch.zeros_like(ids_BT)
    for row, prompt in enumerate(prompts):
        ids_BT[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask_BT[row, longest - len(prompt) :] = 1
    return ids_BT.to(device), mask_BT.to(device)
