"""GPTQ: AutoGPTQ's first layout, which most published 4-bit checkpoints have.

qweight [I·b/32, O] packed along the inputs, qzeros [G, O·b/32] packed along the outputs, scales [G, O] in float16,
g_idx [I]. Its quirk is kept, for readers undo it: zero points are stored less one, modulo 2^b. Symmetric codes are
shifted up by 2^(b-1), which is then every zero point.
vLLM 0.32 reads 4 and 8 bits, symmetric, with successive groups only: asymmetric ones and act-order's scattered groups
are for other readers (SGLang, TensorRT-LLM, transformers with GPTQModel). Its CPU kernel takes 4 bits.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from compressor.checkpoint.source import Source
from compressor.errors import BadCheckpointError, BadRecipeError
from compressor.formats.base import Plain, as_patterns, refuse
from compressor.formats.packing import pack_bits, unpack_bits
from compressor.formats.vocabulary import named
from compressor.numbers.encoded import Encoded, IntegerWeight
from compressor.numbers.grids import IntegerGrid, ScaleKind
from compressor.numbers.schemes import Scheme

_BITS = (2, 3, 4, 8)
_WORD = 32


class GPTQ(Plain):
    """Scales are float16 in this format, whatever the model's dtype."""

    name: ClassVar[str] = "gptq"
    scale: ClassVar[ScaleKind] = "float16"

    def __init__(self, scheme: Scheme | None = None) -> None:
        self.scheme = scheme

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "GPTQ":
        """Raises BadCheckpointError for the second layout and for rules that differ by layer."""
        if config.get("checkpoint_format", "gptq") != "gptq":
            raise BadCheckpointError(f"GPTQ's checkpoint_format {config['checkpoint_format']!r} is not read here")
        if any(not str(rule).startswith("-:") for rule in config.get("dynamic") or {}):
            raise BadCheckpointError("GPTQ with bits that differ by layer is not read here")
        try:
            bits, size, is_symmetric = int(config["bits"]), int(config["group_size"]), bool(config["sym"])
        except (KeyError, TypeError, ValueError) as error:
            raise BadCheckpointError(f"its GPTQ quantization_config is broken: {error!r}") from error
        grid = IntegerGrid(bits, None if size < 0 else size, is_symmetric, cls.scale)
        return cls(named(grid, None))

    def check(self, scheme: Scheme) -> None:
        """Integers of 2, 3, 4 or 8 bits, inputs in 16."""
        if not isinstance(scheme.weights, IntegerGrid) or scheme.weights.bits not in _BITS:
            raise refuse(self.name, scheme, "it is for integers of 2, 3, 4 or 8 bits", "compressed-tensors")
        if scheme.activations is not None:
            raise refuse(self.name, scheme, "it leaves inputs in 16 bits", "compressed-tensors")

    def tensors(self, name: str, weight: Encoded, _dtype: torch.dtype) -> dict[str, Tensor]:
        """qweight, qzeros, scales, g_idx."""
        assert isinstance(weight, IntegerWeight)
        bits = weight.grid.bits
        outs, ins = weight.codes_OI.shape
        if outs * bits % _WORD or ins * bits % _WORD:
            raise BadRecipeError(
                f"{name} is {outs} × {ins}: GPTQ packs {bits}-bit codes into whole words along both sides; "
                "use `export: {format: compressed-tensors}`, or leave the layer out with `ignore`"
            )
        zero_OG = torch.zeros_like(weight.scale_OG, dtype=torch.int32) if weight.zero_OG is None else weight.zero_OG
        shift = -weight.grid.range[0]
        return {
            f"{name}.qweight": pack_bits(weight.codes_OI + shift, bits).T.contiguous(),
            f"{name}.qzeros": pack_bits((zero_OG + shift - 1).T % 2**bits, bits),
            f"{name}.scales": weight.scale_OG.T.to(torch.float16).contiguous(),
            f"{name}.g_idx": weight.groups().int(),
        }

    def config(
        self, scheme: Scheme, ignore: Collection[str], *, has_kv_scales: bool = False, is_scattered: bool = False
    ) -> dict[str, Any]:
        """As AutoGPTQ and GPTQModel write it; layers left alone are GPTQModel's negative rules."""
        assert isinstance(scheme.weights, IntegerGrid)
        assert not has_kv_scales, "`check` refuses it"
        rules: dict[str, Any] = {f"-:{_as_regex(name)}": {} for name in as_patterns(ignore) if name != "lm_head"}
        return {
            "quant_method": "gptq",
            "bits": scheme.weights.bits,
            "group_size": scheme.weights.group_size or -1,
            "sym": scheme.weights.symmetric,
            "desc_act": is_scattered,
            "lm_head": False,
            "checkpoint_format": "gptq",
            **({"dynamic": rules} if rules else {}),
        }

    def files(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """AutoGPTQ's own file, which older readers want."""
        return {"quantize_config.json": {key: value for key, value in config.items() if key != "quant_method"}}

    def read(self, source: Source, name: str) -> IntegerWeight:
        """Exactly what `tensors` was given."""
        assert self.scheme is not None
        grid = self.scheme.weights
        assert isinstance(grid, IntegerGrid)
        scale_OG = source.read(f"{name}.scales").float().T.contiguous()
        index = source.read(f"{name}.g_idx").long()
        lowest, ins = grid.range[0], len(index)
        codes = unpack_bits(source.read(f"{name}.qweight").T.contiguous(), grid.bits, ins) + lowest
        zero = None
        if not grid.symmetric:
            stored = unpack_bits(source.read(f"{name}.qzeros"), grid.bits, scale_OG.shape[0])
            zero = ((stored + 1) % 2**grid.bits).T.contiguous()
        successive = torch.arange(ins) // (grid.group_size or ins)
        return IntegerWeight(grid, codes, scale_OG, zero, None if torch.equal(index, successive) else index)


def _as_regex(name: str) -> str:
    return name.removeprefix("re:") if name.startswith("re:") else re.escape(name)
