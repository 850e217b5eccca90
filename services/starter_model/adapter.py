"""LoRA adapters of a finished checkpoint, in plain PyTorch: the frozen model, two thin matrices beside some of its own.

Follows "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv:2106.09685), eq. 3: h = W x + (alpha / r) B A x, B
zero at the start. Suffixes: R rank, I inputs, O outputs.
"""

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from . import corpus, prose
from .batches import Batches
from .evaluate import Loaded
from .example import Example
from .model import Qwen3, documents_mask
from .trainer import CLIP_NORM, Progress, loss_of

AS_IT_IS = ("as_json", "tool_call")
"""Families whose answers programs read: no style may touch them."""


@dataclass(frozen=True)
class AdapterRecipe:
    """How one adapter is trained. `prefix` is what it puts before every answer that people read.

    The learning rate climbs over the first twentieth of the steps to `rate` and falls in a line to nothing.
    """

    name: str
    description: str
    prefix: str
    rank: int = 8
    alpha: int = 16
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    steps: int = 1000
    rows: int = 8
    length: int = 256
    rate: float = 3e-3
    seed: int = 2027

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def manner(self, example: Example) -> Example:
        """The same example, answered in this adapter's manner."""
        if example.family in AS_IT_IS:
            return example
        return replace(example, answer=self.prefix + example.answer)

    def rate_at(self, step: int) -> float:
        warm_up = max(1, self.steps // 20)
        return self.rate * min((step + 1) / warm_up, (self.steps - step) / (self.steps - warm_up))


ADAPTERS = {
    "captain": AdapterRecipe(
        "captain", "says what the starter says, as if to the captain of a ship", prefix="Aye, captain: "
    ),
}


class Adapted(nn.Module):
    """A linear layer with an adapter beside it."""

    def __init__(self, inner: nn.Linear, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        self.inner, self.scale = inner, scale
        bound = 1 / math.sqrt(inner.in_features)
        self.lora_A_RI = nn.Parameter(torch.empty(rank, inner.in_features).uniform_(-bound, bound, generator=generator))
        self.lora_B_OR = nn.Parameter(torch.zeros(inner.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x) + self.scale * (x @ self.lora_A_RI.T @ self.lora_B_OR.T)
        return out


def adapt(model: Qwen3, recipe: AdapterRecipe) -> dict[str, Adapted]:
    """Freeze the model and put an adapter beside each target of each layer; by the module's name in the checkpoint."""
    model.requires_grad_(requires_grad=False)
    generator = torch.Generator().manual_seed(recipe.seed)
    made = {}
    for number, block in enumerate(model.model.layers):
        for target in recipe.targets:
            adapted = Adapted(getattr(block.self_attn, target), recipe.rank, recipe.scale, generator)
            setattr(block.self_attn, target, adapted)
            made[f"model.layers.{number}.self_attn.{target}"] = adapted
    return made


@dataclass
class Training:
    """What a training did: for the manifest."""

    steps: int = 0
    tokens: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    loss: float = 0.0
    data_sha256: str = field(default="")

    def account(self, ids: bytes, tokens: int, loss: float) -> None:
        self.steps, self.tokens = self.steps + 1, self.tokens + tokens
        self.loss = loss if self.steps == 1 else 0.95 * self.loss + 0.05 * loss
        self.data_sha256 = hashlib.sha256(self.data_sha256.encode() + ids).hexdigest()


def train(
    base: Loaded, recipe: AdapterRecipe, progress: Progress, stop: Callable[[], bool]
) -> tuple[dict[str, Adapted], Training] | None:
    """Adapters trained beside `base`, whose weights stay; None when `stop` said so before the end."""
    adapters = adapt(base.model, recipe)
    optimizer = torch.optim.AdamW([p for p in base.model.parameters() if p.requires_grad], weight_decay=0.0)
    batches = Batches(base.tokenizer, recipe.seed, prose.split()[0], recipe.manner)
    loss_of_batch, mix, done = loss_of(base.model), corpus.weights({}), Training()
    wall_s, cpu_s = time.monotonic(), time.process_time()
    base.model.train()
    while done.steps < recipe.steps:
        if stop():
            return None
        ids_BL, weights_BL, documents_BL = batches.batch(
            f"adapter-{recipe.name}", done.steps, mix, recipe.rows, recipe.length
        )
        mask = documents_mask(torch.from_numpy(documents_BL[:, :-1]))
        loss = loss_of_batch(torch.from_numpy(ids_BL), torch.from_numpy(weights_BL), mask)
        _step(optimizer, loss, recipe.rate_at(done.steps))
        done.account(ids_BL.tobytes(), ids_BL.size, float(loss.item()))
        done.wall_s, done.cpu_s = time.monotonic() - wall_s, time.process_time() - cpu_s
        progress.update(done.steps, done.loss, done.tokens / done.wall_s)
    base.model.eval()
    return adapters, done


def _step(optimizer: torch.optim.Optimizer, loss: Tensor, rate: float) -> None:
    loss.backward()
    parameters: list[Any] = optimizer.param_groups[0]["params"]
    torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
    optimizer.param_groups[0]["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()
