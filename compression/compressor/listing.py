"""Recipes and methods as tables: for a terminal, for programs, and for docs/compression.md, which is made from them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic_core import PydanticUndefined

from compressor.export import exporter_named
from compressor.methods import registry
from compressor.methods.base import Method
from compressor.recipe import Recipe, load, shipped
from compressor.serving_table import CONTAINERS, who_can_serve

PLAIN = "dense"


@dataclass(frozen=True, slots=True)
class RecipeLine:
    """`scheme`: of the weights in the end; `engines`: that can serve them, with a note each."""

    name: str
    about: str
    method: str
    scheme: str
    layout: str
    engines: dict[str, str]


@dataclass(frozen=True, slots=True)
class MethodLine:
    name: str
    about: str
    source: str
    needs_inputs: bool
    params: dict[str, str]


def recipe_lines() -> list[RecipeLine]:
    """All shipped recipes. Raises BadRecipeError when one of them is broken."""
    return [_recipe_line(load(path)) for path in shipped()]


def _recipe_line(recipe: Recipe) -> RecipeLine:
    methods = registry.build(recipe.steps, recipe.name)
    scheme, layout, structure = outcome(recipe, methods)
    names = "+".join(step.method for step in recipe.steps) or layout
    return RecipeLine(recipe.name, recipe.about, names, scheme, layout, who_can_serve(scheme, layout, structure))


def outcome(recipe: Recipe, methods: Sequence[Method]) -> tuple[str, str, str | None]:
    """The scheme, layout and structure that a recipe ends in; of a 16-bit model, when weights stay dense."""
    structure = next((found for method in methods if (found := getattr(method, "structure", None))), None)
    schemes = [found.name for method in methods if (found := getattr(method, "scheme", None)) is not None]
    layout = recipe.export.format
    if not schemes and layout not in CONTAINERS:
        return "BF16", PLAIN, structure
    exporter = exporter_named(layout)
    return (exporter.scheme(recipe.export.type) if exporter else schemes[-1]), layout, structure


def method_lines() -> list[MethodLine]:
    """All methods with their parameters and defaults."""
    return [_method_line(registry.method_class(name)) for name in registry.METHODS]


def _method_line(kind: Any) -> MethodLine:
    params = {
        name: f"{_default(field)}: {field.description or ''}".rstrip(": ")
        for name, field in kind.Params.model_fields.items()
    }
    return MethodLine(kind.name, kind.about, kind.source, kind.needs_inputs, params)


def _default(field: Any) -> str:
    value = field.get_default(call_default_factory=True) if not field.is_required() else PydanticUndefined
    return "required" if value is PydanticUndefined else json.dumps(value, default=str)


def recipes_as(form: str) -> str:
    """`form`: text, markdown or json."""
    lines = recipe_lines()
    if form == "json":
        return _json(lines)
    if form == "markdown":
        head = ["recipe", "what it does", "method", "scheme", "layout", "engines that can serve it"]
        return _markdown([head, *([f"`{one.name}`", one.about, *_facts(one)] for one in lines)])
    width = max(len(one.name) for one in lines)
    told = [f"{one.name:{width}}  {one.about}\n{'':{width}}  {' · '.join(_facts(one))}" for one in lines]
    return "\n".join(told) + "\n"


def _facts(line: RecipeLine) -> list[str]:
    return [line.method, line.scheme, line.layout, ", ".join(line.engines) or "no engine as it is"]


def methods_as(form: str) -> str:
    """`form`: text, markdown or json."""
    lines = method_lines()
    if form == "json":
        return _json(lines)
    if form == "markdown":
        head = ["method", "what it does", "source", "looks at data", "parameters"]
        return _markdown([head, *map(_method_cells, lines)])
    return "\n".join(_method_text(one) for one in lines)


def _method_cells(line: MethodLine) -> list[str]:
    params = ", ".join(f"`{key}`" for key in line.params)
    return [f"`{line.name}`", line.about, line.source, "yes" if line.needs_inputs else "no", params]


def _method_text(line: MethodLine) -> str:
    params = "".join(f"    {name} = {told}\n" for name, told in line.params.items())
    return f"{line.name}: {line.about}\n    {line.source}\n{params}"


def _json(lines: Sequence[Any]) -> str:
    return json.dumps([asdict(line) for line in lines], ensure_ascii=False, indent=2) + "\n"


def _markdown(rows: list[list[str]]) -> str:
    head, *body = rows
    cells = (head, ["---"] * len(head), *body)
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in cells)
