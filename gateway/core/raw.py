"""From the raw JSON of one request field to its value: the scan of a body does not look inside."""

from typing import Any

import msgspec

from gateway.core.errors import InvalidRequest


def decode_field(name: str, raw: msgspec.Raw) -> Any:
    """Raises InvalidRequest for what a scan does not see: half of a surrogate pair, a number like 1e999."""
    try:
        return msgspec.json.decode(raw)
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"Invalid {name!r}: {error}.", param=name, code="invalid_json") from None
