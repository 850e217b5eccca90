"""One piece of a checkpoint that is still being written, read the way a finished one is."""

from pathlib import Path

from compressor.checkpoint.source import Entry, Source, entries_of


class Pieces(Source):
    """The tensors of the piece `name` under `folder`."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.config = {}
        self._file = folder / f"piece-{name}.safetensors"

    @property
    def entries(self) -> dict[str, Entry]:
        return entries_of(self._file)
