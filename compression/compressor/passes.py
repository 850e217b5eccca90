"""What a whole-model method is handed: a checkpoint to read, one to write, data, and a screen to report to."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from compressor.checkpoint.sink import Sink
from compressor.checkpoint.source import Source
from compressor.families import Family
from compressor.screen import Screen


@dataclass(frozen=True, slots=True)
class Rows:
    """Calibration tokens. `ids_BT`: int64, padded on the right; `real_BT`: True where a token is no padding."""

    ids_BT: Tensor
    real_BT: Tensor


@dataclass(slots=True)
class ModelPass:
    """`rows`: batches of calibration tokens, empty when the method needs none. `facts`: JSON for the manifest."""

    source: Source
    sink: Sink
    family: Family
    rows: list[Rows]
    device: torch.device
    seed: int
    screen: Screen
    facts: dict[str, Any] = field(default_factory=dict)
