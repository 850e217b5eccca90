"""A parent's own figures, kept for its next child: by the hash of its weights and of everything that they depend on."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from compressor.checkpoint.manifest import parent_of
from compressor.checkpoint.sink import write_json


class Kept:
    """`folder`: None keeps nothing. What cannot be read counts as not there."""

    def __init__(self, folder: Path | None, parent: Path, protocol: dict[str, Any]) -> None:
        self._path: Path | None = None
        if folder is not None:
            key = json.dumps({"parent": parent_of(parent), "protocol": protocol}, sort_keys=True)
            self._path = folder / f"parent-{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"

    def read(self) -> dict[str, Any] | None:
        """The figures, None where they are not known."""
        if self._path is None:
            return None
        try:
            found: dict[str, Any] = json.loads(self._path.read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return found

    def write(self, figures: dict[str, Any]) -> None:
        """Whole or not at all, also with several runs at once."""
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fresh = self._path.with_suffix(f".{os.getpid()}.part")
            write_json(fresh, figures)
            os.replace(fresh, self._path)
