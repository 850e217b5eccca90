"""What the answer must look like, read from a call in the one shape clients use for every engine.

Apart from the backends because each engine spells it differently: a backend that must translate asks here
what is wanted and writes its own dialect.
"""

import re
from enum import StrEnum
from typing import Any

import msgspec

from gateway.core.call import Call
from gateway.core.errors import InvalidRequest
from gateway.core.raw import decode_field


class ConstraintKind(StrEnum):
    """`json_object` is any object; `json` a JSON schema; `grammar` EBNF."""

    JSON_OBJECT = "json_object"
    JSON = "json"
    REGEX = "regex"
    CHOICE = "choice"
    GRAMMAR = "grammar"


class Constraint(msgspec.Struct, frozen=True):
    """`value`: the schema (dict), the pattern or grammar (str), the choices (list of str); True for an object."""

    kind: ConstraintKind
    value: Any


def constraint(call: Call) -> Constraint | None:
    """The constraint of `response_format` or `structured_outputs`; None when the text is free.

    Raises InvalidRequest for an unknown kind, for two constraints at once, for a value of the wrong type.
    """
    by_format = _of_response_format(_decoded(call, "response_format"))
    by_outputs = _of_structured_outputs(_decoded(call, "structured_outputs"))
    if by_format is not None and by_outputs is not None:
        raise InvalidRequest("Give either 'response_format' or 'structured_outputs'.", param="structured_outputs")
    return by_format or by_outputs


def _decoded(call: Call, name: str) -> Any:
    raw = call.fields.get(name)
    return None if raw is None else decode_field(name, raw)


def _of_response_format(wanted: Any) -> Constraint | None:
    if wanted is None or wanted.get("type") == "text":
        return None
    if wanted["type"] == "json_object":
        return Constraint(ConstraintKind.JSON_OBJECT, value=True)
    if wanted["type"] == "json_schema":
        schema = (wanted.get("json_schema") or {}).get("schema")
        if not isinstance(schema, dict):
            raise InvalidRequest("'response_format.json_schema.schema' must be a JSON schema.", param="response_format")
        return Constraint(ConstraintKind.JSON, schema)
    raise InvalidRequest(
        f"'response_format.type' {wanted['type']!r} is not one of text, json_object, json_schema.",
        param="response_format",
    )


def _of_structured_outputs(wanted: Any) -> Constraint | None:
    if wanted is None:
        return None
    given = {name: value for name, value in wanted.items() if value is not None}
    kinds = [kind for kind in ConstraintKind if kind in given]
    unknown = given.keys() - set(ConstraintKind)
    if unknown or len(kinds) != 1:
        raise InvalidRequest(
            "'structured_outputs' takes exactly one of json, regex, choice, grammar, json_object"
            + (f"; not {min(unknown)!r}." if unknown else "."),
            param="structured_outputs",
        )
    kind = kinds[0]
    value = given[kind]
    if kind is ConstraintKind.JSON and isinstance(value, str):
        value = _parsed(value)
    if not _fits(kind, value):
        raise InvalidRequest(f"'structured_outputs.{kind}' has a value of the wrong type.", param="structured_outputs")
    return Constraint(kind, value)


def _parsed(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return None


def _fits(kind: ConstraintKind, value: Any) -> bool:
    if kind is ConstraintKind.CHOICE:
        return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)
    expected = {ConstraintKind.JSON: dict, ConstraintKind.JSON_OBJECT: bool}.get(kind, str)
    return isinstance(value, expected) and value is not False


def alternatives(choices: list[str]) -> str:
    """A regular expression for exactly these texts, for engines that know no choices.

    Only what has a meaning is escaped: grammar engines refuse escapes that mean nothing, which re.escape makes.
    """
    return "(" + "|".join(re.sub(r"([\\.^$*+?{}\[\]|()/])", r"\\\1", choice) for choice in choices) + ")"
