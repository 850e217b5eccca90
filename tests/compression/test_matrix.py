"""Every recipe that ships, from the command line, on the starter model: made, whole, measured, within its gate."""

import json
import shutil
from pathlib import Path

import pytest

from compressor.__main__ import main
from compressor.checkpoint_command import main as checkpoint
from compressor.recipe import shipped
from starter import STARTER

# A window fewer is a second less; the gate is the recipe's own all the same.
LESS = ("calibration.samples=32", "calibration.seq_len=256")
EVERYDAY = ("rtn-w4a16", "gptq-w4a16", "sparsegpt-50")


@pytest.mark.parametrize("name", EVERYDAY)
def test_the_everyday_recipes_pass_their_gates(name: str, tmp_path: Path) -> None:
    follow(name, tmp_path / "out")


@pytest.mark.matrix
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [path.stem for path in shipped() if path.stem not in EVERYDAY])
def test_every_recipe_passes_its_gate(name: str, tmp_path: Path) -> None:
    follow(name, tmp_path / "out")
    shutil.rmtree(tmp_path)


def follow(name: str, out: Path) -> None:
    overrides = [part for override in LESS for part in ("--set", override)]
    assert main([str(STARTER), "--recipe", name, "--out", str(out), *overrides]) == 0
    assert checkpoint(["verify", str(out)]) == 0
    manifest = json.loads((out / "penstock.json").read_text("utf-8"))
    gate = manifest["gate"]
    assert gate is None or gate["passed"] is True, gate["reason"]
    assert manifest["quality"]["perplexity"]["value"] > 1
    assert 0 <= manifest["quality"]["accuracy"]["mean"] <= 1
    assert manifest["recipe"]["name"] == name
    assert (out / "README.md").read_text("utf-8")
