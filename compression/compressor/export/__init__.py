"""Containers that an engine reads instead of safetensors: made of a finished dense checkpoint, one tensor at a time.

Apart from formats/, which lay tensors out inside a checkpoint: a container has a file format of its own, and is the
last step of a recipe whatever came before it.
"""

from pathlib import Path
from typing import Any, Protocol

from compressor.errors import BadRecipeError
from compressor.screen import Screen


class Exporter(Protocol):
    """`check` is asked before the work starts, `run` after the last method."""

    def scheme(self, kind: str | None) -> str:
        """The number format as engines' tables name it. Raises BadRecipeError for a `type` that is none."""

    def check(self, config: dict[str, Any], kind: str | None) -> None:
        """Raises BadCheckpointError when a model with this config.json cannot be held by the container."""

    def run(self, folder: Path, destination: Path, kind: str | None, screen: Screen) -> dict[str, Any]:
        """Write `destination` from the dense checkpoint in `folder`; returns what the manifest should say of it."""


def exporter_named(name: str) -> Exporter | None:
    """`name`: the recipe's `export.format`; None for formats that stay in safetensors. Raises BadRecipeError."""
    if name == "gguf":
        from compressor.export.gguf_folder import GGUF

        return GGUF()
    if name == "openvino":
        raise BadRecipeError(
            "OpenVINO IR is not written here, because only OpenVINO's own tools write it: use export: {format: gguf, "
            "type: Q8_0 or Q4_0}, which the embedded engine turns into the same integers of 8 or 4 bits"
        )
    return None


__all__ = ["Exporter", "exporter_named"]
