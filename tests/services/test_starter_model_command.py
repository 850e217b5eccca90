"""The command in the everyday environment, where torch is not: help, samples, and refusals that say what to do."""

import importlib.util
import subprocess
import sys

import pytest

from starter_model.__main__ import main


def test_help_shows_the_usual_way(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    assert "make starter-model" in capsys.readouterr().out


def test_samples_end_with_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["corpus", "--family", "copy", "--count", "3"]) == 0
    shown = capsys.readouterr().out.strip().split("\n\n")
    assert len(shown) == 3
    for sample in shown:
        prompt, answer = sample.split("<|assistant|> ")
        assert prompt.startswith("[copy]\n<|")
        assert answer.removesuffix("<|im_end|>") in prompt


def test_the_list_of_families_names_what_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["corpus", "--list"]) == 0
    shown = capsys.readouterr().out
    assert "tool_call" in shown
    assert "left out of training: double, second" in shown


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["corpus", "--family", "additions"], "there are: facts_en"),
        (["corpus", "--family", "double"], "--held-out"),
        (["corpus", "--held-out"], "needs --family"),
    ],
)
def test_a_wrong_choice_is_refused_with_what_would_be_right(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    assert complaint in capsys.readouterr().err


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(SystemExit) as left:
        main(["corpus", "--steps", "3"])
    assert left.value.code == 2


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is here: nothing to complain about")
def test_training_without_torch_says_how_to_get_it() -> None:
    command = [sys.executable, "-m", "starter_model", "train"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "make starter-model" in ended.stderr
    assert "Traceback" not in ended.stderr
