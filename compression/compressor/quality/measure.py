"""What a checkpoint lost: every figure the same way every time, each with the protocol that it depends on.

perplexity  of held-out prose (or a user's text), GPTQ's protocol
accuracy    exact answers on held-out tasks, for models that were taught them (the starter and what is made of it)
kl          mean KL(parent‖child) of next-token distributions on the first windows of the same text
agreement   share of places where parent and child find the same token best, on the same windows
parent      its own perplexity and accuracy
ceval, cmmlu   on a user's files
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compressor.calibration import load_tokenizer
from compressor.checkpoint.manifest import base_model_of, parameters_of, sha256
from compressor.export.gguf_source import gguf_of
from compressor.quality import multiple_choice, tasks, tokens
from compressor.quality.dense import DenseSource
from compressor.quality.divergence import Divergence, Surprise
from compressor.quality.kept import Kept
from compressor.quality.load import load_dense
from compressor.quality.perplexity import logits_in_memory, streamed_logits
from compressor.quality.prompts import Style
from compressor.quality.questions import Benchmark
from compressor.screen import Screen

# Who was taught the families of tasks.jsonl: to ask others would say nothing, and take long.
TAUGHT = ("starter", "starter-draft")
SPARE_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured. `text`: None for the shipped prose; `ctx`: None for 256 there, else 2,048 or the model's own
    context; `per_family`: rows of each family of tasks; `kl_windows`: of `ctx` tokens; `seed`: of the choice of rows.
    `memory_bytes`: above which a model is taken block by block; None for four fifths of what is free."""

    text: Path | None = None
    ctx: int | None = None
    per_family: int = 20
    kl_windows: int = 64
    seed: int = 0
    ceval: Path | None = None
    cmmlu: Path | None = None
    style: Style = "official"
    memory_bytes: int | None = None


@dataclass(slots=True)
class _Measured:
    """A checkpoint under measurement: in memory, or block by block where `model` is None."""

    folder: Path
    tokenizer: Any
    model: Any
    device: torch.device
    screen: Screen
    surprise: Surprise = field(default_factory=Surprise)

    def logits(self, ids_WT: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        if self.model is not None:
            return logits_in_memory(self.model, ids_WT)
        return streamed_logits(DenseSource(self.folder), ids_WT, self.screen, self.device)


def measure(
    folder: Path,
    parent: Path | None,
    screen: Screen,
    device: torch.device | None = None,
    settings: Settings | None = None,
    cache: Path | None = None,
) -> dict[str, Any] | None:
    """JSON values; None, with a warning, for a container that only its engine can read (OpenVINO).

    `cache`: a folder where the parent's own figures are kept between runs, by the hash of its weights and the protocol.
    Raises CompressorError.
    """
    settings, device = settings or Settings(), device or torch.device("cpu")
    if not any(folder.glob("*.safetensors")) and gguf_of(folder) is None:
        screen.warn(f"{folder.name} holds neither safetensors nor GGUF: what it lost is not measured here")
        return None
    screen.say("measuring what was lost" if parent else f"measuring {folder.name}")
    is_streamed = _is_too_large(folder, parent, device, settings)
    child = _open(folder, device, screen, is_streamed=is_streamed)
    text = tokens.read_file(settings.text) if settings.text else tokens.shipped_prose()
    ids_WT, protocol = tokens.windows(child.tokenizer, text, _ctx(folder, settings), folder)
    quality: dict[str, Any] = {}
    if parent is None:
        quality |= _prose(child, ids_WT, protocol)
    else:
        quality |= _against(child, parent, ids_WT, protocol, settings, cache)
    quality |= _tasks(child, parent or folder, settings)
    for name, questions in (("ceval", settings.ceval), ("cmmlu", settings.cmmlu)):
        if questions is not None:
            quality[name] = _choose(child, questions, name, settings)  # type: ignore[arg-type]
    return quality


def _open(folder: Path, device: torch.device, screen: Screen, *, is_streamed: bool) -> _Measured:
    if is_streamed:
        screen.say(f"{folder.name} is larger than the memory: block by block, perplexity and divergence only")
        return _Measured(folder, load_tokenizer(folder), None, device, screen)
    model, tokenizer = load_dense(folder, torch.float32, device)
    return _Measured(folder, tokenizer, model, device, screen)


def _prose(measured: _Measured, ids_WT: Tensor, protocol: tokens.Protocol) -> dict[str, Any]:
    for ids_BT, logits_BTV in measured.logits(ids_WT):
        measured.surprise.add(logits_BTV, ids_BT)
    return {"perplexity": {"value": measured.surprise.perplexity, "protocol": protocol.as_json()}}


def _against(
    child: _Measured,
    parent: Path,
    ids_WT: Tensor,
    protocol: tokens.Protocol,
    settings: Settings,
    cache: Path | None,
) -> dict[str, Any]:
    """One pass of the child over all windows; the parent's beside it, as far as its own figures are not known."""
    original = _open(parent, child.device, child.screen, is_streamed=child.model is None)
    kept = Kept(cache, parent, {"text": protocol.as_json(), "tasks": _tasks_protocol(settings)})
    first_WT = ids_WT[: settings.kl_windows]
    divergence = Divergence()
    for (ids_BT, seen_BTV), (_, wanted_BTV) in zip(child.logits(first_WT), original.logits(first_WT), strict=True):
        _refuse_other_vocabulary(child, original, seen_BTV.shape[-1], wanted_BTV.shape[-1])
        child.surprise.add(seen_BTV, ids_BT)
        original.surprise.add(wanted_BTV, ids_BT)
        divergence.add(wanted_BTV, seen_BTV)
    on_windows = {
        "dataset": protocol.dataset,
        "ctx": protocol.ctx,
        "windows": len(first_WT),
        "tokens": divergence.tokens,
        "text_sha256": protocol.text_sha256,
    }
    rest_WT = ids_WT[settings.kl_windows :]
    own = kept.read()
    if own is None:
        own = _prose(original, rest_WT, protocol) | _tasks(original, parent, settings)
        kept.write(own)
    return _prose(child, rest_WT, protocol) | {
        "kl": {
            "mean": divergence.kl,
            "largest": divergence.largest,
            "protocol": on_windows | {"direction": "KL(parent || child), nats a token"},
        },
        "agreement": {"value": divergence.agreement, "protocol": on_windows | {"of": "greedy next tokens"}},
        "parent": own,
    }


def _refuse_other_vocabulary(child: _Measured, parent: _Measured, seen: int, wanted: int) -> None:
    same_tokens = tokens.tokenizer_hash(child.folder) == tokens.tokenizer_hash(parent.folder)
    if seen != wanted or not (same_tokens or child.tokenizer.get_vocab() == parent.tokenizer.get_vocab()):
        raise tokens.BadDataError(
            f"{child.folder.name} and {parent.folder.name} have different tokens ({seen} and {wanted}): "
            "is that its parent? Measure it without --parent"
        )


def _tasks(measured: _Measured, line: Path, settings: Settings) -> dict[str, Any]:
    """`line`: the checkpoint whose base model says whether it was taught the tasks."""
    if measured.model is None or base_model_of(line) not in TAUGHT or not settings.per_family:
        return {}
    asked = tasks.load_tasks(tasks.TASKS, settings.per_family, settings.seed)
    families = tasks.accuracy(measured.model, measured.tokenizer, asked)
    return {
        "accuracy": {
            "mean": sum(families.values()) / len(families),
            "families": {family: round(value, 4) for family, value in families.items()},
            "protocol": _tasks_protocol(settings) | {"rows": len(asked)},
        }
    }


def _tasks_protocol(settings: Settings) -> dict[str, Any]:
    return {
        "tasks": "held-out problems, greedy, exact match of the whole answer",
        "per_family": settings.per_family,
        "seed": settings.seed,
        "tasks_sha256": sha256(tasks.TASKS),
    }


def _choose(measured: _Measured, folder: Path, benchmark: Benchmark, settings: Settings) -> dict[str, Any]:
    if measured.model is None:
        return {"reason": "the model is larger than the memory"}
    scorer = multiple_choice.ModelScorer(measured.model, measured.tokenizer, _context(measured.folder))
    return multiple_choice.run(folder, benchmark, scorer, style=settings.style, fits=scorer.fits)


def _ctx(folder: Path, settings: Settings) -> int:
    if settings.ctx is not None:
        return settings.ctx
    return min(2048, _context(folder)) if settings.text else tokens.PROSE_CTX


def _context(folder: Path) -> int:
    return int(DenseSource(folder).config.get("max_position_embeddings") or 2048)


def _is_too_large(folder: Path, parent: Path | None, device: torch.device, settings: Settings) -> bool:
    needed = 4 * parameters_of(parent or folder) * (2 if parent else 1)
    if settings.memory_bytes is not None:
        return needed > settings.memory_bytes
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return needed > SPARE_SHARE * free
