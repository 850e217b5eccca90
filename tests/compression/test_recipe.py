"""Recipes: what they may say, and what is said of one that is wrong."""

from pathlib import Path

import pytest

from compressor.errors import BadRecipeError
from compressor.methods import registry
from compressor.recipe import load, parse, shipped


@pytest.mark.parametrize("path", shipped(), ids=lambda path: path.stem)
def test_every_recipe_that_ships_can_be_followed(path: Path) -> None:
    recipe = load(path.stem)
    assert recipe.name == path.stem
    assert recipe.about
    assert "\n" not in recipe.about
    # What may be lost at most is part of a recipe, unless training has to bring it back.
    assert recipe.gate is not None or "needs training" in recipe.about
    assert len(registry.build(recipe.steps, recipe.name)) == len(recipe.steps)


def test_method_and_params_are_a_recipe_of_one_step() -> None:
    recipe = parse({"name": "r", "method": "magnitude", "params": {"sparsity": 0.5}}, "r.yaml")
    assert [step.method for step in recipe.steps] == ["magnitude"]
    assert recipe.steps[0].params == {"sparsity": 0.5}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"name": "r", "stepz": []}, "r.yaml: stepz: unknown key; did you mean steps?"),
        (
            {"name": "r", "method": "wanda", "calibration": {"sampels": 3}},
            "r.yaml: calibration.sampels: unknown key; did you mean samples?",
        ),
        (
            {"name": "r", "method": "wanda", "calibration": {"samples": 0}},
            "r.yaml: calibration.samples: .*greater than",
        ),
        ({"name": "r", "method": "wanda", "steps": []}, "both `method` and `steps`"),
        ({"name": "r"}, "has no steps, and its export changes nothing"),
        ({"name": "r", "method": "wanda", "export": {"format": "onnx"}}, "export.format: .*'compressed-tensors'"),
        ({"name": "r", "method": "wanda", "gate": {"max_regression": -1}}, "gate.max_regression"),
        (
            {"name": "r", "steps": [{"method": "wanda", "parms": {}}]},
            "steps.0.parms: unknown key; did you mean params?",
        ),
    ],
)
def test_a_recipe_that_is_wrong_is_told_where_and_what_was_meant(value: dict[str, object], words: str) -> None:
    with pytest.raises(BadRecipeError, match=words):
        parse(value, "r.yaml")


def test_a_method_and_its_parameters_are_checked_by_name() -> None:
    steps = parse({"name": "r", "method": "wandda"}, "r").steps
    with pytest.raises(BadRecipeError, match=r"r: steps.0.method: there is no method 'wandda'; did you mean wanda\?"):
        registry.build(steps, "r")
    steps = parse({"name": "r", "method": "wanda", "params": {"sparcity": 0.5}}, "r").steps
    with pytest.raises(BadRecipeError, match=r"r: steps.0.params.sparcity: unknown key; did you mean sparsity\?"):
        registry.build(steps, "r")


def test_a_value_can_be_set_from_outside() -> None:
    recipe = load("wanda-50", ["calibration.samples=7", "params.sparsity=0.25", "ignore=[lm_head, mlp.up_proj]"])
    assert recipe.calibration.samples == 7
    assert recipe.steps[-1].params["sparsity"] == 0.25
    assert recipe.ignore == ("lm_head", "mlp.up_proj")


@pytest.mark.parametrize("override", ["calibration.samples", "steps.9.params.x=1", "about.x.y=1"])
def test_a_place_that_is_not_there_cannot_be_set(override: str) -> None:
    with pytest.raises(BadRecipeError, match="--set"):
        load("wanda-50", [override])


def test_a_name_that_is_not_there_brings_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(BadRecipeError, match=r"no recipe 'wanda50'; did you mean wanda-50\?"):
        load("wanda50")
    with pytest.raises(BadRecipeError, match="there is no file"):
        load(tmp_path / "none.yaml")


@pytest.mark.parametrize("text", ["- a list", "a: [unclosed", "\x00"])
def test_a_file_that_is_no_recipe_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(BadRecipeError, match=r"mine\.yaml"):
        load(path)
