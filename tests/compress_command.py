"""The real command line, in this process for what ends at once, in one of its own for what is interrupted."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from compressor.__main__ import main
from tiny_checkpoints import write_checkpoint

# SIGINT as a terminal gives it: it is ignored where pytest itself runs in the background.
_RUN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from compressor.__main__ import main
sys.exit(main())
"""
QUICK = ("--no-quality", "--set", "calibration.samples=8", "--set", "calibration.seq_len=64")


@dataclass(frozen=True, slots=True)
class Ran:
    code: int
    out: str
    err: str


class Here:
    """`penstock compress` and its like in this process, seen from outside."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *argv: object, program=main) -> Ran:  # type: ignore[no-untyped-def]
        self._capsys.readouterr()
        try:
            code = program([str(word) for word in argv])
        except SystemExit as left:
            code = int(left.code or 0)
        captured = self._capsys.readouterr()
        return Ran(code, captured.out, captured.err)


@contextmanager
def started(*argv: object, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own; whatever becomes of it, it is gone afterwards."""
    words = [sys.executable, "-c", _RUN, *map(str, argv)]
    process = subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(process: subprocess.Popen[str], words: str) -> None:
    """Read stderr up to the line that has `words`."""
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if words in line:
            return
    raise AssertionError(f"it ended without {words!r}: {''.join(seen)}")


def tiny(folder: Path, *, layers: int = 2, shards: int = 1) -> Path:
    """A random model whose linears groups of 128 divide, in a folder of its own below `folder`."""
    return write_checkpoint(folder / "tiny", layers=layers, shards=shards, extra={"model_type": "llama"})


def weights(folder: Path) -> dict[str, bytes]:
    """What must be equal in two runs: everything but what tells time and memory."""
    told = ("penstock.json", "README.md")
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in told)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
