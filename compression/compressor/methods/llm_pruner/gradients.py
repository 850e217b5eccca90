"""Gradients of the next-token loss over calibration rows: their mean, and the mean of each row's squares."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import BadCalibrationError
from compressor.passes import Rows


class Gradients:
    """Sums up per row as backward passes make them, so that no row's gradients are kept beside the sums.

    `mean[name]`: g = E[∂L/∂w]; `squares[name]`: h = E[(∂L/∂w)²], empty unless asked for.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], *, with_squares: bool) -> None:
        self.mean: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}
        self._parameters, self._with_squares = parameters, with_squares

    def collect(self, model: nn.Module, rows: Iterable[Rows]) -> "Gradients":
        """Run forward and backward over each row. Raises BadCalibrationError without a row, or when the loss is NaN."""
        samples = list(_samples(rows))
        hooks = [
            parameter.requires_grad_(True).register_post_accumulate_grad_hook(self._adder(name, len(samples)))
            for name, parameter in self._parameters.items()
        ]
        try:
            for ids_T in samples:
                loss = token_losses(model, ids_T[None]).mean()
                if not bool(loss.isfinite()):
                    raise BadCalibrationError("the loss on a calibration row is not finite: does the model give NaN?")
                loss.backward()
        finally:
            for hook in hooks:
                hook.remove()
            for parameter in self._parameters.values():
                parameter.requires_grad_(False)
        return self

    def of(self, name: str) -> tuple[Tensor, Tensor | None]:
        """g and h of one weight."""
        return self.mean[name], self.squares.get(name)

    def _adder(self, name: str, count: int) -> Callable[[Tensor], None]:
        def add(parameter: Tensor) -> None:
            assert parameter.grad is not None
            _accumulate(self.mean, name, parameter.grad, count)
            if self._with_squares:
                _accumulate(self.squares, name, parameter.grad.square(), count)
            parameter.grad = None

        return add


@torch.no_grad()
def perplexity(model: nn.Module, rows: Iterable[Rows]) -> float:
    """exp of the mean loss over all real tokens that have one before them. Raises BadCalibrationError without a row."""
    losses = torch.cat([token_losses(model, ids_T[None]) for ids_T in _samples(rows)])
    return float(losses.mean(dtype=torch.float64).exp())


def token_losses(model: Any, ids_BT: Tensor) -> Tensor:
    """Cross-entropy of each next token, flat [B · (T − 1)], in the model's dtype."""
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits[:, :-1]
    return nn.functional.cross_entropy(logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="none")


def _samples(rows: Iterable[Rows]) -> Sequence[Tensor]:
    """Each row alone, without its padding."""
    samples = list(_split(rows))
    if not samples:
        raise BadCalibrationError("no calibration row has two tokens: there is nothing to take a gradient of")
    return samples


def _split(rows: Iterable[Rows]) -> Iterator[Tensor]:
    for batch in rows:
        for ids_T, real_T in zip(batch.ids_BT, batch.real_BT, strict=True):
            if int(real_T.sum()) > 1:
                yield ids_T[real_T]


def _accumulate(sums: dict[str, Tensor], name: str, value: Tensor, count: int) -> None:
    if name in sums:
        sums[name].add_(value, alpha=1 / count)
    else:
        sums[name] = value / count
