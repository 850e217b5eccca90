"""penstock.json: how a checkpoint was made and what it lost. Built, read and written here; design.md section 4.

Every value is counted on the files or handed over by the run that measured it. No torch: the manifest is read where
there is none. Bits are true ones: scales, zeros, indices, outliers, adapters and what stayed dense are all counted.
"""

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from compressor.checkpoint.header import BITS, Stored, read_header, read_headers
from compressor.errors import BadCheckpointError

NAME = "penstock.json"
CARD = "README.md"
VERSION = 1
TOOLS = ("penstock", "torch", "transformers", "compressed-tensors", "safetensors", "tokenizers", "numpy")
_OTHER_WEIGHTS = ("*.gguf", "*.bin", "*.xml")
_CHUNK_BYTES = 2**22


@dataclass(frozen=True, slots=True)
class Work:
    """What only the run itself knows; the rest is read from the folder.

    `recipe`: whole, resolved. `method`: names joined by "+". `scheme`: "W4A16", or the dtype where weights stay dense.
    `layers`: by full name of the linear, JSON facts; these keys are counted: `weights` (how many), `zeros` (of them,
    in the dense view), `size_bits` (codes, scales and all; only where the weight is encoded), `adapter_bits` (factors
    beside it).
    `seconds`: wall time of the whole run; `peak_bytes`: highest resident memory. `tools`: packages beyond TOOLS.
    `prunes`: a step made zeros on purpose; those that rounding leaves in few bits are no sparsity.
    """

    name: str
    parent: Path
    recipe: Mapping[str, Any]
    method: str
    scheme: str
    layers: Mapping[str, Mapping[str, Any]]
    seconds: float
    peak_bytes: int
    structure: str | None = None
    calibration: Mapping[str, Any] | None = None
    quality: Mapping[str, Any] | None = None
    gate: Mapping[str, Any] | None = None
    served_by: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[str, ...] = ()
    prunes: bool = True


@dataclass(frozen=True, slots=True)
class Counts:
    """`parameters`: logical weights, however they are stored. `size_bits`: what they take, all overhead counted."""

    parameters: int
    size_bits: int
    linear_weights: int
    linear_bits: int
    zeros: int


def build(folder: Path, work: Work) -> dict[str, Any]:
    """The manifest of the finished files in `folder` (without `files`: `seal` adds them, the card included).

    Raises BadCheckpointError.
    """
    counts = count(folder, work.layers, work.parent)
    before = parameters_of(work.parent)
    manifest: dict[str, Any] = {
        "penstock_manifest": VERSION,
        "name": work.name,
        "base_model": base_model_of(work.parent),
        "parent": parent_of(work.parent),
        "method": work.method,
        "recipe": dict(work.recipe),
        "scheme": work.scheme,
    }
    if work.structure is not None:
        manifest["structure"] = work.structure
    return manifest | {
        "bits_per_weight": round(counts.size_bits / counts.parameters, 4),
        "bits_per_linear_weight": round(counts.linear_bits / counts.linear_weights, 4)
        if counts.linear_weights
        else None,
        "sparsity": round(counts.zeros / counts.linear_weights, 4) if work.prunes and counts.linear_weights else 0.0,
        "parameters": counts.parameters,
        "removed_parameters": before - counts.parameters,
        "size_bytes": size_bytes_of(folder),
        "calibration": None if work.calibration is None else dict(work.calibration),
        "tools": versions((*TOOLS, *work.tools)),
        "seconds": round(work.seconds, 2),
        "peak_bytes": work.peak_bytes,
        **work.facts,
        "layers": {name: dict(facts) for name, facts in work.layers.items()},
        "quality": None if work.quality is None else dict(work.quality),
        "gate": None if work.gate is None else dict(work.gate),
        "served_by": dict(work.served_by),
    }


def count(folder: Path, layers: Mapping[str, Mapping[str, Any]], parent: Path) -> Counts:
    """Weights and bits of a checkpoint whose linears are told of in `layers`.

    A layout without safetensors (GGUF, OpenVINO) has its parent's weights, and the bits of its files.
    """
    stored = read_headers(folder)
    encoded = {name for name, facts in layers.items() if "size_bits" in facts}
    if not stored:
        parameters = parameters_of(parent)
        return Counts(parameters, size_bytes_of(folder) * 8, *_linears(layers, {}))
    dense = {name: tensor for name, tensor in stored.items() if not _belongs_to(name, encoded)}
    parameters = sum(tensor.count for tensor in dense.values()) + sum(layers[name]["weights"] for name in encoded)
    bits = sum(map(_bits, dense.values())) + sum(layers[name]["size_bits"] for name in encoded)
    return Counts(parameters, bits + _adapter_bits(folder), *_linears(layers, dense))


def _linears(layers: Mapping[str, Mapping[str, Any]], dense: Mapping[str, Stored]) -> tuple[int, int, int]:
    """Weights, bits and zeros of the linears that the run touched."""
    bits = 0
    for name, facts in layers.items():
        tensor = dense.get(f"{name}.weight")
        bits += facts.get("size_bits", _bits(tensor) if tensor is not None else 16 * facts.get("weights", 0))
        bits += facts.get("adapter_bits", 0)
    return (
        sum(facts.get("weights", 0) for facts in layers.values()),
        bits,
        sum(facts.get("zeros", 0) for facts in layers.values()),
    )


def _belongs_to(name: str, encoded: Iterable[str]) -> bool:
    module, _, last = name.rpartition(".")
    return module in encoded and last != "bias"


def _bits(tensor: Stored) -> int:
    return tensor.count * BITS.get(tensor.dtype, 0) or (tensor.end - tensor.begin) * 8


def _adapter_bits(folder: Path) -> int:
    """Low-rank factors that are served beside the weights."""
    return sum(_bits(tensor) for file in folder.glob("*/*.safetensors") for tensor in read_header(file).values())


def size_bytes_of(folder: Path) -> int:
    """What all weights of the folder take on disk, adapters included; without file headers."""
    tensors = (tensor for file in folder.glob("**/*.safetensors") for tensor in read_header(file).values())
    others = (file.stat().st_size for pattern in _OTHER_WEIGHTS for file in folder.glob(f"**/{pattern}"))
    return sum(tensor.end - tensor.begin for tensor in tensors) + sum(others)


def parameters_of(folder: Path) -> int:
    """Logical weights: as its manifest says, or counted where it has none."""
    manifest = find(folder)
    told = manifest.get("parameters") if manifest else None
    return told if isinstance(told, int) else sum(tensor.count for tensor in read_headers(folder).values())


def base_model_of(parent: Path) -> str:
    """Where the line of parents began."""
    manifest = find(parent) or {}
    return str(manifest.get("base_model") or manifest.get("name") or parent.resolve().name)


def parent_of(folder: Path) -> dict[str, str]:
    """Which checkpoint this was made from: by the hash of its manifest, or of its weights where it has none."""
    manifest = find(folder) or {}
    name = folder.resolve().name
    hashed = (
        {"hash_of": NAME, "sha256": sha256(folder / NAME)}
        if manifest
        else {"hash_of": "weights", "sha256": _weights(folder)}
    )
    return {"name": str(manifest.get("name") or name), "path_name": name, **hashed}


def _weights(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(f"{file.name} {sha256(file)}\n".encode())
    return digest.hexdigest()


def files_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Hash and size of every file but the manifest itself; names relative to the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / NAME)
    return {
        path.relative_to(folder).as_posix(): {"sha256": sha256(path), "size_bytes": path.stat().st_size}
        for path in files
    }


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of what took part; what is not installed took none."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write(folder: Path, manifest: Mapping[str, Any]) -> None:
    text = json.dumps(manifest, ensure_ascii=False, indent=2, allow_nan=False)
    (folder / NAME).write_text(f"{text}\n", encoding="utf-8")


def find(folder: Path) -> dict[str, Any] | None:
    """The manifest of a checkpoint, None where there is none. Raises BadCheckpointError when it cannot be read."""
    path = folder / NAME
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise BadCheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(manifest, dict):
        raise BadCheckpointError(f"{path} is not a JSON object")
    return manifest


def read(folder: Path) -> dict[str, Any]:
    """The manifest. Raises BadCheckpointError."""
    if not folder.is_dir():
        raise BadCheckpointError(f"{folder} is not a folder: give a checkpoint's")
    manifest = find(folder)
    if manifest is None:
        raise BadCheckpointError(f"{folder} has no {NAME}: nothing is known of how it was made")
    return manifest
