"""A recipe: what to do to a checkpoint, as YAML. Apart from the methods, so that recipes can be listed and read alone.

compression/recipes/NAME.yaml are the ones that ship; any file with the same keys is a recipe too.
`Recipe.model_json_schema()` is the schema; docs/compression.md explains each key.
"""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from compressor.errors import BadRecipeError

SHIPPED = Path(__file__).parents[1] / "recipes"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Step(_Part):
    """One method with its parameters. What a method takes is the method's own, checked when it is built."""

    method: str = Field(description="a method's name: `penstock compress --methods` lists them")
    params: dict[str, Any] = Field(default_factory=dict, description="the method's parameters; all have defaults")


class CalibrationSettings(_Part):
    """Which text the methods look at. Rows are tokenized, joined in a seeded order and cut into windows."""

    file: Path | None = Field(None, description="JSON lines of {messages} or {text}; null: the sample that ships")
    samples: int = Field(128, ge=1, description="windows at most")
    seq_len: int = Field(512, ge=8, description="tokens a window")
    seed: int = Field(0, ge=0, description="order of the rows")


class ExportSettings(_Part):
    """The layout on disk."""

    format: Literal["compressed-tensors", "gptq", "awq", "dense", "gguf", "openvino", "modelopt"] = Field(
        "compressed-tensors", description="which readers it is for; `dense` where weights stay plain"
    )
    type: str | None = Field(
        None, description="the number format of a container: Q8_0, Q4_0 (gguf), int8, int4 (openvino)"
    )


class GateSettings(_Part):
    """What may be lost at most; a checkpoint that lost more is kept, and the command ends with 3."""

    metric: Literal["perplexity", "accuracy", "kl"] = Field("perplexity", description="measured against the parent")
    max_regression: float = Field(
        ge=0, description="perplexity: relative growth (0.05 is 5 %); accuracy: points lost of 1; kl: nats a token"
    )


class Recipe(_Part):
    """The whole file. `name` is the file's stem when the file does not say it."""

    name: str = Field(description="how it is asked for and remembered")
    about: str = Field("", description="one line for people")
    model: str | None = Field(None, description="the checkpoint it was written for, when it is for one only")
    steps: tuple[Step, ...] = Field(
        default=(), description="methods, in order; or `method` and `params` for a single one"
    )
    calibration: CalibrationSettings = CalibrationSettings()
    ignore: tuple[str, ...] = Field(
        ("lm_head",), description="linears left alone: names as in the checkpoint or in a block"
    )
    export: ExportSettings = ExportSettings()
    gate: GateSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def _single_step(cls, value: Any) -> Any:
        return _with_steps(value) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if not self.steps and self.export.format not in ("gguf", "openvino"):
            raise ValueError("has no steps, and its export changes nothing")
        return self


def load(name: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """A shipped recipe by name, or a file. `overrides`: "calibration.samples=32", "steps.0.params.bits=3",
    "params.bits=3" (the last step's). Raises BadRecipeError."""
    path = _find(str(name))
    try:
        value = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadRecipeError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise BadRecipeError(f"{path} is not a mapping of keys")
    value.setdefault("name", path.stem)
    try:
        value = _with_steps(value)
    except ValueError as error:
        raise BadRecipeError(f"{path.name}: it: {error}") from None
    for override in overrides:
        _override(value, override)
    return parse(value, path.name)


def parse(value: dict[str, Any], where: str) -> Recipe:
    """Raises BadRecipeError with the path of each fault and, for an unknown key, the nearest one."""
    try:
        return Recipe.model_validate(value)
    except ValidationError as error:
        raise BadRecipeError("\n".join(f"{where}: {line}" for line in explain(error, Recipe))) from error


def shipped() -> list[Path]:
    """The recipes that come with the compressor, by name."""
    return sorted(SHIPPED.glob("*.yaml"))


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """One line a fault: its path, what is wrong, the nearest key."""
    lines = []
    for fault in error.errors():
        path = prefix + ".".join(map(str, fault["loc"]))
        if fault["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(fault["loc"][-1]), _keys(model, fault["loc"][:-1]), 1)
            lines.append(f"{path}: unknown key" + (f"; did you mean {near[0]}?" if near else ""))
        else:
            lines.append(f"{path or 'it'}: {fault['msg'].removeprefix('Value error, ')}")
    return lines


def _with_steps(value: dict[str, Any]) -> dict[str, Any]:
    """`method` and `params` are a recipe of one step."""
    if "method" not in value:
        return value
    if "steps" in value:
        raise ValueError("has both `method` and `steps`: keep one")
    rest = {key: part for key, part in value.items() if key not in ("method", "params")}
    return rest | {"steps": [{"method": value["method"], "params": value.get("params") or {}}]}


def _find(name: str) -> Path:
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise BadRecipeError(f"there is no file {path}")
        return path
    names = [shipped_path.stem for shipped_path in shipped()]
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise BadRecipeError(f"there is no recipe {name!r}{hint} `penstock compress --list` shows them all")
    return SHIPPED / f"{name}.yaml"


def _override(value: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise BadRecipeError(f"--set {override}: write KEY=VALUE, for example calibration.samples=32")
    *path, last = key.split(".")
    if path[:1] == ["params"]:
        path = ["steps", "-1", *path]
    at: Any = value
    try:
        for part in path:
            at = at[int(part)] if isinstance(at, list) else at.setdefault(part, {})
        at[int(last) if isinstance(at, list) else last] = yaml.safe_load(text)
    except (ValueError, IndexError, TypeError, AttributeError, KeyError, yaml.YAMLError):
        raise BadRecipeError(f"--set {override}: the recipe has no place {key}") from None


def _keys(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The keys that would have been right at `path`."""
    at: Any = model
    for part in path:
        if isinstance(part, int):
            continue
        at = _inner(at.model_fields[part].annotation)
    keys = list(at.model_fields)
    return [*keys, "method", "params"] if at is Recipe else keys


def _inner(annotation: Any) -> Any:
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return Recipe
