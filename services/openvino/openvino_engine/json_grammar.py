"""JSON schema -> EBNF without free whitespace, for the schemas that people mostly write.

The library's own conversion allows any blanks between JSON's tokens, and a small model can get lost in them until the
length limit cuts the JSON. This one allows exactly `{"a": 1, "b": [2, 3]}`. Anything beyond its keywords gives None,
and the library's conversion is used (with its checks and its error messages).
"""

import json
from typing import Any

# The ranges of `wide` follow the byte patterns of UTF-8 (RFC 3629, section 4): the library's automaton lets overlong
# and surrogate encodings through when a range crosses them.
_PRIMITIVES = r"""
string ::= "\"" char* "\""
char ::= [\x20\x21\x23-\x5b\x5d-\x7f] | "\\" escape | wide
wide ::= [\u0080-\u07ff] | [\u0800-\u0fff] | [\u1000-\ucfff] | [\ud000-\ud7ff] | [\ue000-\uffff] | wider
wider ::= [\U00010000-\U0003ffff] | [\U00040000-\U000fffff] | [\U00100000-\U0010ffff]
escape ::= ["\\/bfnrt] | "u" [0-9a-fA-F]{4}
integer ::= "-"? ("0" | [1-9] [0-9]{0,15})
number ::= integer ("." [0-9]{1,15})? ([eE] [+-]? [0-9]{1,2})?
boolean ::= "true" | "false"
null ::= "null"
any ::= anyobject | anyarray | string | number | boolean | null
anyobject ::= "{" (string ": " any (", " string ": " any)*)? "}"
anyarray ::= "[" (any (", " any)*)? "]"
"""
_NOTES = frozenset(
    {"title", "description", "default", "examples", "deprecated", "$schema", "$id", "$comment", "$defs", "definitions"}
)
_KEYWORDS = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "minItems", "maxItems"}),
    "string": frozenset({"minLength", "maxLength"}),
    "integer": frozenset({"minimum", "maximum"}),
    "number": frozenset(),
    "boolean": frozenset(),
    "null": frozenset(),
}
_MOST_LITERALS = 256


class _Beyond(Exception):
    """The schema uses something that this conversion does not know."""


def compact_grammar(schema_text: str) -> str | None:
    """EBNF whose start is `root`, or None when the schema goes beyond what is converted here."""
    try:
        schema = json.loads(schema_text)
        if not isinstance(schema, dict):
            return None
        return _Writer(schema).grammar()
    except (_Beyond, ValueError, RecursionError):
        return None


class _Writer:
    def __init__(self, schema: dict[str, Any]) -> None:
        self._schema = schema
        self._rules: dict[str, str] = {}
        self._references: dict[str, str] = {}

    def grammar(self) -> str:
        root = self._value(self._schema)
        rules = "\n".join(f"{name} ::= {body}" for name, body in self._rules.items())
        return f"root ::= {root}\n{rules}\n{_PRIMITIVES}"

    def _value(self, schema: Any) -> str:
        if schema is True or schema == {}:
            return "any"
        if not isinstance(schema, dict):
            raise _Beyond
        keys = schema.keys() - _NOTES
        if "$ref" in keys:
            return self._reference(schema["$ref"]) if keys == {"$ref"} else _beyond()
        for word in ("anyOf", "oneOf"):
            if word in keys:
                return self._either(schema[word]) if keys == {word} else _beyond()
        if "const" in keys or "enum" in keys:
            return self._literals(schema, keys)
        kinds = schema.get("type")
        if isinstance(kinds, list):
            return self._either([{**schema, "type": kind} for kind in kinds], shared=True)
        if not isinstance(kinds, str) or kinds not in _KEYWORDS or keys - {"type"} - _KEYWORDS[kinds]:
            raise _Beyond
        return {"object": self._object, "array": self._array, "string": self._string, "integer": self._integer}.get(
            kinds, lambda _: kinds
        )(schema)

    def _either(self, options: Any, *, shared: bool = False) -> str:
        if not isinstance(options, list) or not options:
            raise _Beyond
        if shared:
            kept = _KEYWORDS["object"] | _KEYWORDS["array"] | _KEYWORDS["string"] | _KEYWORDS["integer"]
            options = [
                {k: v for k, v in o.items() if k not in kept or k in _KEYWORDS.get(o["type"], ())} for o in options
            ]
        return "(" + " | ".join(self._value(option) for option in options) + ")"

    def _literals(self, schema: dict[str, Any], keys: Any) -> str:
        values = [schema["const"]] if "const" in keys else schema["enum"]
        if keys - {"const", "enum", "type"} or ("const" in keys and "enum" in keys):
            raise _Beyond
        if not isinstance(values, list) or not 0 < len(values) <= _MOST_LITERALS:
            raise _Beyond
        return "(" + " | ".join(_quote(json.dumps(value, ensure_ascii=False)) for value in values) + ")"

    def _reference(self, pointer: Any) -> str:
        if not isinstance(pointer, str) or not pointer.startswith("#/"):
            raise _Beyond
        if pointer not in self._references:
            node: Any = self._schema
            for part in pointer[2:].split("/"):
                node = node.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(node, dict) else None
            if node is None or (isinstance(node, dict) and node.get("$ref") == pointer):
                raise _Beyond
            self._references[pointer] = name = self._name()
            self._rules[name] = self._value(node)
        return self._references[pointer]

    def _object(self, schema: dict[str, Any]) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        rest = schema.get("additionalProperties", "properties" not in schema)
        if not isinstance(properties, dict) or not isinstance(required, list) or set(required) - properties.keys():
            raise _Beyond
        if rest is False:
            return self._members(properties, set(required))
        if properties:
            raise _Beyond
        value = self._value(rest)
        return f'("{{" (string ": " {value} (", " string ": " {value})*)? "}}")'

    def _members(self, properties: dict[str, Any], required: set[str]) -> str:
        """Members in order; ``first`` reads on before any member was written, ``after`` behind a comma's need."""
        first = after = '""'
        for name in reversed(properties):
            pair = f"{_quote(json.dumps(name, ensure_ascii=False) + ': ')} {self._value(properties[name])}"
            optional = name not in required
            first_rule, after_rule, next_after = self._name(), self._name(), after
            self._rules[first_rule] = f"{pair} {next_after}" + (f" | {first}" if optional else "")
            self._rules[after_rule] = f'", " {pair} {next_after}' + (f" | {next_after}" if optional else "")
            first, after = first_rule, after_rule
        return f'("{{" {first} "}}")'

    def _array(self, schema: dict[str, Any]) -> str:
        least, most = _bounds(schema, "minItems", "maxItems")
        item = self._value(schema.get("items", True))
        if most == 0:
            return '"[]"'
        more = f'(", " {item}){{{max(least - 1, 0)},{"" if most is None else most - 1}}}'
        body = f"({item} {more})" + ("" if least else "?")
        return f'("[" {body} "]")'

    def _string(self, schema: dict[str, Any]) -> str:
        least, most = _bounds(schema, "minLength", "maxLength")
        if not least and most is None:
            return "string"
        return rf'("\"" char{{{least},{"" if most is None else most}}} "\"")'

    def _integer(self, schema: dict[str, Any]) -> str:
        low, high = schema.get("minimum"), schema.get("maximum")
        if low is None and high is None:
            return "integer"
        if not isinstance(low, int) or not isinstance(high, int) or not 0 <= high - low < _MOST_LITERALS:
            raise _Beyond
        return "(" + " | ".join(_quote(str(value)) for value in range(low, high + 1)) + ")"

    def _name(self) -> str:
        name = f"r{len(self._rules)}"
        self._rules[name] = ""
        return name


def _bounds(schema: dict[str, Any], low: str, high: str) -> tuple[int, int | None]:
    least, most = schema.get(low, 0), schema.get(high)
    whole = isinstance(least, int) and (most is None or isinstance(most, int))
    if not whole or least < 0 or (most is not None and most < least):
        raise _Beyond
    return least, most


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _beyond() -> str:
    raise _Beyond
