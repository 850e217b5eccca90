"""compressed-tensors: the layout that vLLM, SGLang and transformers read, for every scheme here but FP6.

Configuration, schemes and word packing are the library's; codes and scales are written as they are, not rounded again.
Layouts, by the library's names: pack-quantized (integers, inputs in 16 bits), int-quantized (W8A8), float-quantized
(FP8), nvfp4-pack-quantized, mxfp4-pack-quantized. Two conventions of readers: NVFP4 stores the inverse of the tensor's
scale, 448 · 6 / max, and linears that an engine fuses (q, k, v; gate, up) must share it.
Seen with vLLM 0.32 on a CPU without AMX: W8A8 and FP8_DYNAMIC answer in float32; four bits, with and without zero
points, in groups of 32, 128 or a row, answer in bfloat16, and symmetric ones fail in float32 (the profile's default);
FP8, FP8_BLOCK, NVFP4, MXFP4 and three bits are refused at the start.
Act-order with scattered groups (an index per input) has left this format, and vLLM, in 2026.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any, ClassVar

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig
from pydantic import ValidationError
from torch import Tensor

from compressor.checkpoint.source import Source
from compressor.errors import BadCheckpointError
from compressor.formats import vocabulary
from compressor.formats.base import Plain, as_patterns, need_whole_groups, refuse
from compressor.formats.packing import pack_bits, pack_fp4, unpack_bits, unpack_fp4
from compressor.numbers.encoded import Encoded, FloatWeight, IntegerWeight
from compressor.numbers.grids import FloatGrid, Grid, IntegerGrid, ScaleKind
from compressor.numbers.schemes import Scheme

_KINDS: dict[torch.dtype, ScaleKind] = {
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.float32: "float32",
}
_BIAS_E8M0 = 127


class CompressedTensors(Plain):
    """Bound to a scheme: whether 8-bit integers are packed depends on how inputs are rounded."""

    name: ClassVar[str] = "compressed-tensors"
    scale: ClassVar[ScaleKind] = "bfloat16"

    def __init__(self, scheme: Scheme | None = None) -> None:
        self.scheme = scheme

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "CompressedTensors":
        """The scheme of the one group of linears. Raises BadCheckpointError."""
        try:
            parsed = QuantizationConfig.model_validate(dict(config))
        except (ValidationError, ValueError, NotImplementedError) as error:
            raise BadCheckpointError(f"its quantization_config is not compressed-tensors': {error}") from error
        groups = list(parsed.config_groups.values())
        if len(groups) > 1:
            raise BadCheckpointError(f"its quantization_config has {len(groups)} groups of linears: one is read here")
        return cls(vocabulary.from_library(groups[0]) if groups else None)

    def check(self, scheme: Scheme) -> None:
        """Everything but six-bit floats and E5M2."""
        if isinstance(scheme.weights, FloatGrid) and scheme.weights.element not in ("e4m3", "e2m1"):
            why = f"no engine has kernels for {scheme.weights.element} weights"
            raise refuse(self.name, scheme, why, "`export: {format: dense}`, and FP8 to serve")

    def tensors(self, name: str, weight: Encoded, _dtype: torch.dtype) -> dict[str, Tensor]:
        """Scales as the grid has them, in `weight_scale`; what a reader would pad or refuse is refused here."""
        local = self._integers(name, weight) if isinstance(weight, IntegerWeight) else _floats(name, weight)
        return {f"{name}.{key}": tensor for key, tensor in local.items()}

    def extras(self, scales: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """NVFP4's input scale is stored inverted, as `input_global_scale`; all as [1]."""
        found = {}
        for name, scale in scales.items():
            value = scale.float().reshape(1)
            if name.endswith(".input_scale") and self._has_global_scale:
                found[f"{name.removesuffix('input_scale')}input_global_scale"] = 1 / value
            else:
                found[name] = value
        return found

    def config(
        self, scheme: Scheme, ignore: Collection[str], *, has_kv_scales: bool = False, is_scattered: bool = False
    ) -> dict[str, Any]:
        """As the library writes it, `kv_cache_scheme` included."""
        self.need_successive(is_scattered)
        layout = _layout(scheme)
        group = None if scheme.weights is None else vocabulary.to_library(scheme).model_copy(update={"format": layout})
        whole = QuantizationConfig(
            config_groups={} if group is None else {"group_0": group},
            kv_cache_scheme=QuantizationArgs(**vocabulary.KV_CACHE) if has_kv_scales else None,
            format=layout,
            quantization_status="compressed",
            ignore=as_patterns(ignore),
        )
        return {"version": version("compressed-tensors"), **whole.model_dump(mode="json")}

    def read(self, source: Source, name: str) -> Encoded:
        """Exactly what `tensors` was given."""
        assert self.scheme is not None, "a format that reads is made by `of` or bound to a scheme"
        assert self.scheme.weights is not None
        grid = self.scheme.weights
        if isinstance(grid, IntegerGrid):
            return self._read_integers(source, name, grid)
        return _read_floats(source, name, grid)

    def scales(self, source: Source, name: str) -> dict[str, Tensor]:
        """The inverse of `extras`."""
        found = {}
        for key in ("input_scale", "k_scale", "v_scale"):
            if f"{name}.{key}" in source.entries:
                found[key] = source.read(f"{name}.{key}").float().reshape(())
        if f"{name}.input_global_scale" in source.entries:
            found["input_scale"] = 1 / source.read(f"{name}.input_global_scale").float().reshape(())
        return found

    @property
    def _has_global_scale(self) -> bool:
        weights = None if self.scheme is None else self.scheme.weights
        return isinstance(weights, FloatGrid) and weights.has_global_scale

    @property
    def _is_packed(self) -> bool:
        return self.scheme is None or self.scheme.activations is None

    def _integers(self, name: str, weight: IntegerWeight) -> dict[str, Tensor]:
        self.need_successive(weight.group_I is not None)
        need_whole_groups(name, weight.codes_OI.shape[1], weight.grid.group_size)
        bits, lowest = weight.grid.bits, weight.grid.range[0]
        local = {"weight_scale": weight.scale_OG.to(_stored_dtype(weight.grid))}
        if not self._is_packed:
            return local | {"weight": weight.codes_OI.to(torch.int8)}
        if weight.zero_OG is not None:
            local["weight_zero_point"] = pack_bits(weight.zero_OG.T, bits).T.contiguous()
        return local | {
            "weight_packed": pack_bits(weight.codes_OI - lowest, bits),
            "weight_shape": torch.tensor(weight.codes_OI.shape),
        }

    def _read_integers(self, source: Source, name: str, grid: IntegerGrid) -> IntegerWeight:
        scale = source.read(f"{name}.weight_scale")
        grid = replace(grid, scale=_KINDS[scale.dtype])
        if not self._is_packed:
            return IntegerWeight(grid, source.read(f"{name}.weight").int(), scale.float())
        outs, ins = (int(extent) for extent in source.read(f"{name}.weight_shape"))
        codes = unpack_bits(source.read(f"{name}.weight_packed"), grid.bits, ins) + grid.range[0]
        zero = None
        if not grid.symmetric:
            zero = unpack_bits(source.read(f"{name}.weight_zero_point").T.contiguous(), grid.bits, outs).T.contiguous()
        return IntegerWeight(grid, codes, scale.float(), zero)


def _floats(name: str, weight: FloatWeight) -> dict[str, Tensor]:
    grid = weight.grid
    if grid.element == "e4m3":
        scale = weight.scale.reshape(1) if grid.block == (None, None) else weight.scale
        return {"weight": weight.values_OI.to(torch.float8_e4m3fn), "weight_scale": scale.to(_stored_dtype(grid))}
    need_whole_groups(name, weight.values_OI.shape[1], grid.block[1])
    packed = pack_fp4(weight.values_OI)
    if weight.global_scale is None:
        exponents = (weight.scale.log2().round() + _BIAS_E8M0).to(torch.uint8)
        return {"weight_packed": packed, "weight_scale": exponents}
    return {
        "weight_packed": packed,
        "weight_scale": weight.scale.to(torch.float8_e4m3fn),
        "weight_global_scale": 1 / weight.global_scale.float().reshape(1),
    }


def _read_floats(source: Source, name: str, grid: FloatGrid) -> FloatWeight:
    stored = source.read(f"{name}.weight_scale")
    if grid.element == "e4m3":
        outs, ins = source.entries[f"{name}.weight"].shape
        rows, columns = grid.block[0] or outs, grid.block[1] or ins
        scale = stored.float().reshape(-(-outs // rows), -(-ins // columns))
        grid = replace(grid, scale=_KINDS[stored.dtype])
        return FloatWeight(grid, source.read(f"{name}.weight").float(), scale)
    values = unpack_fp4(source.read(f"{name}.weight_packed"))
    if not grid.has_global_scale:
        return FloatWeight(grid, values, torch.exp2(stored.float() - _BIAS_E8M0))
    inverse = source.read(f"{name}.weight_global_scale").float().reshape(())
    return FloatWeight(grid, values, stored.float(), 1 / inverse)


def _layout(scheme: Scheme) -> str:
    if scheme.weights is None:
        return "dense"
    if isinstance(scheme.weights, IntegerGrid):
        return "pack-quantized" if scheme.activations is None else "int-quantized"
    if scheme.weights.element == "e4m3":
        return "float-quantized"
    return "nvfp4-pack-quantized" if scheme.weights.has_global_scale else "mxfp4-pack-quantized"


def _stored_dtype(grid: Grid) -> torch.dtype:
    return next(dtype for dtype, kind in _KINDS.items() if kind == grid.scale)
