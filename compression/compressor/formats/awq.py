"""AWQ: AutoAWQ's GEMM layout, four bits with a zero point.

qweight [I, O/8] and qzeros [G, O/8] packed along the outputs in an order of its own (packing.AWQ_ORDER), scales [G, O]
in float16. vLLM's and SGLang's kernels take it with groups of 32, 64 or 128.
"""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from compressor.checkpoint.source import Source
from compressor.errors import BadCheckpointError, BadRecipeError
from compressor.formats.base import Plain, refuse
from compressor.formats.packing import pack_awq, unpack_awq
from compressor.formats.vocabulary import named
from compressor.numbers.encoded import Encoded, IntegerWeight
from compressor.numbers.grids import IntegerGrid, ScaleKind
from compressor.numbers.schemes import Scheme

_PER_WORD = 8


class AWQ(Plain):
    """Scales are float16 in this format, whatever the model's dtype."""

    name: ClassVar[str] = "awq"
    scale: ClassVar[ScaleKind] = "float16"

    def __init__(self, scheme: Scheme | None = None) -> None:
        self.scheme = scheme

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "AWQ":
        """Raises BadCheckpointError for the layouts other than GEMM."""
        try:
            layout, bits = str(config.get("version", "gemm")).lower(), int(config.get("bits", config.get("w_bit", 0)))
            size = int(config.get("group_size", config.get("q_group_size", 0)))
        except (TypeError, ValueError) as error:
            raise BadCheckpointError(f"its AWQ quantization_config is broken: {error!r}") from error
        if layout != "gemm" or bits != 4 or size <= 0 or not config.get("zero_point", True):
            raise BadCheckpointError("of AWQ's layouts the one read here is GEMM, 4 bits, in groups, with zero points")
        return cls(named(IntegerGrid(4, size, symmetric=False, scale=cls.scale), None))

    def check(self, scheme: Scheme) -> None:
        """Four bits, asymmetric, in groups, inputs in 16 bits."""
        grid = scheme.weights
        if not isinstance(grid, IntegerGrid) or grid.bits != 4 or grid.symmetric or grid.group_size is None:
            raise refuse(
                self.name, scheme, "it is for 4 bits with zero points in groups", "W4A16_ASYM, or another format"
            )
        if scheme.activations is not None:
            raise refuse(self.name, scheme, "it leaves inputs in 16 bits", "compressed-tensors")

    def tensors(self, name: str, weight: Encoded, _dtype: torch.dtype) -> dict[str, Tensor]:
        """qweight, qzeros, scales."""
        assert isinstance(weight, IntegerWeight)
        assert weight.zero_OG is not None
        outs, ins = weight.codes_OI.shape
        size = weight.grid.group_size or ins
        if outs % _PER_WORD or ins % size:
            raise BadRecipeError(
                f"{name} is {outs} × {ins}: AWQ packs 8 outputs into a word and groups {size} inputs; choose another "
                "group_size, or leave the layer out with `ignore`"
            )
        self.need_successive(weight.group_I is not None)
        return {
            f"{name}.qweight": pack_awq(weight.codes_OI.T),
            f"{name}.qzeros": pack_awq(weight.zero_OG.T),
            f"{name}.scales": weight.scale_OG.T.to(torch.float16).contiguous(),
        }

    def config(
        self, scheme: Scheme, ignore: Collection[str], *, has_kv_scales: bool = False, is_scattered: bool = False
    ) -> dict[str, Any]:
        """As AutoAWQ writes it; layers left alone are parts of names."""
        assert isinstance(scheme.weights, IntegerGrid)
        assert not has_kv_scales, "`check` refuses it"
        self.need_successive(is_scattered)
        left = sorted({"lm_head", *ignore})
        return {
            "quant_method": "awq",
            "version": "gemm",
            "bits": 4,
            "group_size": scheme.weights.group_size,
            "zero_point": True,
            "modules_to_not_convert": left,
        }

    def read(self, source: Source, name: str) -> IntegerWeight:
        """Exactly what `tensors` was given."""
        assert self.scheme is not None
        grid = self.scheme.weights
        assert isinstance(grid, IntegerGrid)
        return IntegerWeight(
            grid,
            unpack_awq(source.read(f"{name}.qweight")).T.contiguous(),
            source.read(f"{name}.scales").float().T.contiguous(),
            unpack_awq(source.read(f"{name}.qzeros")).T.contiguous(),
        )
