"""Dense: the weight that an engine would compute with, written out in the model's own dtype; loads everywhere.

For pruned weights (engines have no kernels for zeros), FP6, SpQR and anything else that no engine reads compressed:
as large and as fast as before, with the compressed weight's values and so its quality.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from compressor.checkpoint.source import Source
from compressor.formats.base import Plain, refuse
from compressor.numbers.encoded import Encoded
from compressor.numbers.grids import ScaleKind
from compressor.numbers.schemes import Scheme


@dataclass(frozen=True, slots=True)
class DenseWeight:
    """A plain weight [O, I], float32."""

    weight_OI: Tensor

    def dense(self) -> Tensor:
        """Itself."""
        return self.weight_OI


class Dense(Plain):
    """`scale`: 32 bits, for the values are what is stored."""

    name: ClassVar[str] = "dense"
    scale: ClassVar[ScaleKind] = "float32"

    def __init__(self, scheme: Scheme | None = None) -> None:
        self.scheme = scheme

    @classmethod
    def of(cls, _config: Mapping[str, Any]) -> "Dense":
        """A dense checkpoint has no `quantization_config`: nothing to read."""
        return cls()

    def check(self, scheme: Scheme) -> None:
        """Whatever rounds inputs needs an engine that is told to: a dense checkpoint cannot say it."""
        if scheme.activations is not None or scheme.weights is None:
            what = "cached keys and values" if scheme.weights is None else "inputs"
            why = f"plain weights cannot tell an engine to round {what}"
            raise refuse(self.name, scheme, why, "compressed-tensors")

    def tensors(self, name: str, weight: Encoded, dtype: torch.dtype) -> dict[str, Tensor]:
        """`weight`, rounded to `dtype`."""
        return {f"{name}.weight": weight.dense().to(dtype)}

    def config(
        self, scheme: Scheme, ignore: Collection[str], *, has_kv_scales: bool = False, is_scattered: bool = False
    ) -> dict[str, Any]:
        """Empty: config.json gets no `quantization_config`."""
        del scheme, ignore, has_kv_scales, is_scattered
        return {}

    def read(self, source: Source, name: str) -> DenseWeight:
        """What is stored; which codes it was made of is lost."""
        return DenseWeight(source.read(f"{name}.weight").float())
