"""What is wrong inside a field, said the same way at every door that reads there."""

from typing import Any

from gateway.core.errors import InvalidRequest


def unsupported(name: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"{name!r} is not supported: {reason}.", param=name, code="unsupported_parameter")


def invalid(name: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid {name!r}: {reason}.", param=name, code="invalid_value")


def string_of(item: dict[str, Any], name: str, where: str) -> str:
    """The string under `name`; `where` is the item, as a client would say it. Raises InvalidRequest."""
    value = item.get(name)
    if not isinstance(value, str):
        raise invalid(f"{where}.{name}", "it must be a string")
    return value
