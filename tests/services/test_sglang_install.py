"""SGLang on CPU as far as nothing of it has to run: what its installer says, and what the shim answers to imports.

That the shim is enough for the real SGLang is shown by tests/e2e (`make test-sglang`).
"""

import os
import re
import subprocess
import sys
import textwrap
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVICE = ROOT / "services/sglang"
INSTALL = SERVICE / "install.py"


def install(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(INSTALL), *args]
    return subprocess.run(
        command,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def python(code: str, *folders: Path) -> subprocess.CompletedProcess[str]:
    """`code` as SGLang's processes run it: with the shim on PYTHONPATH."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (SERVICE / "shim", *folders)))}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_an_index_without_a_cpu_torch_means_unavailable_and_says_what_to_set(tmp_path: Path) -> None:
    offline = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": str(tmp_path)}
    done = install("--venv", str(tmp_path / "venv"), **offline)
    assert done.returncode == 69, done.stderr
    assert "pip finds no torch==2.13.0+cpu" in done.stderr
    assert "PIP_FIND_LINKS" in done.stderr
    assert install("--venv", str(tmp_path / "venv"), "--check").returncode == 1


def test_an_environment_interrupted_before_it_had_pip_is_completed(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    offline = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": str(tmp_path)}
    done = install("--venv", str(tmp_path / "venv"), **offline)
    assert "pip finds no torch" in done.stderr
    assert "No module named pip" not in done.stderr


def test_a_place_where_no_environment_can_be_is_said_in_one_line() -> None:
    done = install("--venv", "/dev/null/venv")
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["sglang set-up failed: /dev/null/venv/penstock-sglang.json: Not a directory"]


def test_check_installs_nothing(tmp_path: Path) -> None:
    done = install("--venv", str(tmp_path / "venv"), "--check")
    assert (done.returncode, "missing, incomplete or of another version" in done.stderr) == (1, True)
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("stamp", ["", "[]", '{"digest": "of another list"}'])
def test_a_stamp_of_something_else_is_no_installation(tmp_path: Path, stamp: str) -> None:
    (tmp_path / "penstock-sglang.json").write_text(stamp)
    assert install("--venv", str(tmp_path), "--check").returncode == 1


def test_every_package_is_pinned_once_and_none_is_for_gpus() -> None:
    lines = (SERVICE / "requirements-cpu.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][\w.]*", pin) for pin in pins)
    names = [pin.partition("==")[0] for pin in pins]
    assert len(set(names)) == len(names)
    for_gpus = re.compile(r"nvidia|cuda|flashinfer|cutlass|triton|deep-gemm|sgl(ang)?-kernel|torch")
    assert [name for name in names if for_gpus.search(name)] == []


def test_what_is_for_gpus_can_be_imported_and_never_used() -> None:
    done = python("""
        import sgl_kernel, torchvision.transforms.v2.functional as pictures, triton, triton.language as tl
        from sgl_kernel.attention import merge_state
        from triton.runtime.jit import JITFunction

        @triton.autotune(configs=[triton.Config({"BLOCK": 64}, num_warps=4)], key=["n"])
        @triton.jit
        def kernel(x, BLOCK: tl.constexpr): ...

        @triton.jit(do_not_specialize=["n"])
        def other(x, n: tl.int32): ...

        @triton.heuristics({"EVEN": lambda args: True})
        @triton.jit
        def third(x): ...

        class Backend(sgl_kernel.Base): ...

        assert all(isinstance(one, JITFunction) for one in (kernel, other, third))
        for use in (
            lambda: kernel[(1,)](1), lambda: kernel.run(1), lambda: merge_state(1, 2), lambda: sgl_kernel.rmsnorm(x=1),
            lambda: pictures.resize([1], 2), lambda: tl.load(1), lambda: sgl_kernel.table[0], lambda: Backend(),
        ):
            try:
                use()
            except NotImplementedError as refused:
                assert "needs a GPU" in str(refused), refused
            else:
                raise AssertionError("it did something")
    """)
    assert done.returncode == 0, done.stderr


def test_names_that_are_evaluated_on_a_cpu_have_tritons_values() -> None:
    done = python("""
        import triton, triton.language as tl
        assert [triton.cdiv(n, 8) for n in (0, 1, 8, 9)] == [0, 1, 1, 2]
        assert [triton.next_power_of_2(n) for n in (1, 2, 3, 1024, 1025)] == [1, 2, 4, 1024, 2048]
        assert tl.constexpr(tl.constexpr(128)).value == 128
        try:
            triton.runtime.driver.active
        except RuntimeError as none:
            assert "no GPU" in str(none)
        else:
            raise AssertionError("a driver without a GPU")
    """)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["sgl_kernel.scalar_type", "triton.experimental.gluon", "tritonclient_of_ours"])
def test_what_sglang_can_do_without_stays_absent(name: str) -> None:
    done = python(f"import {name}")
    assert "ModuleNotFoundError" in done.stderr


def test_a_package_that_is_really_there_goes_before(tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text("real = True")
    done = python("import torchvision; assert torchvision.real is True", tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_shim_says_what_each_of_its_files_is_for() -> None:
    said = (SERVICE / "shim/sitecustomize.py").read_text()
    for path in (SERVICE / "shim").glob("*.py"):
        assert path.read_text().startswith('"""')
        assert path.name == "sitecustomize.py" or path.name in said
