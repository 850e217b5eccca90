"""How a checkpoint gets its name: worked on in `.NAME.partial`, renamed when it is whole, one run at a time.

What is under the final name was always whole at the moment it got there; what an interrupted run had done is kept
under the partial name, and taken up by the same command.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compressor.checkpoint.card import as_card
from compressor.checkpoint.disk import refuse_full_disk
from compressor.checkpoint.manifest import CARD, files_of, write
from compressor.errors import CompressorError

JOB = "job.json"


class TakenError(CompressorError):
    """The output is there already, or another run is at work on it."""

    exit_code = 2


@contextmanager
def reserve(out: Path, job: Mapping[str, Any], *, force: bool = False) -> Iterator[tuple[Path, bool]]:
    """The folder to work in and whether it holds what an interrupted run of the same `job` (JSON) did.

    Raises TakenError. What another job left behind under the partial name is removed: it fits nothing any more.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with _lock(out):
        _recover(out)
        refuse_taken(out, force=force)
        partial = beside(out, "partial")
        wanted = json.dumps(job, sort_keys=True, ensure_ascii=False)
        is_same = _text(partial / JOB) == wanted
        if not is_same:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            with refuse_full_disk(partial):
                (partial / JOB).write_text(wanted, encoding="utf-8")
        yield partial, is_same


def refuse_taken(out: Path, *, force: bool) -> None:
    """Raises TakenError when `out` is there and may not be replaced. A folder that is no checkpoint never may."""
    if not out.exists() and not out.is_symlink():
        return
    if not force:
        raise TakenError(f"{out} is there already: choose another --out, or replace it with --force")
    if not (out / "config.json").is_file() and not (out / "penstock.json").is_file() and any(_entries(out)):
        raise TakenError(f"{out} is no checkpoint: --force replaces checkpoints only; choose another --out")


def seal(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Write the card and the manifest, which names every file: the last thing that is written. Returns the manifest."""
    with refuse_full_disk(folder):
        (folder / CARD).write_text(as_card(manifest), encoding="utf-8")
        (folder / JOB).unlink(missing_ok=True)
        whole = {**manifest, "files": files_of(folder)}
        write(folder, whole)
        for path in folder.rglob("*"):
            _sync(path)
    _sync(folder)
    return whole


def publish(partial: Path, out: Path) -> None:
    """Give a sealed folder its final name; a checkpoint that had it is moved away first, then removed."""
    old = beside(out, "old")
    if out.exists():
        os.replace(out, old)
    os.replace(partial, out)
    _sync(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def beside(out: Path, what: str) -> Path:
    """A hidden neighbour of the output: same disk, so that a rename is one step."""
    whole = out.absolute()
    return whole.parent / f".{whole.name}.{what}"


def _recover(out: Path) -> None:
    """A run that died between the two renames of `publish` left the former checkpoint under its other name."""
    old = beside(out, "old")
    if old.exists() and not out.exists():
        os.replace(old, out)
    elif old.exists():
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _lock(out: Path) -> Iterator[None]:
    path = beside(out, "lock")
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _is_mine(handle, path):
            raise TakenError(f"another run is writing {out} now: wait for it, or choose another --out")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _is_mine(handle: int, path: Path) -> bool:
    """Locked by us, and still the file of that name: whoever held it may have removed it in between."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.stat(path).st_ino == os.fstat(handle).st_ino
    except (BlockingIOError, FileNotFoundError):
        return False


def _entries(path: Path) -> Iterator[Path]:
    return path.iterdir() if path.is_dir() else iter((path,))


def _text(path: Path) -> str | None:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError):
        return None


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
