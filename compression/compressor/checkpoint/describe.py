"""A checkpoint's manifest as people ask for it: of one, of two side by side, of all in a folder.

A checkpoint that has no manifest is told from its headers: what is not known is left out, never guessed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.checkpoint.card import short, size
from compressor.checkpoint.header import BITS, read_headers
from compressor.checkpoint.manifest import NAME, find, size_bytes_of
from compressor.errors import BadCheckpointError

_SIGNS = ("config.json", NAME, "*.gguf", "openvino_model.xml")
_SIDE_BY_SIDE = ("name", "method", "scheme", "structure", "bits_per_weight", "bits_per_linear_weight", "sparsity")
_COUNTED = ("parameters", "size_bytes", "seconds", "peak_bytes")
# Where the figures are that everybody asks for: in what `penstock compress` measures, in the starter's manifest.
_HEADLINES = {
    "perplexity": (("perplexity", "value"), ("prose", "perplexity")),
    "accuracy": (("accuracy", "mean"), ("mean_accuracy",)),
    "kl": (("kl", "mean"),),
    "agreement": (("agreement", "value"), ("agreement", "mean")),
}


@dataclass(frozen=True, slots=True)
class Difference:
    """`is_comparable`: False for figures that were measured by different protocols."""

    what: str
    first: Any
    second: Any
    is_comparable: bool = True

    def change(self) -> str:
        """The second against the first, in percent, where both are figures of one protocol."""
        pair = (self.first, self.second)
        if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in pair) or not self.first:
            return ""
        if not self.is_comparable:
            return "other protocol"
        return f"{self.second / self.first - 1:+.1%}"


def describe(folder: Path) -> dict[str, Any]:
    """The manifest, or what the headers tell. Raises BadCheckpointError when the folder is no checkpoint."""
    if not folder.is_dir():
        raise BadCheckpointError(f"{folder} is not a folder: give a checkpoint's")
    manifest = find(folder)
    if manifest is not None:
        return manifest
    if not is_checkpoint(folder):
        raise BadCheckpointError(f"{folder} is no checkpoint: it has neither {NAME} nor config.json")
    stored = read_headers(folder)
    bits: dict[str, int] = {}
    for tensor in stored.values():
        bits[tensor.dtype] = bits.get(tensor.dtype, 0) + tensor.count * BITS.get(tensor.dtype, 8)
    most = max(bits, key=lambda dtype: bits[dtype], default="unknown")
    told: dict[str, Any] = {"name": folder.resolve().name, "method": "unknown: no penstock.json", "scheme": most}
    if most in ("BF16", "F16", "F32"):
        parameters = sum(tensor.count for tensor in stored.values())
        told |= {"bits_per_weight": round(sum(bits.values()) / parameters, 4), "parameters": parameters}
    return told | {"size_bytes": size_bytes_of(folder)}


def is_checkpoint(folder: Path) -> bool:
    return any(next(folder.glob(sign), None) for sign in _SIGNS)


def describe_all(folder: Path) -> list[dict[str, Any]]:
    """Every checkpoint directly in `folder`; of a broken one its name and `fault`. Raises BadCheckpointError."""
    if not folder.is_dir():
        raise BadCheckpointError(f"{folder} is not a folder")
    inside = (path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith("."))
    return [_described(path) for path in inside if is_checkpoint(path)]


def _described(folder: Path) -> dict[str, Any]:
    try:
        return describe(folder)
    except BadCheckpointError as error:
        return {"name": folder.name, "fault": str(error)}


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """What the two are always compared by, and everything of their recipes that differs."""
    rows = [Difference(key, first.get(key), second.get(key)) for key in (*_SIDE_BY_SIDE, *_COUNTED)]
    before, after = figures(_measured_alike(first, second)), figures(_measured_alike(second, first))
    for key in (key for key in _HEADLINES if key in before or key in after):
        (was, old), (now, new) = before.get(key, (None, None)), after.get(key, (None, None))
        rows.append(Difference(key, was, now, is_comparable=old == new))
    recipes = dict(flat(first.get("recipe") or {}, "recipe")), dict(flat(second.get("recipe") or {}, "recipe"))
    if all("steps" in (one.get("recipe") or {}) for one in (first, second)):
        keys = sorted(recipes[0].keys() | recipes[1].keys())
        rows += [Difference(key, recipes[0].get(key), recipes[1].get(key)) for key in keys]
        rows = [row for row in rows if not row.what.startswith("recipe.") or row.first != row.second]
    return [row for row in rows if not row.first is row.second is None]


def _measured_alike(manifest: Mapping[str, Any], other: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a parent, what was measured of it together with its child: by the child's protocol."""
    origin, together = other.get("parent") or {}, (other.get("quality") or {}).get("parent")
    is_parent = isinstance(origin, dict) and origin.get("name") == manifest.get("name")
    if not (is_parent and isinstance(together, dict)):
        return manifest
    of_child = {key: (other["quality"].get(key) or {}).get("protocol") for key in together}
    return {**manifest, "quality": {key: {**part, "protocol": of_child[key]} for key, part in together.items()}}


def headline(manifest: Mapping[str, Any]) -> dict[str, float]:
    """Perplexity, accuracy, divergence, agreement: those that were measured."""
    return {name: value for name, (value, _) in figures(manifest).items()}


def figures(manifest: Mapping[str, Any]) -> dict[str, tuple[float, Any]]:
    """The same with the protocol that each was measured by."""
    found = {}
    for name, places in _HEADLINES.items():
        for *path, key in places:
            at: Any = manifest.get("quality") or {}
            for part in path:
                at = at.get(part) if isinstance(at, dict) else None
            if isinstance(at, dict) and isinstance(at.get(key), int | float):
                found[name] = (at[key], at.get("protocol"))
                break
    return found


def flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Leaves of a JSON value by their path: "recipe.steps.0.method"."""
    inside = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if inside is None:
        yield name, value
        return
    for key, part in inside:
        yield from flat(part, f"{name}.{key}")


def recipe_lines(manifest: Mapping[str, Any]) -> list[str]:
    """The recipe's leaves that say something, one a line."""
    recipe = manifest.get("recipe") or {}
    if "steps" not in recipe:
        return []
    return [
        f"{name.removeprefix('recipe.')}: {short(value)}" for name, value in flat(recipe, "recipe") if value is not None
    ]


def file_lines(manifest: Mapping[str, Any]) -> list[str]:
    files = manifest.get("files") or {}
    return [f"{facts['sha256'][:12]}…  {size(facts['size_bytes']):>10}  {name}" for name, facts in files.items()]
