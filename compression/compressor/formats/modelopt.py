"""ModelOpt's unified Hugging Face layout, which TensorRT-LLM reads, and vLLM and SGLang too.

weight and weight_scale (float32), for NVFP4 weight_scale_2 as well, input_scale where inputs are static,
`k_proj.k_scale` and `v_proj.v_scale` for an FP8 cache; configuration in config.json and in hf_quant_config.json, whose
`producer` says modelopt, because readers decide by it. As nvidia-modelopt 0.47 exports it (modelopt/torch/export).
The files are complete; what only a GPU can do is run them under TensorRT-LLM, which has no CPU backend and whose FP8
and FP4 kernels want Hopper and Blackwell. Integers of four bits (W4A16_AWQ there) need its own calibration.
"""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from compressor.checkpoint.source import Source
from compressor.errors import BadCheckpointError
from compressor.formats.base import Plain, is_full_name, need_whole_groups, refuse
from compressor.formats.packing import pack_fp4, unpack_fp4
from compressor.numbers.encoded import Encoded, FloatWeight, IntegerWeight
from compressor.numbers.grids import FloatGrid, IntegerGrid, ScaleKind
from compressor.numbers.schemes import SCHEMES, Scheme

# The algorithm's name there, by our scheme's.
ALGORITHMS = {
    "FP8": "FP8",
    "FP8_DYNAMIC": "FP8_PER_CHANNEL_PER_TOKEN",
    "NVFP4": "NVFP4",
    "NVFP4A16": "W4A16_NVFP4",
    "W8A16": "W8A16",
}
PRODUCER = {"name": "modelopt", "version": "0.47.0"}
_FLOAT8 = {"dynamic": False, "num_bits": 8, "type": "float"}
_GROUPS: dict[str, dict[str, Any]] = {
    "FP8": {"input_activations": _FLOAT8, "weights": _FLOAT8},
    "FP8_DYNAMIC": {"input_activations": _FLOAT8, "weights": _FLOAT8 | {"strategy": "channel"}},
    "NVFP4": {
        "input_activations": {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16},
        "weights": {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16},
    },
    "NVFP4A16": {"weights": {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}},
    "W8A16": {"weights": {"dynamic": False, "num_bits": 8, "type": "int"}},
}


class ModelOpt(Plain):
    """Plain scales are float32."""

    name: ClassVar[str] = "modelopt"
    scale: ClassVar[ScaleKind] = "float32"

    def __init__(self, scheme: Scheme | None = None) -> None:
        self.scheme = scheme

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "ModelOpt":
        """Raises BadCheckpointError for an algorithm that is not one of ours."""
        algorithm = str(config.get("quant_algo")).upper()
        for name, known in ALGORITHMS.items():
            if known == algorithm:
                return cls(SCHEMES[name].with_scales(cls.scale))
        raise BadCheckpointError(f"ModelOpt's {algorithm} is not read here: {', '.join(ALGORITHMS.values())} are")

    def check(self, scheme: Scheme) -> None:
        """FP8 (static, dynamic), NVFP4, NVFP4A16, W8A16."""
        if scheme.weights is not None and scheme.name not in ALGORITHMS:
            instead = "dense" if scheme.name == "FP6" else "compressed-tensors"
            raise refuse(self.name, scheme, f"it is for {', '.join(ALGORITHMS)}", instead)

    def tensors(self, name: str, weight: Encoded, _dtype: torch.dtype) -> dict[str, Tensor]:
        """weight, weight_scale, weight_scale_2."""
        local = _integers(weight) if isinstance(weight, IntegerWeight) else _floats(name, weight)
        return {f"{name}.{key}": tensor for key, tensor in local.items()}

    def extras(self, scales: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scalars; those of the cache are filed under the projections."""
        moved = {
            name.replace(".k_scale", ".k_proj.k_scale").replace(".v_scale", ".v_proj.v_scale"): scale
            for name, scale in scales.items()
        }
        return {name: scale.float().reshape(()) for name, scale in moved.items()}

    def config(
        self, scheme: Scheme, ignore: Collection[str], *, has_kv_scales: bool = False, is_scattered: bool = False
    ) -> dict[str, Any]:
        """In the words of config.json; `files` has those of hf_quant_config.json."""
        self.need_successive(is_scattered)
        algorithm = {} if scheme.weights is None else {"quant_algo": ALGORITHMS[scheme.name]}
        groups = {} if scheme.weights is None else {"group_0": _GROUPS[scheme.name] | {"targets": ["Linear"]}}
        left = [name if name == "lm_head" or is_full_name(name) else f"*{name}" for name in ignore]
        return {
            "quant_method": "modelopt",
            **algorithm,
            "config_groups": groups,
            "ignore": sorted({"lm_head", *left}),
            **({"kv_cache_scheme": _FLOAT8} if has_kv_scales else {}),
            "producer": PRODUCER,
        }

    def files(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """hf_quant_config.json, which TensorRT-LLM looks for first."""
        quantization = {
            "quant_algo": config.get("quant_algo"),
            "kv_cache_quant_algo": "FP8" if "kv_cache_scheme" in config else None,
            "exclude_modules": config["ignore"],
        }
        if "NVFP4" in str(config.get("quant_algo")):
            quantization["group_size"] = 16
        return {"hf_quant_config.json": {"producer": PRODUCER, "quantization": quantization}}

    def read(self, source: Source, name: str) -> Encoded:
        """Exactly what `tensors` was given."""
        assert self.scheme is not None
        grid = self.scheme.weights
        scale = source.read(f"{name}.weight_scale").float()
        stored = source.read(f"{name}.weight")
        if isinstance(grid, IntegerGrid):
            return IntegerWeight(grid, stored.int(), scale.reshape(-1, 1))
        assert isinstance(grid, FloatGrid)
        if grid.element == "e4m3":
            return FloatWeight(grid, stored.float(), scale.reshape(-1, 1))
        second = source.read(f"{name}.weight_scale_2").float().reshape(())
        return FloatWeight(grid, unpack_fp4(stored), scale, second)

    def scales(self, source: Source, name: str) -> dict[str, Tensor]:
        """The inverse of `extras`."""
        places = {"input_scale": "input_scale", "k_scale": "k_proj.k_scale", "v_scale": "v_proj.v_scale"}
        return {
            key: source.read(f"{name}.{place}").float().reshape(())
            for key, place in places.items()
            if f"{name}.{place}" in source.entries
        }


def _integers(weight: IntegerWeight) -> dict[str, Tensor]:
    return {"weight": weight.codes_OI.to(torch.int8), "weight_scale": weight.scale_OG.float().flatten()}


def _floats(name: str, weight: FloatWeight) -> dict[str, Tensor]:
    if weight.grid.element == "e4m3":
        shape = () if weight.grid.block == (None, None) else (-1,)
        scale = weight.scale.float().reshape(shape)
        return {"weight": weight.values_OI.to(torch.float8_e4m3fn), "weight_scale": scale}
    need_whole_groups(name, weight.values_OI.shape[1], weight.grid.block[1])
    assert weight.global_scale is not None
    return {
        "weight": pack_fp4(weight.values_OI),
        "weight_scale": weight.scale.to(torch.float8_e4m3fn),
        "weight_scale_2": weight.global_scale.float().reshape(()),
    }
