"""The `penstock` command: it loads the one program that is named, and says what to do when that cannot be loaded."""

import subprocess
import sys

import pytest

PROGRAMS = {"gateway", "loadtest", "stack", "fake_engine", "openvino_engine", "starter_model"}


def penstock(*args: str, prelude: str = "") -> subprocess.CompletedProcess[str]:
    """Run it in an interpreter of its own; the last line of stderr says which programs were imported."""
    code = (
        f"import sys\n{prelude}\nfrom penstock.__main__ import main\n"
        "try:\n    code = main(sys.argv[1:])\nexcept SystemExit as left:\n    code = left.code\n"
        f"print('imported', *sorted({PROGRAMS!r} & set(sys.modules)), file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=60, check=False)


def imported(done: subprocess.CompletedProcess[str]) -> set[str]:
    return set(done.stderr.splitlines()[-1].split()[1:])


@pytest.mark.parametrize("args", [(), ("--help",), ("-h",), ("help",)])
def test_its_own_help_imports_no_program_and_names_them_all(args: tuple[str, ...]) -> None:
    done = penstock(*args)
    assert done.returncode == 0
    assert not imported(done)
    for name in ("up", "gateway", "openvino-engine", "fake-engine", "starter-model"):
        assert f"\n  {name} " in done.stdout


@pytest.mark.parametrize(
    ("command", "program"), [("up", "stack"), ("gateway", "gateway"), ("fake-engine", "fake_engine")]
)
def test_a_programs_help_imports_that_program_only(command: str, program: str) -> None:
    done = penstock(command, "--help")
    assert done.returncode == 0
    assert imported(done) == {program}
    assert f"usage: penstock {command}" in done.stdout


def test_up_help_needs_none_of_its_own_libraries() -> None:
    prelude = "for name in ('yaml', 'pydantic', 'rich'): sys.modules[name] = None"
    done = penstock("up", "--help", prelude=prelude)
    assert done.returncode == 0
    assert "exit codes:" in done.stdout


def test_an_unknown_command_is_refused_with_the_nearest_and_the_list() -> None:
    done = penstock("gatway")
    assert done.returncode == 2
    assert "no command 'gatway'; did you mean gateway?" in done.stderr
    assert "openvino-engine" in done.stderr


def test_a_missing_library_names_the_extra_to_install() -> None:
    done = penstock("up", "--engine", "openvino", "--check", prelude="sys.modules['yaml'] = None")
    assert done.returncode == 1
    assert "pip install 'penstock[stack]'" in done.stderr


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ((), "give either a stack file or --engine"),
        (("s.yaml", "--engine", "x"), "give either a stack file or --engine"),
        (("s.yaml", "--model", "x"), "engines.NAME.checkpoint"),
        (("--engine", "x", "--port", "0"), "'0' is no port"),
        (("--engine", "x", "--port", "eighty"), "'eighty' is no port"),
        (("--engine", "x", "--replicas", "0"), "a number from 1 to 64"),
        (("--engien", "x"), "--engien"),
        (("/nowhere/stack.yaml",), "cannot read /nowhere/stack.yaml: No such file"),
        (("--engine", "nonesuch", "--model", "/tmp"), "there is no profile 'nonesuch'; known: "),
        (("--engine", "vllm", "--model", "/nowhere/at/all"), "/nowhere/at/all does not exist"),
    ],
)
def test_a_wrong_command_line_is_refused_with_exit_code_2(args: tuple[str, ...], complaint: str) -> None:
    done = penstock("up", *args)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
