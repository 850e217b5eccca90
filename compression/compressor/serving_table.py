"""Which engine can serve what a recipe makes: asked before the work starts, and written into the manifest.

The facts are the gateway's (`penstock gateway engines --format json`), kept here as engines.json because programs share
files and not code; a test holds the two together. To renew the file:
`penstock gateway engines --format json | python -m compressor.serving_table > compression/compressor/engines.json`
"""

import difflib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.errors import BadRecipeError

FILE = Path(__file__).with_name("engines.json")
KEPT = ("architectures", "checkpoints", "quantization", "schemes", "shapes", "tested")
# A dense layout of these schemes holds weights that were rounded to them, in 16 bits each.
_ROUNDED = {"FP6", "SpQR"}
CONTAINERS = {"gguf": "GGUF", "openvino": "OpenVINO IR"}
_CONTAINER_ENGINE = "openvino"
_FINISHED_ON_GPU = "only TensorRT-LLM's own build, on a GPU, can finish it"


def who_can_serve(scheme: str, layout: str, structure: str | None = None) -> dict[str, str]:
    """Engine → a note on hardware and how it was tried, of all that can. `layout`: the recipe's export format."""
    return {
        engine: _note(able, scheme, layout)
        for engine, able in _table().items()
        if (able["checkpoints"] or layout in CONTAINERS) and _fault(engine, able, scheme, layout, structure) is None
    }


def why_not(engine: str, scheme: str, layout: str, structure: str | None = None) -> str | None:
    """The rest of "that engine cannot serve it, because"; None when it can. Raises BadRecipeError if there is none."""
    table = _table()
    able = table.get(engine)
    if able is None:
        near = difflib.get_close_matches(engine, table, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise BadRecipeError(f"there is no engine {engine!r}; {hint}They are {', '.join(sorted(table))}")
    reason = _fault(engine, able, scheme, layout, structure)
    if reason is None:
        return None
    others = ", ".join(who_can_serve(scheme, layout, structure))
    return f"{reason} ({f'these can: {others}' if others else 'no engine can'})"


def projection(printed: Mapping[str, Any]) -> dict[str, Any]:
    """What of the gateway's table decides about checkpoints, in an order of its own."""
    return {
        engine: {key: _sorted(able[key]) for key in KEPT if key in able} for engine, able in sorted(printed.items())
    }


def _fault(engine: str, able: Mapping[str, Any], scheme: str, layout: str, structure: str | None) -> str | None:
    if layout in CONTAINERS:
        return None if engine == _CONTAINER_ENGINE else f"it is {CONTAINERS[layout]}, which the embedded engine reads"
    if structure is not None and structure not in able["shapes"]:
        return f"its weights have {structure}, which the engine's loader does not know"
    if not able["checkpoints"]:
        return "it serves a conversion of a checkpoint, of which nothing is known here"
    if layout == "dense":
        return None
    known = able["quantization"]
    if known is not None and layout not in known:
        loads = f"loads {', '.join(known)}" if known else "loads weights in full precision only, GGUF and OpenVINO IR"
        return f"it is stored as {layout}, and the engine {loads}"
    schemes = able.get("schemes")
    if schemes is not None and scheme not in schemes:
        return f"it has no kernel for {scheme}"
    return None


def _note(able: Mapping[str, Any], scheme: str, layout: str) -> str:
    notes = []
    if layout in CONTAINERS:
        notes.append(f"as {CONTAINERS[layout]}")
    elif layout == "dense":
        notes.append(
            "as dense weights: no smaller and no faster than before" if scheme in _ROUNDED else "as dense weights"
        )
    elif told := (able.get("schemes") or {}).get(scheme):
        notes.append(str(told))
    if layout == "modelopt":
        notes.append(_FINISHED_ON_GPU)
    if able["tested"] == "contract":
        notes.append("by its documentation, not tried")
    return "; ".join(notes) or "yes"


def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(FILE.read_text("utf-8"))
    return table


def _sorted(value: Any) -> Any:
    return sorted(value) if isinstance(value, list) else value


if __name__ == "__main__":
    json.dump(projection(json.load(sys.stdin)), sys.stdout, indent=2, sort_keys=True)
    sys.stdout.write("\n")
