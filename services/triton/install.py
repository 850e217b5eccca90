"""Puts the real tritonserver into a virtual environment: `python install.py --venv .venvs/triton`.

Apart from every package of ours, standard library only: it runs before tritonserver exists. The nvidia-pytriton wheel
carries the server's binary with the Python backend (no GPU, driver or CUDA needed); the embedded engine, which the CPU
models use as a library, is this project itself, installed editable with its extra `openvino`.
"""

import argparse
import hashlib
import platform
import sys
import sysconfig
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from engine_venv import EngineVenv, Failed, Unavailable  # noqa: E402

ROOT = HERE.parents[1]
PYTRITON = "nvidia-pytriton==0.7.0"  # tritonserver 2.51.0
SERVER = "lib/python3.*/site-packages/pytriton/tritonserver/bin/tritonserver"
NEEDED_MIB = 900
PYTHONS = ((3, 11), (3, 13))  # this project's oldest; the newest the wheel has a stub for
GLIBC = (2, 35)


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    environment = EngineVenv("triton", args.venv.absolute(), digest(), SERVER)
    return environment.main(fill, NEEDED_MIB, check=args.check)


def fill(environment: EngineVenv) -> None:
    """Raises Unavailable where the wheel cannot run, Failed when pip fails."""
    require_machine()
    environment.say(f"1/2 {PYTRITON}")
    if environment.pip_returncode("--only-binary=:all:", "--no-deps", "--dry-run", PYTRITON, quiet=True):
        raise Unavailable(f"pip finds no {PYTRITON} for this machine; with a mirror, set PIP_EXTRA_INDEX_URL")
    environment.pip(PYTRITON)
    environment.say("2/2 the embedded engine")
    environment.pip("-e", f"{ROOT}[openvino]")
    environment.smoke("import openvino_genai, triton_models, tokenizers, pytriton")
    if not any(environment.target.glob(SERVER)):
        raise Failed(f"{environment.target} holds no {SERVER}: the wheel is another than expected")


def require_machine() -> None:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise Unavailable(f"the wheel is for Linux on x86_64, this is {sys.platform} on {platform.machine()}")
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        raise Unavailable(f"it needs Python 3.11 to 3.13, this is {platform.python_version()}")
    library, version = platform.libc_ver()
    if library == "glibc" and tuple(map(int, version.split(".")[:2])) < GLIBC:
        raise Unavailable(f"it needs glibc 2.35 or newer, this is {version}")
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        raise Unavailable(
            f"Triton's Python backend links libpython, and {sys.executable} has no shared one; "
            "use a Python built with --enable-shared: make PYTHON=/path/to/python3"
        )


def digest() -> str:
    """Of everything that belongs into the environment: with another one it is filled again."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    engine = project["project"]["optional-dependencies"]["openvino"]
    parts = [PYTRITON, platform.python_version(), platform.machine(), str(ROOT), *engine]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="install.py",
        description="Install the real tritonserver for CPU into an environment of its own; nothing when it is there.",
        epilog="exit codes: 0 installed, 1 failed (mend, run again), 69 not for this machine, 130 interrupted",
    )
    parser.add_argument("--venv", type=Path, required=True, help="where, e.g. .venvs/triton")
    parser.add_argument("--check", action="store_true", help="only say by exit code whether it is installed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
