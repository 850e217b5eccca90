"""Where the real tritonserver is and what its environment must look like.

Two homes: NVIDIA's image or a host installation (/opt/tritonserver), or the nvidia-pytriton package in a virtual
environment, which carries the same binary with the Python backend only.
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from triton_launcher.errors import LauncherError

HOST_HOME = Path("/opt/tritonserver")
_PYTHON = """
import sys, sysconfig
print(sysconfig.get_path("purelib"))
print(f"{sys.version_info[0]}.{sys.version_info[1]}")
print(sysconfig.get_config_var("LIBDIR") or "")
print(sysconfig.get_config_var("INSTSONAME") or "")
"""


@dataclass(frozen=True)
class Server:
    """A tritonserver: its binary, its backends, and what it needs in the environment."""

    binary: Path
    backends: Path
    library_path: tuple[Path, ...] = ()
    path: tuple[Path, ...] = ()

    def environment(self, environ: dict[str, str]) -> dict[str, str]:
        """`environ` with the server's own folders first."""
        joined = {
            "LD_LIBRARY_PATH": (*self.library_path, environ.get("LD_LIBRARY_PATH", "")),
            "PATH": (*self.path, environ.get("PATH", "")),
        }
        return environ | {name: ":".join(str(part) for part in parts if str(part)) for name, parts in joined.items()}


def host_server(home: Path = HOST_HOME) -> Server:
    """An installation as in NVIDIA's image. Raises LauncherError when there is none."""
    binary = home / "bin" / "tritonserver"
    if not binary.is_file():
        raise LauncherError(
            f"{binary} is not there: this runs inside NVIDIA's Triton image (docs/engines/triton.md); "
            "for the Python backend on CPU name the environment of services/triton/install.py: --venv .venvs/triton"
        )
    return Server(binary, home / "backends")


def venv_server(venv: Path, scratch: Path) -> Server:
    """nvidia-pytriton's tritonserver in `venv`. Its backend folder is put together in `scratch`, from links.

    The stub that runs model.py links libpython and takes the first that the loader finds: the interpreter's own folder
    must come first, or another Python's standard library is mixed in.
    """
    python = venv / "bin" / "python"
    if not python.exists():
        raise LauncherError(f"{venv} is no virtual environment: make it with services/triton/install.py --venv {venv}")
    done = subprocess.run([python, "-c", _PYTHON], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise LauncherError(f"{python} does not run: {done.stderr.strip()[-300:]}")
    site, version, library_dir, library = done.stdout.split("\n")[:4]
    if not library.startswith("libpython") or not (Path(library_dir) / library).exists():
        raise LauncherError(
            f"{python} has no shared libpython, which Triton's Python backend links; make {venv} with another Python "
            "(Debian's with libpython3.x installed, or one built with --enable-shared)"
        )
    package = Path(site) / "pytriton" / "tritonserver"
    stub = package / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise LauncherError(f"{venv} has no nvidia-pytriton for Python {version}: run services/triton/install.py again")
    return Server(
        binary=package / "bin" / "tritonserver",
        backends=_linked_backends(package, stub, scratch / "backends"),
        library_path=(Path(site) / "nvidia_pytriton.libs", Path(library_dir)),
        path=(venv / "bin",),
    )


def _linked_backends(package: Path, stub: Path, folder: Path) -> Path:
    python = folder / "python"
    python.mkdir(parents=True, exist_ok=True)
    for file in (*(package / "backends" / "python").glob("*.*"), stub):
        link = python / file.name
        link.unlink(missing_ok=True)
        link.symlink_to(file)
    return folder
