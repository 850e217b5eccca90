"""Runs that are cut short: what is done is kept, the same command goes on, and makes the bytes of a run in one go."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from compress_command import QUICK, Here, started, tiny, wait_for, weights
from compressor.__main__ import STOPPED, main
from compressor.checkpoint import manifest, publish
from compressor.checkpoint.verify import verify
from compressor.pipeline import Job
from compressor.recipe import parse

LAYERS = 24  # enough to be stopped among them, however late the signal comes
JOB = (
    "--recipe",
    "smoothquant-gptq-w8a8",
    "--out",
    "out",
    "--device",
    "cpu",
    *QUICK,
    "--set",
    "calibration.samples=32",
)
Stop = Callable[[subprocess.Popen[str]], object]


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    monkeypatch.chdir(tmp_path)
    return Here(capsys)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("model"), layers=LAYERS)


@pytest.fixture(scope="module")
def in_one_go(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    assert main([str(model), *JOB, "--out", str(out)]) == 0
    return out


def _interrupt(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    rest = process.stderr.read()
    assert process.wait(timeout=60) == STOPPED
    assert "what is done is kept, and the same command goes on" in rest
    assert "Traceback" not in rest


def _terminate(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == STOPPED


def _kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    assert process.wait(timeout=60) == -signal.SIGKILL


@pytest.mark.parametrize("stop", [_interrupt, pytest.param(_terminate, marks=pytest.mark.matrix), _kill])
def test_the_same_command_goes_on_and_makes_the_same_bytes(
    here: Here, model: Path, in_one_go: Path, tmp_path: Path, stop: Stop
) -> None:
    with started(model, *JOB, folder=tmp_path) as process:
        wait_for(process, f"block 2 of {LAYERS}")
        stop(process)
    assert {path.name for path in tmp_path.iterdir() if path.name != ".out.lock"} == {".out.partial"}
    ran = here(model, *JOB)
    assert ran.code == 0, ran.err
    assert "going on after block" in ran.err
    assert "block 1 of" not in ran.err, "what was done is done again"
    assert weights(tmp_path / "out") == weights(in_one_go)
    assert verify(tmp_path / "out") == []
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


@pytest.mark.matrix
def test_what_another_recipe_left_behind_is_not_taken_up(
    here: Here, model: Path, in_one_go: Path, tmp_path: Path
) -> None:
    with started(model, *JOB, "--set", "steps.0.params.strength=0.9", folder=tmp_path) as process:
        wait_for(process, f"block 2 of {LAYERS}")
        _kill(process)
    ran = here(model, *JOB)
    assert ran.code == 0, ran.err
    assert "going on" not in ran.err
    assert weights(tmp_path / "out") == weights(in_one_go)


def test_other_calibration_rows_under_the_same_name_are_another_job(model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    recipe = parse({"name": "r", "method": "gptq", "calibration": {"file": str(rows)}}, "r")
    job = Job(model, recipe, tmp_path / "out")
    rows.write_text('{"text": "a fox"}\n')
    before = job.identity()
    assert before == job.identity()
    rows.write_text('{"text": "a dog"}\n')
    assert job.identity() != before


def test_two_runs_into_one_out_are_not_mixed(here: Here, model: Path, tmp_path: Path) -> None:
    with publish.reserve(tmp_path / "out", {"by": "another run"}) as (partial, _):
        (partial / "piece").write_text("of the other")
        ran = here(model, *JOB)
        assert ran.code == 2
        assert "another run is writing out now" in ran.err
        assert (partial / "piece").read_text() == "of the other"
    assert here(model, *JOB).code == 0


def test_force_replaces_a_checkpoint_by_a_whole_one(here: Here, model: Path, tmp_path: Path) -> None:
    assert here(model, "--recipe", "rtn-w8a16", "--out", "out", *QUICK).code == 0
    assert here(model, "--recipe", "rtn-w4a16", "--out", "out", *QUICK).code == 2
    assert manifest.read(tmp_path / "out")["scheme"] == "W8A16"
    ran = here(model, "--recipe", "rtn-w4a16", "--out", "out", "--force", *QUICK)
    assert ran.code == 0, ran.err
    assert manifest.read(tmp_path / "out")["scheme"] == "W4A16"
    assert verify(tmp_path / "out") == []
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_a_death_between_the_two_renames_loses_nothing(here: Here, model: Path, tmp_path: Path) -> None:
    """The state that `publish` leaves when the machine dies after its first rename, made by hand."""
    assert here(model, "--recipe", "rtn-w8a16", "--out", "out", *QUICK).code == 0
    (tmp_path / "out").rename(publish.beside(tmp_path / "out", "old"))
    ran = here(model, "--recipe", "rtn-w4a16", "--out", "out", *QUICK)
    assert ran.code == 2, "the checkpoint that was there is there again"
    assert manifest.read(tmp_path / "out")["scheme"] == "W8A16"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 160 MB: 64 are kept in reserve by the check before the work."""
    where = tmp_path / "disk"
    where.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", where], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount a file system that can be filled")
    try:
        yield where
    finally:
        subprocess.run(["umount", "--lazy", where], check=True)


def test_a_disk_that_is_too_small_is_told_before_the_work(here: Here, model: Path, small_disk: Path) -> None:
    _fill(small_disk, leave=1_000_000)
    ran = here(model, *JOB[:2], "--out", small_disk / "out", *QUICK)
    assert ran.code == 1
    assert "MB free, and this needs about" in ran.err
    assert {path.name for path in small_disk.iterdir()} == {"filler"}


def test_a_disk_that_fills_up_leaves_no_half_checkpoint_and_the_run_goes_on(
    here: Here, model: Path, in_one_go: Path, small_disk: Path
) -> None:
    job = [*JOB[:2], "--out", small_disk / "out", *JOB[4:]]
    with started(model, *job, folder=small_disk) as process:
        wait_for(process, f"block 1 of {LAYERS}")
        _fill(small_disk, leave=0)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert "is full: make room and run the same command again" in err
    assert "Traceback" not in err
    assert not (small_disk / "out").exists()
    (small_disk / "filler").unlink()
    ran = here(model, *job)
    assert ran.code == 0, ran.err
    assert "going on after block" in ran.err
    assert weights(small_disk / "out") == weights(in_one_go)


def _fill(disk: Path, *, leave: int) -> None:
    free = shutil.disk_usage(disk).free - leave
    with (disk / "filler").open("wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, free)
        except OSError:
            while file.write(b"\0" * 65536):
                file.flush()
