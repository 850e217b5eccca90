"""FP8 keys and values in an engine's cache: a calibrated scale for the keys and one for the values of each layer.

Half the cache's bytes, so twice the tokens; weights stay as they are, or are another step's. The scales put the largest
key and value of the calibration data at E4M3's 448. They are taken where an engine writes its cache: keys after their
norm and rotary embedding, values as projected.
KVQuant, arXiv 2401.18079, is one of the papers on why keys are harder than values; per-tensor FP8 is what engines read.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from compressor.block import Batch, Block
from compressor.errors import BadCalibrationError
from compressor.methods.base import Params as BaseParams
from compressor.methods.floating import Peak
from compressor.numbers.floats import largest
from compressor.numbers.grids import ScaleKind
from compressor.numbers.schemes import Scheme


class KVCache:
    """Adds `k_scale` and `v_scale` to each attention module and changes no weight."""

    name: ClassVar[str] = "kv-cache"
    about: ClassVar[str] = "calibrated scales for an 8-bit (FP8) cache of keys and values; weights are not touched"
    source: ClassVar[str] = "KVQuant: Towards 10 Million Context Length LLM Inference, arXiv 2401.18079"
    needs_inputs: ClassVar[bool] = True
    scales: ScaleKind = "bfloat16"

    class Params(BaseParams):
        pass

    def __init__(self, params: BaseParams) -> None:
        assert isinstance(params, KVCache.Params)
        self.scheme = Scheme("KV_FP8")

    def apply(self, block: Block) -> None:
        """Runs the block over its inputs with a cache that only watches."""
        keys, values = Peak(), Peak()
        for batch in block.batches:
            _run(block, batch, _Watch(keys, values, batch.real_BT))
        attention = block.groups()[0].linears[0].rpartition(".")[0]
        for kind, peak in (("k", keys), ("v", values)):
            scale = peak.scale(largest("e4m3"))
            block.extras[f"{block.name}.{attention}.{kind}_scale"] = scale
            block.note(f"{attention}.{kind}_proj", cache_scale=float(scale))


class _Watch:
    """Stands where transformers' attention hands over what it caches: [B, heads, T, head size] each."""

    def __init__(self, keys: Peak, values: Peak, real_BT: Tensor) -> None:
        self._keys, self._values, self._real_BT = keys, values, real_BT
        self.is_used = False

    def update(self, keys: Tensor, values: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        self._keys.add(keys.transpose(1, 2)[self._real_BT])
        self._values.add(values.transpose(1, 2)[self._real_BT])
        self.is_used = True
        return keys, values


@torch.no_grad()
def _run(block: Block, batch: Batch, watch: _Watch) -> None:
    block.module(batch.hidden_BTD, **{**batch.kwargs, "past_key_values": watch})
    if not watch.is_used:
        raise BadCalibrationError(f"{block.name} caches no keys and values: its architecture has no attention cache")
