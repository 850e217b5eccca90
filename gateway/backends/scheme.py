"""Which number formats a checkpoint is stored in, by the names of the field: W4A16, FP8_DYNAMIC, NVFP4, ...

Read from `quantization_config` as compressed-tensors, GPTQ and AWQ write it, else from our manifest's `scheme`. Names
are those of the compressed-tensors presets (`compressed_tensors/quantization/quant_scheme.py`).
"""

from collections.abc import Iterator
from typing import Any

_DENSE = frozenset({"BF16", "F16", "FP16", "F32", "FP32", "BFLOAT16", "FLOAT16", "FLOAT32"})


def schemes_of(quantization: dict[str, Any], manifest: dict[str, Any]) -> frozenset[str]:
    """An empty set when nothing says. Both arguments are somebody else's JSON: any type may be in them."""
    found = {scheme for scheme in _from_config(quantization) if scheme is not None}
    named = manifest.get("scheme")
    if not found and isinstance(named, str) and named:
        plain = named.upper().replace("-", "_")
        found.add("DENSE" if plain in _DENSE or is_decoded(manifest) else plain)
    cache = _object(quantization.get("kv_cache_scheme"))
    if cache.get("type") == "float" and cache.get("num_bits") == 8:
        found.add("KV_FP8")
    return frozenset(found)


def is_decoded(manifest: dict[str, Any]) -> bool:
    """Its weights are stored as the 16-bit values that they decode to, which any engine loads."""
    return _object(_object(manifest.get("recipe")).get("export")).get("format") == "dense"


def _from_config(quantization: dict[str, Any]) -> Iterator[str | None]:
    method, bits = quantization.get("quant_method"), quantization.get("bits") or quantization.get("w_bit")
    if method == "compressed-tensors":
        for group in _object(quantization.get("config_groups")).values():
            yield _group(_object(_object(group).get("weights")), _object(_object(group).get("input_activations")))
    elif method in ("gptq", "awq") and isinstance(bits, int):
        is_symmetric = method == "gptq" and quantization.get("sym", True)
        yield f"W{bits}A16" if is_symmetric else f"W{bits}A16_ASYM"


def _group(weights: dict[str, Any], inputs: dict[str, Any]) -> str | None:
    """One entry of `config_groups`; None for what has no name here."""
    bits, kind = weights.get("num_bits"), weights.get("type")
    if kind == "int" and isinstance(bits, int):
        if inputs:
            return f"W{bits}A{inputs.get('num_bits')}" if inputs.get("type") == "int" else None
        return f"W{bits}A16" if weights.get("symmetric", True) else f"W{bits}A16_ASYM"
    if kind == "float" and bits == 8 and inputs:
        if weights.get("strategy") == "block":
            return "FP8_BLOCK"
        return "FP8_DYNAMIC" if inputs.get("dynamic") else "FP8"
    if kind == "float" and bits == 4:
        name = "MXFP4" if weights.get("group_size") == 32 else "NVFP4"
        return name if inputs else f"{name}A16"
    return None


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
