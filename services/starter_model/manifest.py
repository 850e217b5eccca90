"""penstock.json: how a checkpoint was made and what it lost. Every value is measured or read, none is typed."""

import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from .batches import ANSWER_WEIGHT, PROMPT_WEIGHT, PROSE_SHARE, PROSE_WEIGHT
from .example import HELD_OUT_ONE_IN
from .recipe import Recipe
from .trainer import State

TOOLS = ("torch", "tokenizers", "safetensors", "numpy")


def build(recipe: Recipe, state: State, sizes: dict[str, Any], quality: dict[str, Any]) -> dict[str, Any]:
    """The manifest without its `files`. `sizes` has parameters and size_bytes of the weights; `quality` is a report."""
    return {
        "penstock_manifest": 1,
        "name": recipe.name,
        "description": recipe.description,
        "base_model": None,
        "parent": None,
        "method": "trained",
        "recipe": {"source": "services/starter_model", "stages": [asdict(stage) for stage in recipe.stages]},
        "scheme": "BF16",
        "bits_per_weight": round(8 * sizes["size_bytes"] / sizes["parameters"], 2),
        "sparsity": 0.0,
        **sizes,
        "data": {
            "description": "synthetic instructions (English, Chinese) and standard-library documentation (PSF licence)",
            "sha256": state.data_sha256,
            "hash_of": "token rows in training order, chained",
            "rows": state.rows,
            "tokens": recipe.tokens,
            "seed": recipe.seed,
            "held_out": f"1 in {HELD_OUT_ONE_IN} problems by sha256; families double and second entirely",
            "prose_share": PROSE_SHARE,
            "loss_weights": {"answer": ANSWER_WEIGHT, "prompt": PROMPT_WEIGHT, "prose": PROSE_WEIGHT},
        },
        "training": {
            "steps": recipe.steps,
            "wall_s": round(state.wall_s),
            "cpu_s": round(state.cpu_s),
            "final_loss": round(state.loss, 4),
        },
        "tools": {"python": platform.python_version(), **{tool: version(tool) for tool in TOOLS}},
        "quality": quality,
    }
