"""A parent's own figures, kept for its next child: by the hash of its manifest or weights and of all they depend on.

Those of the starter under the default settings ship with the data, so that to compress it is to measure one model.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from compressor.checkpoint.manifest import parent_of
from compressor.checkpoint.sink import write_json
from compressor.quality.tokens import DATA

SHIPPED = DATA / "known"


class Kept:
    """`folder`: None keeps nothing. What cannot be read counts as not there."""

    def __init__(self, folder: Path | None, parent: Path, protocol: dict[str, Any]) -> None:
        key = json.dumps({"parent": parent_of(parent)["sha256"], "protocol": protocol}, sort_keys=True)
        self._folder = folder
        self._name = f"parent-{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"

    def read(self) -> dict[str, Any] | None:
        """The figures, None where they are not known."""
        for folder in filter(None, (self._folder, SHIPPED)):
            try:
                found: dict[str, Any] = json.loads((folder / self._name).read_text("utf-8"))
            except (OSError, ValueError):
                continue
            return found
        return None

    def write(self, figures: dict[str, Any]) -> None:
        """Whole or not at all, also with several runs at once."""
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            fresh = self._folder / f"{self._name}.{os.getpid()}.part"
            write_json(fresh, figures)
            os.replace(fresh, self._folder / self._name)
