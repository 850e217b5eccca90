"""Multiple choice by log-likelihood: which of the letters A to D does the model find most likely after the question?

Two averages are in use and differ: macro (the mean over subjects; the benchmarks and OpenCompass) and micro (the mean
over questions; lm-evaluation-harness's ceval-valid). Both are reported under these names.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from compressor.quality.prompts import Style, build
from compressor.quality.questions import LETTERS, Benchmark, Subject, load_subjects

# Log-likelihoods of continuations of a prompt.
Scorer = Callable[[str, Sequence[str]], list[float]]


@dataclass(frozen=True, slots=True)
class Counted:
    """Right answers of a subject."""

    subject: Subject
    right: int
    asked: int

    @property
    def accuracy(self) -> float:
        return self.right / self.asked


class ModelScorer:
    """Log-likelihoods by a model in memory. `most_tokens`: its context; what is longer loses its beginning.

    Keys and values of the last prompt are kept: questions of a subject begin with the same examples.
    """

    def __init__(self, model: torch.nn.Module, tokenizer: Any, most_tokens: int) -> None:
        self._model, self._tokenizer, self._most_tokens = model, tokenizer, most_tokens
        self._device = next(model.parameters()).device
        self._seen: list[int] = []
        self._cache: Any = None

    def fits(self, prompt: str) -> bool:
        """Whether a prompt and a letter (two tokens, should it be spelled so) are within the context."""
        return len(self._ids(prompt)) + 2 <= self._most_tokens

    @torch.inference_mode()
    def __call__(self, prompt: str, choices: Sequence[str]) -> list[float]:
        """ln P(choice | prompt). Where a choice merges with the prompt's end into one token, that token is compared."""
        wholes = [self._ids(prompt + choice)[-self._most_tokens :] for choice in choices]
        shared = _shared(wholes)
        if all(len(whole) == shared + 1 for whole in wholes):
            log_p_V = self._log_p(wholes[0][:shared], 1)[-1]
            return [float(log_p_V[whole[-1]]) for whole in wholes]
        return [self._tail(whole, shared) for whole in wholes]

    def _tail(self, ids: list[int], start: int) -> float:
        log_p_TV = self._log_p(ids[:-1], len(ids) - start)
        return sum(float(log_p_V[token]) for log_p_V, token in zip(log_p_TV, ids[start:], strict=True))

    def _log_p(self, ids: list[int], keep: int) -> torch.Tensor:
        """ln P of what follows each of the last `keep` tokens, [keep, vocabulary]."""
        from transformers import DynamicCache

        known = min(_shared([ids, self._seen]), len(ids) - keep) if self._seen else 0
        if known > 0:
            self._cache.crop(known)
        else:
            known, self._cache = 0, DynamicCache()
        out = self._model(
            input_ids=torch.tensor([ids[known:]], device=self._device),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        self._seen = ids
        log_p: torch.Tensor = out.logits[0].float().log_softmax(-1)
        return log_p

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, verbose=False)["input_ids"]
        return ids


def run(
    folder: Path,
    benchmark: Benchmark,
    scorer: Scorer,
    *,
    style: Style = "official",
    split: str | None = None,
    shots: int = 5,
    fits: Callable[[str], bool] = lambda _: True,
) -> dict[str, Any]:
    """Ask everything in `folder`; `split`: "val" (C-Eval) or "test" (CMMLU) unless said.

    Returns macro and micro averages in per cent, categories, groups, subjects, and `submission`: every letter chosen,
    {subject: {id: letter}}, which is C-Eval's submission file. A split without answers has only the last. Raises
    BadDataError.
    """
    split = split or {"ceval": "val", "cmmlu": "test"}[benchmark]
    subjects = load_subjects(folder, benchmark, split)
    submission: dict[str, dict[str, str]] = {}
    dropped = 0
    for subject in subjects:
        chosen = submission.setdefault(subject.handle, {})
        for question in subject.asked:
            prompt = build(benchmark, style, subject, question, shots, fits)
            dropped += min(shots, len(subject.dev)) - prompt.shots
            scores = scorer(prompt.text, prompt.choices)
            chosen[question.id] = LETTERS[max(range(len(LETTERS)), key=scores.__getitem__)]
    counts = [_count(subject, submission[subject.handle]) for subject in subjects]
    protocol = {
        "benchmark": benchmark,
        "split": split,
        "prompt_style": style,
        "shots": shots,
        "shots_left_out": dropped,
        "scoring": "log-likelihood of A, B, C, D",
        "subjects": len(subjects),
    }
    return averages([count for count in counts if count is not None]) | {
        "submission": submission,
        "protocol": protocol,
    }


def averages(counts: Sequence[Counted]) -> dict[str, Any]:
    """In per cent. Categories and groups are macro averages of their subjects; {} without answers."""
    if not counts:
        return {}
    return {
        "macro": _macro(counts),
        "micro": 100 * sum(count.right for count in counts) / sum(count.asked for count in counts),
        "categories": _by(counts, lambda subject: subject.category),
        "groups": _by([count for count in counts if count.subject.group], lambda subject: subject.group or ""),
        "by_subject": {
            count.subject.handle: {"accuracy": 100 * count.accuracy, "questions": count.asked} for count in counts
        },
        "questions": sum(count.asked for count in counts),
    }


def _count(subject: Subject, chosen: Mapping[str, str]) -> Counted | None:
    answered = [question for question in subject.asked if question.answer]
    if not answered:
        return None
    return Counted(subject, sum(chosen[question.id] == question.answer for question in answered), len(answered))


def _macro(counts: Iterable[Counted]) -> float:
    return 100 * fmean(count.accuracy for count in counts)


def _by(counts: Sequence[Counted], key: Callable[[Subject], str]) -> dict[str, float]:
    names = dict.fromkeys(key(count.subject) for count in counts)
    return {name: _macro(count for count in counts if key(count.subject) == name) for name in names}


def _shared(wholes: Sequence[Sequence[int]]) -> int:
    """Tokens that all have in common at the beginning; at least one of each is left over."""
    most = min(map(len, wholes)) - 1
    return next((at for at in range(most) if len({whole[at] for whole in wholes}) > 1), most)
