"""Checkpoints side by side, from their manifests alone: what each weighs, what it lost, and whether that compares.

Figures are beside each other only where their protocols are equal; where they are not, it is said.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compressor.checkpoint.manifest import read
from compressor.errors import CompressorError

Row = dict[str, Any]


class BadServedError(CompressorError):
    """The file with figures of serving cannot be used."""


def compare(folders: Sequence[Path], served: Path | None = None) -> dict[str, Any]:
    """JSON values: `checkpoints` in the order given, `notes` on what does not compare, `served` figures by checkpoint.

    `served`: a JSON list of {"checkpoint", "engine", "tokens_per_s": {"1": ..., "8": ...}, "rss_bytes"}, figures by the
    number of streams at once; or the rows that compression/bench/served.py keeps. Raises BadCheckpointError,
    BadServedError.
    """
    manifests = [read(folder) for folder in folders]
    names = _names(folders, manifests)
    rows = [_row(name, manifest) for name, manifest in zip(names, manifests, strict=True)]
    _fill_parents(rows, manifests)
    reference = _reference(rows)
    for row in rows:
        _relate(row, reference)
    return {
        "reference": reference["name"] if reference is not None else None,
        "checkpoints": rows,
        "notes": _notes(rows),
        "served": _served(served, names) if served is not None else [],
    }


def _names(folders: Sequence[Path], manifests: Sequence[Mapping[str, Any]]) -> list[str]:
    """The manifests' names; folders' where two are called the same."""
    told = [str(manifest.get("name") or folder.name) for folder, manifest in zip(folders, manifests, strict=True)]
    return [
        name if told.count(name) == 1 else f"{folder.parent.name}/{folder.name}"
        for name, folder in zip(told, folders, strict=True)
    ]


def _row(name: str, manifest: Mapping[str, Any]) -> Row:
    parent = manifest.get("parent") or {}
    kept = (
        *("method", "scheme", "structure", "bits_per_weight", "bits_per_linear_weight", "sparsity", "parameters"),
        *("removed_parameters", "size_bytes", "seconds", "peak_bytes", "calibration", "recipe", "tools", "gate"),
    )
    return {
        "name": name,
        "parent": parent.get("name"),
        **{key: manifest.get(key) for key in kept},
        "served_by": manifest.get("served_by") or {},
        **_quality(manifest.get("quality") or {}),
        "blocks": _blocks(manifest.get("layers") or {}),
    }


def _quality(quality: Mapping[str, Any]) -> dict[str, Any]:
    """Figures with their protocols, None where they were not measured this way."""
    found: dict[str, Any] = {"protocols": {}}
    for name, key in (("perplexity", "value"), ("accuracy", "mean"), ("kl", "mean"), ("agreement", "value")):
        part = quality.get(name)
        found[name] = part.get(key) if isinstance(part, Mapping) else None
        if isinstance(part, Mapping) and found[name] is not None:
            found["protocols"][name] = part.get("protocol")
    found["families"] = (quality.get("accuracy") or {}).get("families") or {}
    for name in ("ceval", "cmmlu"):
        part = quality.get(name)
        found[name] = part.get("macro") if isinstance(part, Mapping) else None
    return found


def _blocks(layers: Mapping[str, Mapping[str, Any]]) -> list[float]:
    """Relative output error of each block, in order; [] where nothing ran through them."""
    found = [(name, facts["output_error"]) for name, facts in layers.items() if "output_error" in facts]
    blocks = [(name, error) for name, error in found if name.rpartition(".")[2].isdigit()]
    return [float(error) for _, error in sorted(blocks, key=lambda pair: int(pair[0].rpartition(".")[2]))]


def _fill_parents(rows: Sequence[Row], manifests: Sequence[Mapping[str, Any]]) -> None:
    """A parent in the list that was not measured the same way has the figures that its children's runs measured."""
    for row in rows:
        for child in manifests:
            own = (child.get("quality") or {}).get("parent")
            if (child.get("parent") or {}).get("name") == row["name"] and isinstance(own, Mapping):
                measured = _quality(own)
                for key in ("perplexity", "accuracy"):
                    if row[key] is None and measured[key] is not None:
                        row[key] = measured[key]
                        row["protocols"][key] = measured["protocols"][key]
                row["families"] = row["families"] or measured["families"]


def _reference(rows: Sequence[Row]) -> Row | None:
    """What the others are compared with: the one that most of them were made of, if it is in the list."""
    parents = [row["parent"] for row in rows if row["parent"]]
    named = {row["name"]: row for row in rows}
    present = [name for name in parents if name in named]
    return named[max(set(present), key=present.count)] if present else None


def _relate(row: Row, reference: Row | None) -> None:
    """Sizes and figures against the reference, where protocols are equal."""
    row["size_ratio"] = row["perplexity_growth"] = row["accuracy_lost"] = None
    if reference is None or row is reference:
        return
    if row["size_bytes"] and reference["size_bytes"]:
        row["size_ratio"] = reference["size_bytes"] / row["size_bytes"]
    if _comparable(row, reference, "perplexity"):
        row["perplexity_growth"] = row["perplexity"] / reference["perplexity"] - 1
    if _comparable(row, reference, "accuracy"):
        row["accuracy_lost"] = reference["accuracy"] - row["accuracy"]


def _comparable(row: Row, other: Row, figure: str) -> bool:
    return (
        row[figure] is not None
        and other[figure] is not None
        and row["protocols"].get(figure) == other["protocols"].get(figure)
    )


def _notes(rows: Sequence[Row]) -> list[str]:
    notes = []
    for figure in ("perplexity", "accuracy", "kl"):
        protocols = [row["protocols"][figure] for row in rows if row[figure] is not None]
        if any(protocol != protocols[0] for protocol in protocols):
            notes.append(
                f"{figure} was measured by different protocols: those figures cannot be compared (see each one's)"
            )
    missing = [row["name"] for row in rows if row["perplexity"] is None]
    if missing:
        notes.append(f"not measured in this way: {', '.join(missing)}")
    return notes


def _served(path: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    try:
        found = [_served_row(row) for row in json.loads(path.read_text("utf-8"))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadServedError(
            f'{path} is no JSON list of {{"checkpoint", "engine", "tokens_per_s": {{"1": ...}}}}: {error!r}'
        ) from error
    return [row for row in found if row["checkpoint"] in names]


def _served_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """One of this file's own rows, or of the bench's (compression/bench/served.py), which names model and recipe."""
    if "tokens_per_s" in row:
        name, rates, memory = row["checkpoint"], row["tokens_per_s"], row.get("rss_bytes")
    else:
        name, memory = f"{row['model']}-{row['recipe']}", row["memory_bytes"]
        rates = {"1": row["single"], "8": row["eight"]}
    return {
        "checkpoint": str(name),
        "engine": str(row["engine"]),
        "tokens_per_s": {str(int(streams)): float(rate) for streams, rate in rates.items()},
        "rss_bytes": memory,
    }
