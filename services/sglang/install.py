"""Puts the real SGLang into a virtual environment of its own: `python install.py --venv .venvs/sglang`.

Apart from every package of ours, standard library only: it is run by whatever Python serves, before SGLang exists. The
environment, its stamp (of the pinned list and the Python version) and the exit codes: engine_venv.py.

The wheel on the index is the CUDA distribution and requires gigabytes of kernels that no CPU can run. So for a CPU
nothing is resolved: the pinned list goes in with --no-deps, and shim/ answers the imports that are left.
"""

import argparse
import hashlib
import platform
import sys
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from engine_venv import TORCH_CPU, EngineVenv, Unavailable  # noqa: E402

CPU_REQUIREMENTS = HERE / "requirements-cpu.txt"
SHIM = HERE / "shim"
SGLANG_VERSION = "0.5.23"
NEEDED_MIB = {"cpu": 2048, "gpu": 14 * 1024}


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    environment = EngineVenv("sglang", args.venv.absolute(), digest(args.variant), "bin/python")
    return environment.main(partial(fill, variant=args.variant), NEEDED_MIB[args.variant], check=args.check)


def fill(environment: EngineVenv, variant: str) -> None:
    """Raises Unavailable or Failed."""
    require_machine(variant)
    shim: dict[str, str] = {}
    if variant == "cpu":
        environment.say(f"1/2 {TORCH_CPU}")
        environment.pip_torch_cpu()
        environment.say("2/2 sglang and its pinned packages")
        environment.pip("--no-deps", "--only-binary=:all:", "-r", str(CPU_REQUIREMENTS))
        shim = {"PYTHONPATH": str(SHIM), "SGLANG_USE_CPU_ENGINE": "1"}
    else:
        environment.pip(f"sglang=={SGLANG_VERSION}")
    # The server's entry point imports most of SGLang.
    code = "import sglang.launch_server, sglang, torch; print('sglang', sglang.__version__, 'torch', torch.__version__)"
    environment.say(environment.smoke(code, shim).splitlines()[-1])


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


def digest(variant: str) -> str:
    parts = [variant, SGLANG_VERSION, TORCH_CPU, platform.python_version(), platform.machine()]
    text = "\n".join(parts).encode() + (CPU_REQUIREMENTS.read_bytes() if variant == "cpu" else b"")
    return hashlib.sha256(text).hexdigest()


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
