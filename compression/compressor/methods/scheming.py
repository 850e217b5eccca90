"""From a recipe's words to a number format: a scheme's name, and what of it is to be different."""

import difflib
from dataclasses import replace
from typing import Self

from pydantic import Field, field_validator, model_validator

from compressor.errors import BadRecipeError
from compressor.methods.base import Params
from compressor.numbers.grids import IntegerGrid
from compressor.numbers.schemes import SCHEMES, Scheme


class SchemeParams(Params):
    """Parameters of a method that encodes weights."""

    scheme: str = Field("W4A16", description="number format: W4A16, W4A16_ASYM, W8A16, W8A8, W3A16, W2A16, ...")
    bits: int | None = Field(None, ge=2, le=8, description="bits of a weight; null: the scheme's")
    group_size: int | None = Field(None, ge=-1, description="inputs that share a scale, -1: a row; null: the scheme's")
    symmetric: bool | None = Field(None, description="no zero points (true), or zero points; null: the scheme's")

    @field_validator("scheme")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in SCHEMES:
            near = difflib.get_close_matches(name.upper(), SCHEMES, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(f"there is no scheme {name!r}; {hint}They are {', '.join(SCHEMES)}")
        return name

    @field_validator("group_size")
    @classmethod
    def _is_a_size(cls, size: int | None) -> int | None:
        if size == 0:
            raise ValueError("0 is no group size: -1 is one scale a row")
        return size

    @model_validator(mode="after")
    def _fits_the_scheme(self) -> Self:
        try:
            resolve(self)
        except BadRecipeError as error:
            raise ValueError(str(error)) from None
        return self


class IntegerParams(SchemeParams):
    """Parameters of a method that chooses integer codes."""

    @model_validator(mode="after")
    def _is_of_integers(self) -> Self:
        if not isinstance(SCHEMES[self.scheme].weights, IntegerGrid):
            raise ValueError(f"scheme {self.scheme} is no scheme of integers: use the method named after its format")
        return self


def resolve(params: SchemeParams) -> Scheme:
    """The scheme with the overrides in it; named after a preset it is equal to, else W3A16_G64 and the like.

    Raises BadRecipeError when something is overridden that a floating-point format fixes.
    """
    scheme = SCHEMES[params.scheme]
    asked = {"bits": params.bits, "symmetric": params.symmetric, "group_size": params.group_size}
    changes: dict[str, int | bool | None] = {key: value for key, value in asked.items() if value is not None}
    if not changes:
        return scheme
    if not isinstance(scheme.weights, IntegerGrid):
        raise BadRecipeError(f"{' and '.join(changes)} cannot be chosen: scheme {scheme.name} fixes the format")
    if params.group_size == -1:
        changes["group_size"] = None
    grid = replace(scheme.weights, **changes)  # type: ignore[arg-type]
    return replace(scheme, name=_name(grid, scheme), weights=grid)


def integer_grid(scheme: Scheme) -> IntegerGrid:
    """The grid of a scheme that IntegerParams has let through."""
    assert isinstance(scheme.weights, IntegerGrid)
    return scheme.weights


def _name(grid: IntegerGrid, scheme: Scheme) -> str:
    for preset in SCHEMES.values():
        if preset.weights == grid and preset.activations == scheme.activations:
            return preset.name
    name = f"W{grid.bits}A{'16' if scheme.activations is None else '8'}" + ("" if grid.symmetric else "_ASYM")
    return f"{name}_G{grid.group_size or 'ROW'}"
