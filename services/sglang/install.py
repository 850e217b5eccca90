"""Puts the real SGLang into a virtual environment of its own: `python install.py --venv .venvs/sglang`.

Apart from every package of ours, standard library only: it is run by whatever Python serves, before SGLang exists.
Idempotent and resumable. A stamp keyed on the pinned list and on the Python version is written when the last step is
done, so a second run costs milliseconds, and an interrupted one goes on with what pip already has.

The wheel on the index is the CUDA distribution and requires gigabytes of kernels that no CPU can run. So for a CPU
nothing is resolved: the pinned list goes in with --no-deps, and shim/ answers the imports that are left.
"""

# ruff: noqa: T201, S603  (a command-line program that runs pip)

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
CPU_REQUIREMENTS = HERE / "requirements-cpu.txt"
SHIM = HERE / "shim"
SGLANG_VERSION = "0.5.23"
TORCH_CPU = "torch==2.13.0+cpu"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
STAMP = "penstock-sglang.json"
MIB = 1024**2
NEEDED_MIB = {"cpu": 2048, "gpu": 14 * 1024}
EXIT_FAILED = 1
EXIT_UNAVAILABLE = 69  # EX_UNAVAILABLE: SGLang is not to be had for this machine; `make test-sglang` then says so


class Unavailable(Exception):
    """This machine, Python or package index has no such SGLang."""


class Failed(Exception):
    """Something went wrong that a person can mend (network, disk)."""


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    target = args.venv.absolute()
    if is_complete(target, args.variant):
        return 0
    if args.check:
        print(f"sglang: {target} is missing, incomplete or of another version", file=sys.stderr)
        return EXIT_FAILED
    try:
        install(target, args.variant)
    except Unavailable as why:
        print(f"sglang cannot be installed here: {why}", file=sys.stderr)
        return EXIT_UNAVAILABLE
    except Failed as why:
        print(f"sglang set-up failed: {why}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("sglang set-up interrupted; run it again, it goes on where it stopped", file=sys.stderr)
        return 130
    return 0


def install(target: Path, variant: str) -> None:
    """Create `target` and fill it; raises Unavailable or Failed."""
    require_machine(variant)
    require_space(target, NEEDED_MIB[variant])
    started_s = time.monotonic()
    say(f"installing into {target} (about {'1.6' if variant == 'cpu' else '10'} GB, once)")
    (target / STAMP).unlink(missing_ok=True)
    python = make_venv(target)
    if variant == "cpu":
        install_cpu(python)
    else:
        pip(python, f"sglang=={SGLANG_VERSION}")
    smoke(python, variant)
    (target / STAMP).write_text(json.dumps({"digest": digest(variant), "sglang": SGLANG_VERSION, "variant": variant}))
    say(f"done in {time.monotonic() - started_s:.0f} s")


def require_machine(variant: str) -> None:
    if sys.platform != "linux":
        raise Unavailable(f"it runs on Linux, this is {sys.platform}; use ENGINE=openvino")
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        raise Unavailable(f"its wheels are for Python 3.11 to 3.13, this is {platform.python_version()}")
    if platform.machine() not in ("x86_64", "aarch64"):
        raise Unavailable(f"no build for {platform.machine()}; use ENGINE=openvino")
    libc, version = platform.libc_ver()
    if variant == "cpu" and libc == "glibc" and tuple(map(int, version.split(".")[:2])) < (2, 34):
        raise Unavailable(f"its wheels need glibc 2.34 or later, this is {version}; use ENGINE=openvino")


def require_space(target: Path, needed_mib: int) -> None:
    existing = next(p for p in (target, *target.parents) if p.exists())
    free_mib = shutil.disk_usage(existing).free // MIB
    if free_mib < needed_mib:
        raise Failed(
            f"{existing} has {free_mib} MiB free, {needed_mib} MiB are needed; "
            "make room, or put .venvs on another disk with a symbolic link"
        )


def make_venv(target: Path) -> Path:
    python = target / "bin" / "python"
    if not python.exists():
        try:
            venv.create(target, with_pip=True)
        except (subprocess.CalledProcessError, OSError) as error:
            raise Failed(
                f"python -m venv {target} failed ({error}); on Debian and Ubuntu: apt install python3-venv"
            ) from error
    return python


def install_cpu(python: Path) -> None:
    say(f"1/2 {TORCH_CPU}")
    # A machine may hold this wheel itself (pip's find-links); only else is PyTorch's own index asked.
    wheel = ("--no-deps", "--only-binary=:all:")
    pytorch = ("--retries=1", "--timeout=20", "--index-url", TORCH_CPU_INDEX)
    local = pip_returncode(python, *wheel, TORCH_CPU, quiet=True)
    if local and pip_returncode(python, *wheel, *pytorch, TORCH_CPU):
        raise Unavailable(
            f"pip finds no {TORCH_CPU} for Python {platform.python_version()} on {platform.machine()}, neither in its "
            "own indexes nor in PyTorch's CPU index; with a mirror, set PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS"
        )
    say("2/2 sglang and its pinned packages")
    pip(python, *wheel, "-r", str(CPU_REQUIREMENTS))


def smoke(python: Path, variant: str) -> None:
    """Import the server's entry point, which imports most of SGLang; on CPU with the shim, as the profile does."""
    code = "import sglang.launch_server, sglang, torch; print(sglang.__version__, torch.__version__)"
    env = os.environ | ({"PYTHONPATH": str(SHIM), "SGLANG_USE_CPU_ENGINE": "1"} if variant == "cpu" else {})
    done = subprocess.run([python, "-c", code], env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"installed, but it does not import:\n{done.stderr.strip()[-4000:]}")
    say("sglang {}, torch {}".format(*done.stdout.split()[-2:]))


def pip(python: Path, *args: str) -> None:
    if pip_returncode(python, *args):
        raise Failed("pip failed (above); when the network or the disk is mended, run it again")


def pip_returncode(python: Path, *args: str, quiet: bool = False) -> int:
    """Run pip install; its chatter goes nowhere, its errors to stderr unless `quiet`."""
    pip = [str(python), "-m", "pip", "--require-virtualenv", "--disable-pip-version-check", "--no-input", "-q"]
    command = [*pip, "install", *args]
    with tempfile.TemporaryFile() as errors:
        code = subprocess.run(command, stdout=errors, stderr=errors, stdin=subprocess.DEVNULL, check=False).returncode
        if code and not quiet:
            errors.seek(0)
            sys.stderr.write(errors.read().decode(errors="replace")[-4000:])
    return code


def digest(variant: str) -> str:
    parts = [variant, SGLANG_VERSION, TORCH_CPU, platform.python_version(), platform.machine()]
    text = "\n".join(parts).encode() + (CPU_REQUIREMENTS.read_bytes() if variant == "cpu" else b"")
    return hashlib.sha256(text).hexdigest()


def is_complete(target: Path, variant: str) -> bool:
    try:
        stamp = json.loads((target / STAMP).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(stamp, dict) and stamp.get("digest") == digest(variant) and (target / "bin" / "python").exists()


def say(text: str) -> None:
    print(f"sglang set-up: {text}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="install.py",
        description="Install the real SGLang into its own virtual environment; does nothing when it is there already.",
        epilog="exit codes: 0 installed, 1 failed (mend, run again), 69 not for this machine, 130 interrupted",
    )
    parser.add_argument("--venv", type=Path, required=True, help="where, e.g. .venvs/sglang")
    parser.add_argument("--variant", choices=("cpu", "gpu"), default="cpu", help="cpu (with shim/) or gpu")
    parser.add_argument("--check", action="store_true", help="only say by exit code whether it is installed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
