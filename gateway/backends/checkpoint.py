"""What a checkpoint's folder says of itself, as far as it decides which engine can load it.

Reads `config.json` (Hugging Face), `hf_quant_config.json` (NVIDIA ModelOpt) and `penstock.json` (our manifest); no
weights. Apart from capabilities.py, which says what engines can do and never touches a file.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.backends.capabilities import Shape

_BY_METHOD = {
    "slicegpt": Shape.SLICED,
    "prefix": Shape.PREFIX,
    "prefix-tuning": Shape.PREFIX,
    "p-tuning-v2": Shape.PREFIX,
    "mam": Shape.PREFIX,
    "unipelt": Shape.PREFIX,
    "bottleneck": Shape.BOTTLENECK,
}
_SIZES = ("intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
_UNEVEN_BY_NATURE = frozenset({"Gemma3nForCausalLM", "Gemma3nForConditionalGeneration"})
_SPARSE_FORMATS = frozenset({"sparse-24-bitmask", "marlin-24"})
_OTHER_LAYOUTS = ("*.gguf", "*.xml", "*.mnn")


class CheckpointError(Exception):
    """The folder is no checkpoint; the message says why."""


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """`quantization`: its `quant_method`, or our scheme where that has no such name; None for full precision.

    `is_known`: False when the folder is of another layout (GGUF, OpenVINO, MNN), of which nothing is read.
    `fault`: what no engine could load, or None.
    """

    architectures: tuple[str, ...] = ()
    quantization: str | None = None
    shapes: frozenset[Shape] = frozenset()
    is_known: bool = True
    fault: str | None = None


def read_facts(folder: Path) -> CheckpointFacts:
    """Raises CheckpointError."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder")
    config = _read(folder / "config.json")
    if config is None:
        return _without_config(folder)
    manifest = _read(folder / "penstock.json") or {}
    quantization = config.get("quantization_config") or {}
    return CheckpointFacts(
        architectures=tuple(map(str, config.get("architectures") or ())),
        quantization=_quantization(folder, quantization, manifest),
        shapes=frozenset(_shapes(config, quantization, manifest)),
        fault=_fault(config),
    )


def _without_config(folder: Path) -> CheckpointFacts:
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{folder} is a LoRA adapter (adapter_config.json); deploy its base model and name it under adapters"
        )
    if any(next(folder.glob(pattern), None) for pattern in _OTHER_LAYOUTS):
        return CheckpointFacts(is_known=False)
    raise CheckpointError(f"{folder} has no config.json")


def _read(file: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} is not a JSON object")
    return value


def _quantization(folder: Path, config: dict[str, Any], manifest: dict[str, Any]) -> str | None:
    method = config.get("quant_method")
    if method is None and (folder / "hf_quant_config.json").is_file():
        method = "modelopt"
    if method is None and str(manifest.get("scheme")).lower() in ("spqr", "fp6"):
        method = str(manifest["scheme"]).lower()
    return None if method is None else str(method).lower()


def _shapes(config: dict[str, Any], quantization: dict[str, Any], manifest: dict[str, Any]) -> set[Shape]:
    shapes = {Shape(name) for name in _list(manifest.get("structure")) if name in set(Shape)}
    method = _BY_METHOD.get(str(manifest.get("method")).lower())
    if method is not None:
        shapes.add(method)
    sparsity = quantization.get("sparsity_config") or {}
    if quantization.get("format") in _SPARSE_FORMATS or (
        sparsity.get("sparsity_structure") == "2:4" and sparsity.get("format") in _SPARSE_FORMATS
    ):
        shapes.add(Shape.SPARSE_24)
    text = config.get("text_config") or {}
    is_uneven = any(isinstance(part.get(name), list) for part in (config, text) for name in _SIZES)
    if is_uneven and _UNEVEN_BY_NATURE.isdisjoint(_list(config.get("architectures"))):
        shapes.add(Shape.PER_LAYER)
    return shapes


def _fault(config: dict[str, Any]) -> str | None:
    """Heads that were pruned need their size said: loaders divide otherwise."""
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if not (isinstance(width, int) and isinstance(heads, int) and heads > 0) or config.get("head_dim") is not None:
        return None
    return (
        f"its config.json has no head_dim, and {heads} heads do not divide hidden_size {width}"
        if width % heads
        else None
    )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
