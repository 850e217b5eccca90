"""The folder that one running stack owns: its lock, the generated gateway.yaml, its logs.

Apart from run.py because it is all about files and refuses in words.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import yaml

from stack.errors import StackError


def write_config(run_folder: Path, config: dict[str, Any]) -> Path:
    """gateway.yaml, readable by its owner only."""
    path = run_folder / "gateway.yaml"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write("# Written by `penstock up` at every start.\n")
            yaml.safe_dump(config, file, sort_keys=False, allow_unicode=True)
    except OSError as error:
        raise StackError(f"cannot write {path}: {error.strerror}") from error
    return path


@contextlib.contextmanager
def locked(run_folder: Path) -> Iterator[None]:
    """One stack for one run folder; raises StackError when another holds it."""
    path = run_folder / "lock"
    try:
        run_folder.mkdir(parents=True, exist_ok=True)
        file: TextIO = path.open("a+")
    except OSError as error:
        raise StackError(
            f"cannot use {run_folder} as the run folder: {error.strerror}; choose one: --run-dir"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise StackError(
                f"this stack runs already (pid {file.read().strip() or 'unknown'}); stop that first, "
                "or give this one another --run-dir and port"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
