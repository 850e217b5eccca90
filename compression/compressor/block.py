"""One transformer block under work: what a block method sees of the model.

The driver (blockwise.py) gives it the block's weights in float32 and the inputs that the blocks before it, already
compressed, produce. A method looks at inputs of linears (`observe`) and sets what those become (`encode`, `replace`).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compressor.families import Family, Group
from compressor.numbers.encoded import Encoded

Observer = Callable[[Tensor], None]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of the calibration data at this depth. `hidden_BTD`; `real_BT`: True where a token is no padding."""

    hidden_BTD: Tensor
    real_BT: Tensor
    kwargs: Mapping[str, Any]


@dataclass(slots=True)
class Block:
    """`name`: as in the checkpoint ("model.layers.3"); linears are named relative to it ("self_attn.q_proj").

    `encoded`: what methods decided, by linear. `extras`: further tensors for the checkpoint, by full name.
    `adapters`: low-rank factors (A [rank, in], B [out, rank]) to be served as a LoRA, by linear.
    `facts`: what methods report of a linear, JSON values, by linear.
    """

    index: int
    count: int
    name: str
    module: nn.Module
    family: Family
    config: dict[str, Any]
    batches: list[Batch]
    ignore: frozenset[str] = frozenset()
    encoded: dict[str, Encoded] = field(default_factory=dict)
    extras: dict[str, Tensor] = field(default_factory=dict)
    adapters: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def linear(self, name: str) -> nn.Linear:
        """The module behind a relative name."""
        module = self.module.get_submodule(name)
        assert isinstance(module, nn.Linear)
        return module

    def weight(self, name: str) -> Tensor:
        """The weight [out, in] as it is now, float32, detached: what was encoded is seen as its dense value."""
        return self.linear(name).weight.detach().float()

    def groups(self) -> list[Group]:
        """The groups of linears that share an input, without the ignored ones, in forward order."""
        kept = (
            Group(group.kind, group.source, tuple(name for name in group.linears if not self._is_ignored(name)))
            for group in self.family.groups
        )
        return [group for group in kept if group.linears]

    def linears(self) -> list[str]:
        """All linears that may be changed, in forward order."""
        return [name for group in self.groups() for name in group.linears]

    def observe(self, observers: Mapping[str, Observer]) -> None:
        """Run the calibration inputs through the block once; `observers[name]` is fed the inputs of that linear,
        [tokens, in], float32, padding left out, batch by batch. A norm's name is fed its outputs instead."""
        hooks = []
        real: list[Tensor] = []
        for name, observer in observers.items():
            module = self.module.get_submodule(name)
            hooks.append(module.register_forward_hook(_hook(observer, real, is_input=isinstance(module, nn.Linear))))
        try:
            for batch in self.batches:
                real[:] = [batch.real_BT]
                self.forward(batch)
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def forward(self, batch: Batch) -> Tensor:
        """The block's output [B, T, D] with its present weights."""
        out = self.module(batch.hidden_BTD, **batch.kwargs)
        return out[0] if isinstance(out, tuple) else out

    def encode(self, name: str, weight: Encoded) -> None:
        """The linear is stored as `weight`, and computes with its dense value from now on."""
        self.encoded[name] = weight
        self._set(name, weight.dense())

    def replace(self, name: str, weight_OI: Tensor) -> None:
        """The linear stays dense, with other weights of the same shape."""
        self.encoded.pop(name, None)
        self._set(name, weight_OI)

    def adapt(self, name: str, a_RI: Tensor, b_OR: Tensor) -> None:
        """Low-rank factors are served beside what the linear is stored as: from now on it computes with W + B·A."""
        self.adapters[name] = (a_RI, b_OR)
        self._set(name, self.weight(name) + b_OR.float() @ a_RI.float())

    def note(self, names: Iterable[str] | str, **facts: Any) -> None:
        """Remember facts of linears for the report."""
        for name in [names] if isinstance(names, str) else names:
            self.facts.setdefault(name, {}).update(facts)

    def _set(self, name: str, weight_OI: Tensor) -> None:
        parameter = self.linear(name).weight
        assert weight_OI.shape == parameter.shape, (name, weight_OI.shape, parameter.shape)
        # A tensor of its own: what `weight` gave before stays what it was, for who compares.
        parameter.data = weight_OI.to(parameter.device, parameter.dtype, copy=True)

    def _is_ignored(self, name: str) -> bool:
        return name in self.ignore or f"{self.name}.{name}" in self.ignore


def _hook(observer: Observer, real: list[Tensor], *, is_input: bool) -> Callable[..., None]:
    def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen = args[0] if is_input else output
        flat = seen.detach().reshape(-1, seen.shape[-1])
        observer(flat[real[0].reshape(-1)].float())

    return hook
