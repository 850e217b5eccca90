"""What a checkpoint's folder says of itself, as far as it decides which engine can load it.

Reads `config.json` (Hugging Face), `hf_quant_config.json` (NVIDIA ModelOpt) and `penstock.json` (our manifest); no
weights. Apart from capabilities.py, which says what engines can do and never touches a file.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.backends.capabilities import Shape
from gateway.backends.scheme import is_decoded, schemes_of

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
_LIMIT_BYTES = 16 * 2**20
_OTHER_LAYOUTS = ("*.gguf", "*.xml", "*.mnn")


class CheckpointError(Exception):
    """The folder is no checkpoint; the message says why."""


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """`quantization`: its `quant_method`, or our scheme where that has no such name; None for full precision.
    `schemes`: the number formats of weights, inputs and KV cache, in the words of `capabilities.SCHEMES`.

    `is_known`: False when the folder is of another layout (GGUF, OpenVINO, MNN), of which nothing is read.
    `fault`: what no engine could load, or None.
    """

    architectures: tuple[str, ...] = ()
    quantization: str | None = None
    schemes: frozenset[str] = frozenset()
    shapes: frozenset[Shape] = frozenset()
    is_known: bool = True
    fault: str | None = None


def read_facts(folder: Path) -> CheckpointFacts:
    """Raises CheckpointError."""
    try:
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is not a folder")
        config = _read(folder / "config.json")
        if config is None:
            return _without_config(folder)
        manifest = _read(folder / "penstock.json") or {}
        container = _container(folder)
        if container is not None:
            return CheckpointFacts(quantization=container, schemes=schemes_of({}, manifest))
        quantization = _part(config, "quantization_config")
        return CheckpointFacts(
            architectures=tuple(map(str, _list(config.get("architectures")))),
            quantization=_quantization(folder, quantization, manifest),
            schemes=schemes_of(quantization, manifest),
            shapes=frozenset(_shapes(config, quantization, manifest)),
            fault=_fault(config),
        )
    except _NoObjectError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error} is not a JSON object") from None
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror}") from None


def _without_config(folder: Path) -> CheckpointFacts:
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{folder} is a LoRA adapter (adapter_config.json); deploy its base model and name it under adapters"
        )
    if any(next(folder.glob(pattern), None) for pattern in _OTHER_LAYOUTS):
        return CheckpointFacts(is_known=False)
    raise CheckpointError(f"{folder} has no config.json")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a checkpoint; None when it has none, or one that nobody can read."""
    try:
        return _read(folder / "penstock.json")
    except CheckpointError:
        return None


def _container(folder: Path) -> str | None:
    """The layout, when the weights are in an engine's own: only that engine knows which architectures it takes."""
    if next(folder.glob("*.safetensors"), None):
        return None
    found = (
        kind for pattern, kind in (("*.gguf", "gguf"), ("openvino_model.xml", "openvino")) if any(folder.glob(pattern))
    )
    return next(found, None)


def _read(file: Path) -> dict[str, Any] | None:
    try:
        with file.open("rb") as opened:
            text = opened.read(_LIMIT_BYTES + 1)
        if len(text) > _LIMIT_BYTES:
            raise CheckpointError(f"{file} is larger than {_LIMIT_BYTES >> 20} MiB: no such file is")
        value = json.loads(text.decode("utf-8-sig"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} is not a JSON object")
    return value


def _quantization(folder: Path, config: dict[str, Any], manifest: dict[str, Any]) -> str | None:
    method = config.get("quant_method")
    if method is None and (config.get("load_in_4bit") or config.get("load_in_8bit")):
        method = "bitsandbytes"  # as it was written before `quant_method` was
    if method is None and (folder / "hf_quant_config.json").is_file():
        method = "modelopt"
    if method is None and str(manifest.get("scheme")).lower() in ("spqr", "fp6") and not is_decoded(manifest):
        method = str(manifest["scheme"]).lower()
    return None if method is None else str(method).lower()


def _shapes(config: dict[str, Any], quantization: dict[str, Any], manifest: dict[str, Any]) -> set[Shape]:
    named = _list(manifest.get("structure"))
    shapes = {shape for shape in Shape if shape in named}
    method = _BY_METHOD.get(str(manifest.get("method")).lower())
    if method is not None:
        shapes.add(method)
    sparsity = _part(quantization, "sparsity_config")
    is_24 = sparsity.get("sparsity_structure") == "2:4" and str(sparsity.get("format")) in _SPARSE_FORMATS
    if is_24 or str(quantization.get("format")) in _SPARSE_FORMATS:
        shapes.add(Shape.SPARSE_24)
    text = _part(config, "text_config")
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


class _NoObjectError(Exception):
    """The message is the key whose value should be one."""


def _part(config: dict[str, Any], key: str) -> dict[str, Any]:
    """The object under `key`, an empty one when there is none."""
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise _NoObjectError(key)
    return value


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
