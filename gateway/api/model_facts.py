"""What /v1/models says of a checkpoint: how it was made and what it lost, from its manifest (penstock.json).

In a list what fits a line; for one model also its parent, each measurement with its protocol and the gate. Per-layer
facts, file hashes and results by task family stay in the file.
"""

from collections.abc import Mapping
from typing import Any

_WHOLE = ("parent", "calibration", "gate", "served_by")


def facts_of(manifest: Any, *, is_whole: bool) -> dict[str, Any]:
    """`manifest` is somebody's JSON: what has an unlikely type is left out."""
    parts = _object(manifest)
    facts = _plain(parts)
    recipe = _object(parts.get("recipe")).get("name")
    if isinstance(recipe, str):
        facts["recipe"] = recipe
    if quality := _object(parts.get("quality")):
        measured = {name: (_plain if is_whole else _figure)(part) for name, part in quality.items()}
        facts["quality"] = _plain(quality) | {name: part for name, part in measured.items() if part not in (None, {})}
    if is_whole:
        facts |= {key: plain for key in _WHOLE if (plain := _plain(parts.get(key)))}
    return facts


def _figure(measured: Any) -> float | None:
    """Of one measurement its value alone, where it is told apart from its protocol."""
    value = _object(measured).get("value", _object(measured).get("mean"))
    return value if isinstance(value, int | float) else None


def _plain(value: Any) -> dict[str, Any]:
    """An object without the objects and lists in it."""
    return {key: part for key, part in _object(value).items() if not isinstance(part, dict | list)}


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
