"""Muon for matrices, AdamW for embeddings and norms, with their rates at the peak.

Muon: momentum, then the nearest (half-)orthogonal matrix by five Newton–Schulz steps with Keller Jordan's quintic
coefficients ("Muon: An optimizer for hidden layers", 2024; scaling as studied in arXiv:2502.16982). Matrices of one
shape are orthogonalised together in one batch: on a CPU the many small products cost more than the arithmetic.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

QUINTIC = (3.4445, -4.7750, 2.0315)
MUON_LR, ADAM_LR = 0.02, 4e-3
MOMENTUM = 0.95


def orthogonalise(g_NIO: Tensor, steps: int = 5) -> Tensor:
    """Push every singular value of each matrix to about 1 (0.7 to 1.2), keeping its singular vectors."""
    a, b, c = QUINTIC
    x = g_NIO.transpose(-1, -2) if g_NIO.shape[-2] > g_NIO.shape[-1] else g_NIO
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(-1, -2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(-1, -2) if g_NIO.shape[-2] > g_NIO.shape[-1] else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, then one orthogonal step per matrix, scaled by sqrt(max(1, rows / columns))."""

    def __init__(self, matrices: list[nn.Parameter], lr: float = MUON_LR, momentum: float = MOMENTUM) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                update = orthogonalise(torch.stack([self._momentum(p, group["momentum"]) for p in parameters]))
                scale = -group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for parameter, change in zip(parameters, update, strict=True):
                    parameter.add_(change, alpha=scale)

    def _momentum(self, parameter: nn.Parameter, beta: float) -> Tensor:
        gradient = parameter.grad
        if gradient is None:
            raise ValueError("Muon stepped before backward")
        state = self.state[parameter]
        buffer: Tensor = state.setdefault("momentum", torch.zeros_like(gradient))
        buffer.lerp_(gradient, 1 - beta)
        return gradient.lerp(buffer, beta)


def make_optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for everything else."""
    inside = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    outside = [p for name, p in model.named_parameters() if p.dim() != 2 or "embed" in name]
    adam = torch.optim.AdamW(outside, lr=ADAM_LR, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    optimizers = [Muon(inside), adam]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers
