"""Is this checkpoint what its manifest says, and is it whole? Faults are found and named, nothing is repaired.

Headers, hashes and shapes need the standard library only; looking for NaN needs numpy and is left out without it.
"""

import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.checkpoint.header import Stored, read_header, weight_files
from compressor.checkpoint.manifest import NAME, find, sha256
from compressor.errors import BadCheckpointError
from compressor.families import Family, family_of

INDEX = "model.safetensors.index.json"
_CHUNK_BYTES = 2**24
# Bits of the exponent that are all set in NaN and infinity; E4M3 has no infinity and one NaN of each sign.
_SPECIAL = {
    "F32": ("<u4", 0x7F800000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("u1", 0x7C),
    "F8_E4M3": ("u1", 0x7F),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """`file`: relative to the checkpoint."""

    file: str
    what: str


def verify(folder: Path, on_step: Callable[[str], None] = lambda _: None) -> list[Fault]:
    """All faults; `on_step` is told each check before it starts. Raises BadCheckpointError when it is no checkpoint."""
    if not folder.is_dir():
        raise BadCheckpointError(f"{folder} is not a folder: give a checkpoint's")
    faults: list[Fault] = []
    on_step("hashes and sizes")
    faults.extend(_hashes(folder))
    on_step("shards")
    stored = _shards(folder, faults)
    faults.extend(_index(folder, stored))
    on_step("config.json against the tensors")
    faults.extend(_config(folder, stored))
    if can_look_for_nan():
        on_step("values")
        faults.extend(_values(folder, stored))
    return faults


def can_look_for_nan() -> bool:
    return importlib.util.find_spec("numpy") is not None


def _hashes(folder: Path) -> Iterator[Fault]:
    try:
        manifest = find(folder)
    except BadCheckpointError as error:
        yield Fault(NAME, str(error))
        return
    if manifest is None:
        yield Fault(NAME, "is missing: hashes cannot be checked")
        return
    files = manifest.get("files")
    if not isinstance(files, dict):
        yield Fault(NAME, "names no files: hashes cannot be checked")
        return
    for name, told in files.items():
        yield from _hash(folder, name, told)
    extra = {path.name for path in weight_files(folder)} - files.keys()
    for name in sorted(extra):
        yield Fault(name, f"holds weights that {NAME} does not know of")


def _hash(folder: Path, name: str, told: Any) -> Iterator[Fault]:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()) or not isinstance(told, dict):
        yield Fault(NAME, f"its entry {name!r} is no file of this folder")
    elif not path.is_file():
        yield Fault(name, "is missing")
    elif path.stat().st_size != told.get("size_bytes"):
        yield Fault(name, f"has {path.stat().st_size:,} bytes; {NAME} says {told.get('size_bytes')}")
    elif sha256(path) != told.get("sha256"):
        yield Fault(name, f"is not the file that was made: its sha256 differs from that in {NAME}")


def _shards(folder: Path, faults: list[Fault]) -> dict[str, dict[str, Stored]]:
    """Tensors by file, of the files that are whole."""
    whole = {}
    for path in weight_files(folder):
        try:
            whole[path.name] = read_header(path)
        except BadCheckpointError as error:
            faults.append(Fault(path.name, str(error)))
    return whole


def _index(folder: Path, stored: dict[str, dict[str, Stored]]) -> Iterator[Fault]:
    if not (folder / INDEX).is_file():
        if len(stored) > 1:
            yield Fault(INDEX, f"is missing, and there are {len(stored)} shards")
        return
    try:
        promised = dict(json.loads((folder / INDEX).read_text("utf-8"))["weight_map"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield Fault(INDEX, f"cannot be read: {error!r}")
        return
    for name, file in promised.items():
        if not (folder / str(file)).is_file():
            yield Fault(str(file), f"is missing; {INDEX} names it")
        elif name not in stored.get(str(file), {name: None}):
            yield Fault(str(file), f"lacks tensor {name}, which {INDEX} promises")
    for file, tensors in stored.items():
        for name in tensors.keys() - promised.keys():
            yield Fault(INDEX, f"does not name tensor {name} of {file}")


def _config(folder: Path, stored: dict[str, dict[str, Stored]]) -> Iterator[Fault]:
    tensors = {name: tensor for part in stored.values() for name, tensor in part.items()}
    if not (folder / "config.json").is_file():
        if tensors or not any(folder.glob("*.gguf")):
            yield Fault("config.json", "is missing")
        return
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        family = family_of(config)
    except (OSError, ValueError, AttributeError) as error:
        yield Fault("config.json", f"cannot be read: {error}")
        return
    except BadCheckpointError:
        return  # of an architecture that is not known here no shape is known either
    if tensors:
        yield from _shapes(config, family, tensors)


def _shapes(config: dict[str, Any], family: Family, tensors: dict[str, Stored]) -> Iterator[Fault]:
    layers = config.get("num_hidden_layers")
    found = len(
        {
            name.removeprefix(f"{family.blocks}.").partition(".")[0]
            for name in tensors
            if name.startswith(f"{family.blocks}.")
        }
    )
    if isinstance(layers, int) and found != layers:
        yield Fault("config.json", f"says {layers} layers, and the tensors have {found}")
    wanted = (config.get("vocab_size"), config.get("word_embed_proj_dim") or config.get("hidden_size"))
    table = tensors.get(f"{family.embeddings}.weight")
    if table is None:
        yield Fault("config.json", f"promises {family.embeddings}.weight, which no file holds")
    elif all(isinstance(extent, int) for extent in wanted) and table.shape != wanted:
        yield Fault("config.json", f"says {wanted} for {family.embeddings}, and the tensor has {table.shape}")
    is_quantized = isinstance(config.get("quantization_config"), dict)
    for index in range(found):
        for linear in family.linears:
            yield from _linear(f"{family.block(index)}.{linear}", tensors, is_quantized=is_quantized)


def _linear(name: str, tensors: dict[str, Stored], *, is_quantized: bool) -> Iterator[Fault]:
    parts = {key for key in tensors if key.startswith(f"{name}.")}
    if not parts:
        yield Fault("config.json", f"its architecture has {name}, of which no file holds a tensor")
    elif parts - {f"{name}.weight", f"{name}.bias"} and not is_quantized:
        yield Fault("config.json", f"has no quantization_config, and {name} is stored as {len(parts)} tensors")


def _values(folder: Path, stored: dict[str, dict[str, Stored]]) -> Iterator[Fault]:
    for file, tensors in stored.items():
        for name, tensor in tensors.items():
            if tensor.dtype in _SPECIAL and not _is_finite(folder / file, tensor):
                yield Fault(file, f"tensor {name} holds NaN or infinite values")


def _is_finite(path: Path, tensor: Stored) -> bool:
    import numpy as np

    kind, special = _SPECIAL[tensor.dtype]
    with path.open("rb") as file:
        file.seek(tensor.begin)
        left = tensor.end - tensor.begin
        while left > 0:
            chunk = np.frombuffer(file.read(min(_CHUNK_BYTES, left)), dtype=kind)
            if bool(((chunk & special) == special).any()):
                return False
            left -= _CHUNK_BYTES
    return True
