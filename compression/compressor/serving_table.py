"""Which engine can serve what a recipe makes: asked before the work starts, and written into the manifest.

The facts are the gateway's (`penstock gateway engines --format json`), kept here as engines.json because programs share
files and not code; a test holds the two together. To renew the file:
`penstock gateway engines --format json | python -m compressor.serving_table > compression/compressor/engines.json`
"""

import difflib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.errors import BadRecipeError

FILE = Path(__file__).with_name("engines.json")
KEPT = ("architectures", "checkpoints", "quantization", "schemes", "shapes", "tested")
# A dense layout of these schemes holds weights that were rounded to them, in 16 bits each.
_ROUNDED = {"FP6", "SpQR"}
CONTAINERS = {"gguf": "GGUF", "openvino": "OpenVINO IR"}
_CONTAINER_ENGINE = "openvino"


@dataclass(frozen=True, slots=True)
class Artefact:
    """What is to be served. `layout`: the format on disk; `architecture`: as in config.json, None where any will do."""

    scheme: str
    layout: str
    structure: str | None = None
    architecture: str | None = None


def who_can_serve(
    scheme: str, layout: str, structure: str | None = None, architecture: str | None = None
) -> dict[str, str]:
    """Engine → a note on hardware and how it was tried, of all that can."""
    made = Artefact(scheme, layout, structure, architecture)
    return {
        engine: _note(engine, able, made) for engine, able in _table().items() if _fault(engine, able, made) is None
    }


def why_not(
    engine: str, scheme: str, layout: str, structure: str | None = None, architecture: str | None = None
) -> str | None:
    """The rest of "that engine cannot serve it, because"; None when it can. Raises BadRecipeError if there is none."""
    table = _table()
    able = table.get(engine)
    if able is None:
        near = difflib.get_close_matches(engine, table, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise BadRecipeError(f"there is no engine {engine!r}; {hint}They are {', '.join(sorted(table))}")
    reason = _fault(engine, able, Artefact(scheme, layout, structure, architecture))
    if reason is None:
        return None
    others = ", ".join(who_can_serve(scheme, layout, structure, architecture))
    return f"{reason} ({f'these can: {others}' if others else 'no engine can'})"


def projection(printed: Mapping[str, Any]) -> dict[str, Any]:
    """What of the gateway's table decides about checkpoints, in an order of its own."""
    return {
        engine: {key: _sorted(able[key]) for key in KEPT if key in able} for engine, able in sorted(printed.items())
    }


def _fault(engine: str, able: Mapping[str, Any], made: Artefact) -> str | None:
    known = able["architectures"]
    if known is not None and made.architecture is not None and made.architecture not in known:
        return f"it is a {made.architecture}, and the engine loads {', '.join(known)} only"
    if made.layout in CONTAINERS:
        return (
            None if engine == _CONTAINER_ENGINE else f"it is {CONTAINERS[made.layout]}, which the embedded engine reads"
        )
    if made.structure is not None and made.structure not in able["shapes"]:
        return f"its weights have {made.structure}, which the engine's loader does not know"
    if not able["checkpoints"]:
        return "it serves a conversion of a checkpoint, of which nothing is known here"
    return None if made.layout == "dense" else _without_kernels(able, made)


def _without_kernels(able: Mapping[str, Any], made: Artefact) -> str | None:
    known, kernels = able["quantization"], able["schemes"]
    if known is not None and made.layout not in known:
        loads = ", ".join(known) or "nothing"
        return f"it is stored as {made.layout}, and beside dense weights the engine loads {loads}"
    if kernels is not None and _in_table(made) not in kernels:
        return f"the engine has no kernels for {made.scheme}; it has them for {', '.join(sorted(kernels))}"
    return None


def _in_table(made: Artefact) -> str:
    """The engines' table names schemes without the size of their groups, containers as they name themselves."""
    if made.layout in CONTAINERS:
        return made.scheme.upper()
    return "DENSE" if made.layout == "dense" else re.sub(r"_G(\d+|ROW)$", "", made.scheme)


def _note(engine: str, able: Mapping[str, Any], made: Artefact) -> str:
    where = (able["schemes"] or {}).get(_in_table(made))
    notes = [str(where)] if where else []
    if made.layout in CONTAINERS:
        notes.append(f"as {CONTAINERS[made.layout]}")
    elif made.layout == "dense":
        is_larger = made.scheme in _ROUNDED
        notes.append("as dense weights" + (": no smaller and no faster than before" if is_larger else ""))
    elif made.layout == "modelopt" and engine == "trtllm":
        notes.append("compiled there for its GPU")
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
