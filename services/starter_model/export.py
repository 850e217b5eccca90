"""From a finished run to a published checkpoint: weights, measured quality, manifest, card; whole or not at all."""

from pathlib import Path
from typing import Any

from . import evaluate, manifest
from .card import card
from .checkpoint import MANIFEST, files_of, publish, write_json, write_model
from .trainer import Run

ACCEPTANCE_PER_FAMILY = 4


def export(run: Run, destination: Path, *, target: Path | None, seed: int, limit: int) -> dict[str, Any]:
    """Publish `run` under `destination` and return its manifest. With a target, the draft's acceptance is measured.

    Raises ValueError when the training is not finished.
    """
    if not run.done:
        raise ValueError(
            f"{run.recipe.name} is trained to step {run.steps_done} of {run.recipe.steps} only; run train again"
        )
    made: dict[str, Any] = {}

    def fill(folder: Path) -> None:
        write_model(folder, run.model, run.tokenizer)
        quality = evaluate.evaluate(folder, seed=seed, limit=limit)
        if target is not None:
            pair = evaluate.load(target), evaluate.load(folder)
            measured = evaluate.acceptance(*pair, seed=seed, per_family=ACCEPTANCE_PER_FAMILY)
            quality["acceptance"] = {"target": target.name, **measured}
        made.update(manifest.build(run.recipe, run.state, _sizes(run), quality))
        (folder / "README.md").write_text(card(made), encoding="utf-8")
        made["files"] = files_of(folder)
        write_json(folder / MANIFEST, made)

    publish(destination, fill)
    return made


def _sizes(run: Run) -> dict[str, int]:
    parameters = sum(tensor.numel() for tensor in run.model.state_dict().values())
    return {"parameters": parameters, "size_bytes": 2 * parameters}
