"""README.md of a checkpoint: the manifest in sentences and tables, for people and for model hubs.

Written from the manifest and nothing else, so the two cannot disagree.
"""

from collections.abc import Iterator, Mapping
from typing import Any

Manifest = Mapping[str, Any]
_MOST_LAYERS = 64
_HASH_LENGTH = 64


def as_card(manifest: Manifest) -> str:
    """Markdown with a hub's front matter."""
    parts = (
        _front(manifest),
        _intro(manifest),
        _made(manifest),
        _quality(manifest),
        _served(manifest),
        _layers(manifest),
    )
    return "\n".join(part for part in parts if part)


def _front(manifest: Manifest) -> str:
    return f"---\nbase_model: {manifest.get('base_model')}\npipeline_tag: text-generation\n---\n"


def _intro(manifest: Manifest) -> str:
    parent, base = manifest.get("parent") or {}, manifest.get("base_model")
    origin = parent.get("name", base)
    line = "" if base in (None, origin) else f", which comes from {base}"
    return (
        f"# {manifest['name']}\n\n{origin}{line}, compressed by {manifest['method']} into {manifest['scheme']}: "
        f"{manifest['bits_per_weight']:.2f} bits a weight over all weights, {size(manifest['size_bytes'])}.\n\n"
        "Written from `penstock.json`, which holds the same figures and the whole recipe. Do not edit by hand.\n"
    )


def _made(manifest: Manifest) -> str:
    rows = "\n".join(f"| {name} | {value} |" for name, value in made_rows(manifest))
    return f"## How it was made\n\n| | |\n|---|---|\n{rows}\n"


def made_rows(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """What the run was, as (what, how much): shown on the card and by `penstock checkpoint show`."""
    yield "method", str(manifest.get("method"))
    yield "scheme", str(manifest.get("scheme"))
    if manifest.get("structure"):
        yield "structure", str(manifest["structure"])
    if "bits_per_weight" in manifest:
        yield "bits per weight", _bits(manifest)
    if manifest.get("sparsity"):
        yield "zeros in the compressed linears", f"{manifest['sparsity']:.1%}"
    if "parameters" in manifest:
        removed = manifest.get("removed_parameters") or 0
        yield "parameters", f"{manifest['parameters']:,}" + (f" ({removed:,} removed)" if removed else "")
    if "size_bytes" in manifest:
        yield "weights", size(manifest["size_bytes"])
    yield from _origin(manifest)


def _bits(manifest: Manifest) -> str:
    linear = manifest.get("bits_per_linear_weight")
    return f"{manifest['bits_per_weight']:.3f}" + (f" ({linear:.3f} in the compressed linears)" if linear else "")


def _origin(manifest: Manifest) -> Iterator[tuple[str, str]]:
    parent, data = manifest.get("parent"), manifest.get("calibration")
    if isinstance(parent, dict):
        yield "made from", f"{parent.get('name')} (sha256 of its {parent.get('hash_of')} `{parent.get('sha256')}`)"
    if isinstance(data, dict):
        kept = ("file", "samples", "rows", "seq_len", "tokens", "seed", "sha256")
        yield "calibration", ", ".join(f"{key} {data[key]}" for key in kept if data.get(key) is not None)
    if "seconds" in manifest:
        yield "time and memory", f"{manifest['seconds']:,.0f} s, {size(manifest['peak_bytes'])} at the peak"
    if manifest.get("tools"):
        yield "made with", ", ".join(f"{name} {version}" for name, version in manifest["tools"].items())


def _quality(manifest: Manifest) -> str:
    rows = "\n".join(f"- {line}" for line in quality_lines(manifest))
    return f"## Quality\n\n{rows or 'Not measured (--no-quality).'}\n"


def quality_lines(manifest: Manifest) -> Iterator[str]:
    """Every figure with its parent's and its protocol beside it."""
    quality = manifest.get("quality") or {}
    before = quality.get("parent") or {}
    for name, value in quality.items():
        if name != "parent":
            yield from _measured(name, value, before.get(name))
    gate = manifest.get("gate")
    if isinstance(gate, dict):
        word = {True: "passed", False: "FAILED"}.get(gate.get("passed"), "not judged")  # type: ignore[arg-type]
        yield f"gate: {word}: {gate.get('reason') or ''}".rstrip(": ")


def _measured(name: str, value: Any, before: Any) -> Iterator[str]:
    words = name.replace("_", " ")
    if isinstance(value, dict):
        told = ", ".join(_figure(key, value[key], before) for key in value if _is_figure(value[key]))
        protocol = value.get("protocol")
        if told:
            yield f"{words}: {told}" + (f" ({_protocol(protocol)})" if protocol else "")
    elif _is_figure(value):
        yield f"{words}: {short(value)}"


def _figure(key: str, value: Any, before: Any) -> str:
    was = before.get(key) if isinstance(before, dict) else None
    name = "" if key == "value" else f"{key.replace('_', ' ')} "
    return f"{name}{short(value)}" + (f" (parent {short(was)})" if _is_figure(was) else "")


def _protocol(protocol: Any) -> str:
    if isinstance(protocol, dict):
        return ", ".join(f"{key} {_word(value)}" for key, value in protocol.items())
    return str(protocol)


def _word(value: Any) -> str:
    """On one line, and no longer than a person reads: hashes are told whole in the manifest."""
    text = str(value)
    if len(text) == _HASH_LENGTH and set(text) <= set("0123456789abcdef"):
        return f"{text[:12]}…"
    return text if text.isprintable() else repr(text)


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _served(manifest: Manifest) -> str:
    served = manifest.get("served_by") or {}
    rows = "\n".join(f"| {engine} | {note} |" for engine, note in served.items())
    table = f"| engine | |\n|---|---|\n{rows}" if rows else "No engine that Penstock knows loads it as it is."
    return f"## Who can serve it\n\n{table}\n"


def _layers(manifest: Manifest) -> str:
    layers = manifest.get("layers") or {}
    columns = sorted({key for facts in layers.values() for key, value in facts.items() if _is_figure(value)})
    if not columns:
        return ""
    head = f"| linear | {' | '.join(column.replace('_', ' ') for column in columns)} |\n|---|{'--:|' * len(columns)}\n"
    rows = [
        f"| {name} | {' | '.join(short(facts[key]) if key in facts else '–' for key in columns)} |"
        for name, facts in list(layers.items())[:_MOST_LAYERS]
    ]
    more = f"\n\n{len(layers) - _MOST_LAYERS} more are in `penstock.json`." if len(layers) > _MOST_LAYERS else ""
    return f"## Linear by linear\n\n{head}" + "\n".join(rows) + f"{more}\n"


def short(value: Any) -> str:
    """A figure as people read it: thousands apart, four digits that count."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def size(count: int) -> str:
    """Bytes in the unit that keeps the number small."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:,.2f} {unit}"
    return f"{count} bytes"
