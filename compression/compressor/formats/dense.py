"""Plain weights in the checkpoint's own dtype: pruned ones, and numbers rounded to formats that no engine stores.

What a study scheme (FP6, SpQR, three bits) lost can be measured and served this way; nothing gets smaller.
"""

from collections.abc import Collection
from typing import Any, ClassVar

import torch
from torch import Tensor

from compressor.checkpoint.source import Source
from compressor.errors import BadCheckpointError
from compressor.numbers.encoded import Encoded
from compressor.numbers.grids import ScaleKind
from compressor.numbers.schemes import Scheme


class Dense:
    name: ClassVar[str] = "dense"
    scale: ClassVar[ScaleKind] = "float32"

    def check(self, scheme: Scheme) -> None:
        """Any scheme can be written out as what it computes with."""

    def tensors(self, name: str, weight: Encoded, dtype: torch.dtype) -> dict[str, Tensor]:
        return {f"{name}.weight": weight.dense().to(dtype)}

    def config(self, scheme: Scheme, ignore: Collection[str], *, has_kv_scales: bool) -> dict[str, Any]:
        return {}

    def read(self, source: Source, name: str) -> Encoded:
        """Codes cannot be told from plain weights: there is nothing to read back."""
        raise BadCheckpointError(f"{name} is a plain weight: it is read as one")
