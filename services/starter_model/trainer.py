"""The training loop: one recipe, resumable at any step, bit-equal in its data whether it was interrupted or not."""

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from . import corpus, prose
from .batches import Batches, Ids
from .model import Qwen3, documents_mask, initialise
from .optimizer import make_optimizers
from .recipe import Recipe, Stage
from .tokenizer import twins

SAVE_EVERY = 100
CLIP_NORM = 1.0
LossFunction = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Progress(Protocol):
    """What the loop reports to: `step` of all steps done, the smoothed loss, tokens per second."""

    def update(self, step: int, loss: float, tokens_per_s: float) -> None: ...


@dataclass
class State:
    """Everything that a resumed run needs beside weights and optimizer states."""

    stage: int = 0
    step: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    rows: int = 0
    data_sha256: str = ""
    loss: float = 0.0


class Run:
    """One training on its way. Files live in `folder`: tokenizer.json and state.pt, both replaced atomically."""

    def __init__(self, recipe: Recipe, folder: Path, tokenizer: Tokenizer) -> None:
        self.recipe, self.folder, self.tokenizer = recipe, folder, tokenizer
        self.model = Qwen3(recipe.shape)
        initialise(self.model, recipe.seed, twins(tokenizer))
        self.optimizers = make_optimizers(self.model)
        self.state = State()
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def done(self) -> bool:
        return self.state.stage == len(self.recipe.stages)

    def restore(self) -> bool:
        """Take up an interrupted run. Returns False without one; raises ValueError when it is of another recipe."""
        path = self.folder / "state.pt"
        if not path.exists():
            return False
        saved: dict[str, Any] = torch.load(path, weights_only=True)
        if saved["recipe"] != repr(self.recipe):
            raise ValueError(f"{path} belongs to another recipe or scale; remove {self.folder} or choose another --run")
        self.model.load_state_dict(saved["model"])
        if saved["optimizers"]:
            for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)
        self.state = State(**saved["state"])
        return True

    def save(self) -> None:
        """Write the state so that a reader sees the old file or the new one, never a half."""
        temporary = self.folder / "state.pt.part"
        content = {
            "recipe": repr(self.recipe),
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "state": vars(self.state),
        }
        torch.save(content, temporary)
        os.replace(temporary, self.folder / "state.pt")

    @property
    def steps_done(self) -> int:
        return sum(stage.steps for stage in self.recipe.stages[: self.state.stage]) + self.state.step

    def train(self, progress: Progress, stop: Callable[[], bool], *, compiled: bool = True) -> None:
        """Train to the end of the last stage, or until `stop` says so between two steps. Saves before it returns."""
        if self.done:
            return
        batches = Batches(self.tokenizer, self.recipe.seed, prose.split()[0])
        loss_function = compile_if_possible(self.model) if compiled else loss_of(self.model)
        clock = _Clock(self.state)
        while not self.done and not stop():
            stage = self.recipe.stages[self.state.stage]
            self._stage(stage, batches, loss_function, progress, clock, stop)
            if self.state.step == stage.steps:
                self.state = replace(self.state, stage=self.state.stage + 1, step=0)
                self.optimizers = make_optimizers(self.model)
        clock.read(self.state)
        self.save()

    def _stage(
        self,
        stage: Stage,
        batches: Batches,
        loss_of_batch: LossFunction,
        progress: Progress,
        clock: "_Clock",
        stop: Callable[[], bool],
    ) -> None:
        while self.state.step < stage.steps and not stop():
            step = self.state.step
            ids_BL, weights_BL, documents_BL = batches.batch(
                stage.stream or stage.name, step, corpus.weights(stage.boosts(step)), stage.rows, stage.length
            )
            mask = documents_mask(torch.from_numpy(documents_BL[:, :-1])) if stage.apart else None
            loss = loss_of_batch(torch.from_numpy(ids_BL), torch.from_numpy(weights_BL), mask)
            self._update(loss, stage.rate(step))
            self._account(ids_BL, float(loss.item()))
            if self.state.step % SAVE_EVERY == 0:
                clock.read(self.state)
                self.save()
            progress.update(self.steps_done, self.state.loss, clock.rate(ids_BL.size))

    def _update(self, loss: Tensor, rate: float) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["peak_lr"]
            optimizer.step()
            optimizer.zero_grad()

    def _account(self, ids_BL: Ids, loss: float) -> None:
        """Only whole steps count: state moves on after the weights did."""
        chained = hashlib.sha256(self.state.data_sha256.encode() + ids_BL.tobytes()).hexdigest()
        smooth = loss if self.state.loss == 0 else 0.97 * self.state.loss + 0.03 * loss
        self.state = replace(
            self.state, step=self.state.step + 1, rows=self.state.rows + len(ids_BL), data_sha256=chained, loss=smooth
        )


class _Clock:
    """Wall and CPU seconds added to what earlier runs took, and tokens per second of late."""

    def __init__(self, state: State) -> None:
        self._wall, self._cpu = time.monotonic() - state.wall_s, time.process_time() - state.cpu_s
        self._last, self._rate = time.monotonic(), 0.0

    def read(self, state: State) -> None:
        state.wall_s, state.cpu_s = time.monotonic() - self._wall, time.process_time() - self._cpu

    def rate(self, tokens: int) -> float:
        now = time.monotonic()
        fresh, self._last = tokens / max(now - self._last, 1e-6), now
        self._rate = fresh if self._rate == 0 else 0.95 * self._rate + 0.05 * fresh
        return self._rate


def loss_of(model: Qwen3) -> LossFunction:
    """Weighted mean cross-entropy in nats; activations in bf16, weights and softmax in float32."""

    def loss(ids_BL: Tensor, weights_BL: Tensor, mask_B1LL: Tensor | None) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits_BLV = model(ids_BL[:, :-1], mask_B1LL)
        nats = F.cross_entropy(logits_BLV.float().flatten(0, 1), ids_BL[:, 1:].flatten(), reduction="none")
        weights = weights_BL[:, 1:].flatten()
        return (nats * weights).sum() / weights.sum()

    return loss


def compile_if_possible(model: Qwen3) -> LossFunction:
    """torch.compile needs a C++ compiler; without one training takes twice as long and gives the same model."""
    plain = loss_of(model)
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        return plain
    compiled: LossFunction = torch.compile(plain, dynamic=False)
    return compiled
