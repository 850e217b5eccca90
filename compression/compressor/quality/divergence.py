"""How far two models' next-token distributions are apart on the same tokens, and how surprised each one is.

Sums over batches of logits, so that neither all logits nor two passes are needed.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

# What a place counts where a broken model gives NaN or infinity: far beyond any real figure, and its exponential is
# still a number that JSON can hold.
BROKEN_NATS = 700.0


@dataclass(slots=True)
class Surprise:
    """Mean negative log-likelihood of windows; its exponential is the perplexity.

    Every window counts the same and scores all tokens but its first, as in GPTQ's code: exp(mean over windows of the
    mean over tokens).
    """

    windows: list[float] = field(default_factory=list)

    def add(self, logits_BTV: Tensor, ids_BT: Tensor) -> None:
        """`logits_BTV[:, t]` predict `ids_BT[:, t + 1]`."""
        log_p_BTV = logits_BTV[:, :-1].float().log_softmax(-1)
        nll_BT = -log_p_BTV.gather(-1, ids_BT[:, 1:, None].to(log_p_BTV.device)).squeeze(-1)
        self.windows.extend(_bounded(nll_BT).mean(1).tolist())

    @property
    def mean_nats(self) -> float:
        return math.fsum(self.windows) / len(self.windows)

    @property
    def perplexity(self) -> float:
        """exp(mean nats)."""
        return math.exp(min(self.mean_nats, BROKEN_NATS))


@dataclass(slots=True)
class Divergence:
    """KL(parent‖child) in nats a token, and the share of places where both find the same token best.

    The first is zero only for equal distributions; the second is what a greedy caller notices.
    """

    nats: float = 0.0
    largest: float = 0.0
    same: int = 0
    tokens: int = 0

    def add(self, parent_BTV: Tensor, child_BTV: Tensor) -> None:
        """Logits of both on the same tokens; every place counts."""
        log_p = parent_BTV.flatten(0, -2).float().log_softmax(-1)
        log_q = child_BTV.flatten(0, -2).float().log_softmax(-1)
        kl_T = _bounded((log_p.exp() * (log_p - log_q)).sum(-1))
        self.nats += float(kl_T.double().sum())
        self.largest = max(self.largest, float(kl_T.max()))
        self.same += int((log_p.argmax(-1) == log_q.argmax(-1)).sum())
        self.tokens += len(kl_T)

    @property
    def kl(self) -> float:
        """Rounding may leave equal models a hair below zero."""
        return max(0.0, self.nats / self.tokens)

    @property
    def agreement(self) -> float:
        return self.same / self.tokens


def _bounded(nats: Tensor) -> Tensor:
    return nats.nan_to_num(BROKEN_NATS, posinf=BROKEN_NATS).clamp(max=BROKEN_NATS)


@torch.inference_mode()
def logits_of(model: torch.nn.Module, ids_BT: Tensor) -> Tensor:
    """[B, T, vocabulary] of whole windows, where the model is."""
    logits: Tensor = model(input_ids=ids_BT.to(next(model.parameters()).device), use_cache=False).logits
    return logits
