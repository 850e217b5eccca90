"""Where the starter model is."""

from pathlib import Path

STARTER = Path(__file__).parents[1] / "model_repo" / "checkpoints" / "starter"
