"""A comparison as one HTML file that needs nothing else: no script, no font, no network, no Python to read it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from compressor.checkpoint.card import size
from compressor.report.plots import colour, plots

Row = Mapping[str, Any]

TEMPLATE = Path(__file__).with_name("page.html.j2")


def as_html(comparison: Mapping[str, Any]) -> str:
    """The page."""
    rows = comparison["checkpoints"]
    numbers = {row["name"]: number for number, row in enumerate(rows)}
    streams = sorted({count for row in comparison["served"] for count in row["tokens_per_s"]}, key=int)
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False).from_string(
        TEMPLATE.read_text("utf-8")
    )
    return page.render(
        title=_title(comparison),
        lead=lead(comparison),
        notes=comparison["notes"],
        reference=comparison["reference"],
        rows=[_shown(number, row, comparison["reference"]) for number, row in enumerate(rows)],
        plots=plots(comparison),
        streams=streams,
        served=[
            {
                "number": numbers[row["checkpoint"]] + 1,
                "colour": colour(numbers[row["checkpoint"]]),
                "engine": row["engine"],
                "rates": [
                    f"{row['tokens_per_s'][count]:,.0f}" if count in row["tokens_per_s"] else "–" for count in streams
                ],
                "memory": size(row["rss_bytes"]) if row["rss_bytes"] else "–",
            }
            for row in comparison["served"]
        ],
    )


def _title(comparison: Mapping[str, Any]) -> str:
    rows, reference = comparison["checkpoints"], comparison["reference"]
    made = [row for row in rows if row["name"] != reference]
    if reference is not None:
        return f"{reference} and what was made of it: {len(made)} compressed checkpoint{'s' if len(made) != 1 else ''}"
    return f"{len(rows)} checkpoint{'s' if len(rows) != 1 else ''} side by side"


def lead(comparison: Mapping[str, Any]) -> str:
    """What a reader wants to know first: the smallest that lost least."""
    made = [row for row in comparison["checkpoints"] if row["name"] != comparison["reference"]]
    within = [row for row in made if (row["gate"] or {}).get("passed") is True and row["size_bytes"]]
    if not within:
        failed = any((row["gate"] or {}).get("passed") is False for row in made)
        return "None is within its gate." if failed else "No gate was judged: nothing says which loss is acceptable."
    best = min(within, key=lambda row: row["size_bytes"])
    words = [f"The smallest within its gate is {best['name']}: {size(best['size_bytes'])}"]
    if best["size_ratio"] is not None:
        words.append(f"{best['size_ratio']:.1f} times smaller")
    if best["perplexity_growth"] is not None:
        words.append(f"perplexity {best['perplexity_growth']:+.1%}")
    if best["accuracy_lost"] is not None:
        words.append(f"accuracy {-best['accuracy_lost']:+.3f}")
    return ", ".join(words) + "."


def _shown(number: int, row: Row, reference: str | None) -> dict[str, Any]:
    return {
        "number": number + 1,
        "colour": colour(number),
        "name": row["name"],
        "is_reference": row["name"] == reference,
        "how": " · ".join(str(part) for part in (row["method"], row["scheme"], row["structure"]) if part),
        "cells": list(_cells(row)),
        "gate": _gate(row["gate"]),
        "facts": list(_facts(row)),
        "recipe": yaml.safe_dump(row["recipe"], sort_keys=False, allow_unicode=True)
        if row["method"] != "trained"
        else "",
    }


def _cells(row: Row) -> Iterator[dict[str, str]]:
    def cell(value: str, note: str = "") -> dict[str, str]:
        return {"value": value, "note": note}

    bits, linear, kept = row["bits_per_weight"], row["bits_per_linear_weight"], row["sparsity"] or 0
    note = f"{linear:.2f} in linears" if linear else ""
    yield cell(f"{bits:.2f}" if bits is not None else "–", f"{kept:.0%} zeros" if kept > 0.2 else note)
    ratio = row["size_ratio"]
    yield cell(size(row["size_bytes"]) if row["size_bytes"] else "–", f"{ratio:.2f}× smaller" if ratio else "")
    growth, lost = row["perplexity_growth"], row["accuracy_lost"]
    yield cell(_figure(row["perplexity"], 2), f"{growth:+.1%}" if growth is not None else "")
    yield cell(_figure(row["accuracy"], 3), f"{-lost:+.3f}" if lost is not None else "")
    yield cell(_figure(row["kl"], 4))
    yield cell(f"{row['agreement']:.1%}" if row["agreement"] is not None else "–")


def _figure(value: float | None, digits: int) -> str:
    if value is None:
        return "–"
    return f"{value:.{digits}f}" if abs(value) < 1e6 else f"{value:.1e}"


def _gate(gate: Mapping[str, Any] | None) -> dict[str, str] | None:
    if gate is None:
        return None
    judged = {True: ("passed", "good"), False: ("failed", "bad"), None: ("not judged", "")}
    word, kind = judged[gate.get("passed")]
    limit = gate.get("limit")
    told = f"{limit:g}" if gate.get("metric") != "perplexity" else f"+{limit:.0%}"
    return {"word": word, "kind": kind, "limit": f"{gate.get('metric')}, limit {told}"}


def _facts(row: Row) -> Iterator[tuple[str, str]]:
    if row["parent"]:
        yield "made from", str(row["parent"])
    if row["parameters"]:
        removed = row["removed_parameters"] or 0
        yield "parameters", f"{row['parameters']:,}" + (f", {removed:,} removed" if removed else "")
    if row["calibration"]:
        data = row["calibration"]
        yield (
            "calibration",
            f"{data['file']}: {data['samples']} windows of {data['seq_len']} tokens, seed {data['seed']}",
        )
    if row["seconds"]:
        yield "took", f"{row['seconds']:,.0f} s, {size(row['peak_bytes'])} of memory at the peak"
    if row["gate"]:
        yield "gate", str(row["gate"].get("reason"))
    for figure, protocol in row["protocols"].items():
        yield f"{figure}: protocol", _protocol(protocol)
    for engine, note in row["served_by"].items():
        yield f"served by {engine}", str(note)
    if row["method"] != "trained" and not row["served_by"]:
        yield "served by", "no engine as it is"
    if row["tools"]:
        yield "made with", ", ".join(f"{name} {version}" for name, version in row["tools"].items())


def _protocol(protocol: Any) -> str:
    """Hashes by their beginning: the JSON has them whole."""
    if not isinstance(protocol, Mapping):
        return str(protocol)
    return ", ".join(f"{key} {value[:12] if _is_hash(value) else value!r}" for key, value in protocol.items())


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")
