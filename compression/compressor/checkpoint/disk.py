"""Room on the disk: asked for before the work, and a full disk told apart from every other failure while writing."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from compressor.errors import NoSpaceError

_FULL = {errno.ENOSPC, errno.EDQUOT}
SPARE_BYTES = 64 * 2**20


def need_room(folder: Path, needed_bytes: int) -> None:
    """Raises NoSpaceError when `folder`'s disk has less than `needed_bytes` and a little to spare."""
    at = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(at).free
    if free < needed_bytes + SPARE_BYTES:
        raise NoSpaceError(
            f"{at} has {free / 1e6:,.0f} MB free, and this needs about {(needed_bytes + SPARE_BYTES) / 1e6:,.0f} MB: "
            "make room or choose another --out"
        )


@contextmanager
def refuse_full_disk(folder: Path) -> Iterator[None]:
    """What is written inside fails with NoSpaceError when the disk is full; safetensors hides the number in a text."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) in _FULL or "os error 28" in str(error) or "No space left" in str(error):
            raise NoSpaceError(f"the disk of {folder} is full: make room and run the same command again") from error
        raise
