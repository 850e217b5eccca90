"""What every engine's install.py does the same way: a virtual environment of its own, filled once, marked with a stamp.

A plain module beside the engines' folders, standard library only: it runs before anything is installed. Idempotent and
resumable: the stamp is written when the last step is done, so a second run costs milliseconds, and an interrupted one
goes on with what pip already has.
"""

# ruff: noqa: T201, S603  (command-line programs that run pip)

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MIB = 1024**2
TORCH_CPU = "torch==2.13.0+cpu"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
EXIT_FAILED = 1
EXIT_UNAVAILABLE = 69  # EX_UNAVAILABLE: not to be had for this machine; the tests of the engine are then skipped
EXIT_INTERRUPTED = 130


class Unavailable(Exception):
    """This machine, Python or package index has no such engine."""


class Failed(Exception):
    """Something went wrong that a person can mend (network, disk)."""


@dataclass(frozen=True)
class EngineVenv:
    """The environment of `engine` at `target`. `digest` names what belongs into it, `program` a file it must hold."""

    engine: str
    target: Path
    digest: str
    program: str

    @property
    def python(self) -> Path:
        return self.target / "bin" / "python"

    @property
    def stamp(self) -> Path:
        return self.target / f"penstock-{self.engine}.json"

    @property
    def is_complete(self) -> bool:
        try:
            stamp = json.loads(self.stamp.read_text())
        except (OSError, ValueError):
            return False
        known = isinstance(stamp, dict) and stamp.get("digest") == self.digest
        return known and any(self.target.glob(self.program))

    def say(self, text: str) -> None:
        print(f"{self.engine} set-up: {text}", flush=True)

    def main(self, fill: Callable[["EngineVenv"], None], needed_mib: int, *, check: bool) -> int:
        """`fill` the environment unless it is complete; the exit code, with the reason on stderr."""
        if self.is_complete:
            return 0
        if check:
            print(f"{self.engine}: {self.target} is missing, incomplete or of another version", file=sys.stderr)
            return EXIT_FAILED
        try:
            self._make(fill, needed_mib)
        except Unavailable as why:
            print(f"{self.engine} cannot be installed here: {why}", file=sys.stderr)
            return EXIT_UNAVAILABLE
        except Failed as why:
            print(f"{self.engine} set-up failed: {why}", file=sys.stderr)
            return EXIT_FAILED
        except OSError as why:  # our own few files: a full disk, a folder that is none or not ours
            print(f"{self.engine} set-up failed: {why.filename or self.target}: {why.strerror}", file=sys.stderr)
            return EXIT_FAILED
        except KeyboardInterrupt:
            print(f"{self.engine} set-up interrupted; run it again, it goes on where it stopped", file=sys.stderr)
            return EXIT_INTERRUPTED
        return 0

    def _make(self, fill: Callable[["EngineVenv"], None], needed_mib: int) -> None:
        self.require_space(needed_mib)
        started_s = time.monotonic()
        self.say(f"installing into {self.target} (about {needed_mib / 1024:.1f} GB, once)")
        self.stamp.unlink(missing_ok=True)
        self.make()
        fill(self)
        self.stamp.write_text(json.dumps({"digest": self.digest}))
        self.say(f"done in {time.monotonic() - started_s:.0f} s")

    def require_space(self, needed_mib: int) -> None:
        """Raises Failed when the disk is too full."""
        existing = next(p for p in (self.target, *self.target.parents) if p.exists())
        free_mib = shutil.disk_usage(existing).free // MIB
        if free_mib < needed_mib:
            raise Failed(
                f"{existing} has {free_mib} MiB free, {needed_mib} MiB are needed; "
                "make room, or put .venvs on another disk with a symbolic link"
            )

    def make(self) -> None:
        """Create it with pip inside, unless it is there; one that was interrupted before its pip is completed."""
        if self.python.exists() and any(self.target.glob("lib/python*/site-packages/pip-*.dist-info/RECORD")):
            return
        try:
            venv.create(self.target, with_pip=True)
        except (subprocess.CalledProcessError, OSError) as error:
            raise Failed(
                f"python -m venv {self.target} failed ({error}); on Debian and Ubuntu: apt install python3-venv"
            ) from error

    def pip(self, *args: str) -> None:
        """pip install; raises Failed, its errors are on stderr."""
        if self.pip_returncode(*args):
            raise Failed("pip failed (above); when the network or the disk is mended, run it again")

    def pip_returncode(self, *args: str, quiet: bool = False) -> int:
        """The exit code of pip install; its chatter goes nowhere, its errors to stderr unless `quiet`."""
        pip = [str(self.python), "-m", "pip", "--require-virtualenv", "--disable-pip-version-check", "--no-input", "-q"]
        with tempfile.TemporaryFile() as errors:
            command = [*pip, "install", *args]
            done = subprocess.run(command, stdout=errors, stderr=errors, stdin=subprocess.DEVNULL, check=False)
            if done.returncode and not quiet:
                errors.seek(0)
                sys.stderr.write(errors.read().decode(errors="replace")[-4000:])
        return done.returncode

    def pip_torch_cpu(self) -> None:
        """PyTorch's CPU build, which the package index does not have; raises Unavailable."""
        # A machine may hold this wheel itself (pip's find-links); only else is PyTorch's own index asked.
        wheel = ("--no-deps", "--only-binary=:all:", TORCH_CPU)
        elsewhere = ("--retries=1", "--timeout=20", "--index-url", TORCH_CPU_INDEX)
        if self.pip_returncode(*wheel, quiet=True) and self.pip_returncode(*elsewhere, *wheel):
            raise Unavailable(
                f"pip finds no {TORCH_CPU} for Python {platform.python_version()} on {platform.machine()}, neither in "
                "its own indexes nor in PyTorch's CPU index; with a mirror, set PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS"
            )

    def smoke(self, code: str, env: dict[str, str] | None = None) -> str:
        """What `code` prints in the environment, with `env` on top; raises Failed when it does not run."""
        command = [str(self.python), "-c", code]
        done = subprocess.run(command, env=os.environ | (env or {}), capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failed(f"installed, but it does not run:\n{done.stderr.strip()[-4000:]}")
        return done.stdout.strip()
