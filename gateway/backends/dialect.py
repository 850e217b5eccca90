"""Steps that several dialects share: what a backend does to the fields of a call before its engine gets them.

Apart from the backends so that each of them holds only what its engine alone is like. All of them work on raw
JSON: a value nobody must change is never decoded.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Raw

from gateway.backends.capabilities import Capabilities
from gateway.backends.constraint import Constraint, constraint
from gateway.core.call import Call
from gateway.core.errors import InvalidRequest
from gateway.core.raw import decode_field

Fields = Mapping[str, Raw]
NULL = Raw(b"null")
CONSTRAINTS = frozenset({"response_format", "structured_outputs"})


def is_plain(fields: Fields, special: frozenset[str]) -> bool:
    """Nothing to translate: none of the `special` names, and no null, which OpenAI allows and some engines refuse."""
    return special.isdisjoint(fields) and NULL not in fields.values()


def present(fields: Fields) -> dict[str, Raw]:
    """A copy without the nulls: a field that is null is one that was not given."""
    return {name: raw for name, raw in fields.items() if raw != NULL}


def raw(value: Any) -> Raw:
    return Raw(msgspec.json.encode(value))


def decoded(fields: Fields, name: str) -> Any:
    """The value of `name`, None when it is not there. Raises InvalidRequest."""
    given = fields.get(name)
    return None if given is None else decode_field(name, given)


def take_constraint(call: Call, fields: dict[str, Raw], kind: str, capabilities: Capabilities) -> Constraint | None:
    """What the call wants of the answer's shape; both of its spellings leave `fields`.

    Raises InvalidRequest for a constraint that the engine, `kind`, does not have.
    """
    name = "structured_outputs" if "structured_outputs" in fields else "response_format"
    for spelling in CONSTRAINTS:
        fields.pop(spelling, None)
    wanted = constraint(call)
    if wanted is not None and wanted.kind not in capabilities.constraints:
        able = ", ".join(sorted(capabilities.constraints)) or "no structured outputs"
        raise InvalidRequest(
            f"The engine ({kind}) cannot hold its answer to a {wanted.kind}; it has {able}.",
            param=name,
            code="unsupported_parameter",
        )
    return wanted


def schema_format(wanted: Constraint) -> dict[str, object]:
    """A JSON schema as OpenAI's `response_format` has it."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted.value}}
