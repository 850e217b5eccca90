"""Methods and a layout so simple that only the driver is tested by them."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from compressor.block import Block
from compressor.numbers.encoded import Encoded


class Nothing:
    """A method that changes nothing."""

    scheme = None

    def apply(self, block: Block) -> None:
        for name in block.linears():
            block.replace(name, block.weight(name))


class Halve:
    """A method whose work shows: every linear is halved, and what reached it is remembered."""

    scheme = None

    def __init__(self) -> None:
        self.seen: dict[str, Tensor] = {}

    def apply(self, block: Block) -> None:
        def keep(name: str) -> Any:
            return lambda x_TI: self.seen.update({f"{block.name}.{name}": x_TI})

        block.observe({name: keep(name) for name in block.linears()})
        for name in block.linears():
            block.replace(name, block.weight(name) / 2)


class Plain:
    """A layout for dense weights only."""

    name = "plain"
    scale = "bfloat16"

    def tensors(self, name: str, weight: Encoded, dtype: torch.dtype) -> dict[str, Tensor]:
        return {f"{name}.weight": weight.dense().to(dtype)}

    def extras(self, scales: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(scales)

    def config(self, scheme: Any, ignore: Collection[str], *, has_kv_scales: bool) -> dict[str, Any]:
        return {}
