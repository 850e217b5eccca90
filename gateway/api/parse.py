"""From the body of a POST to a `Call`: everything that can be checked without asking an engine.

The body is scanned once into raw top-level fields; each known field is decoded only to check its
type and range. The client's bytes are what goes upstream.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import msgspec

from gateway.core.call import Call, Endpoint
from gateway.core.errors import InvalidRequest
from gateway.core.openai import FIELD_TYPES, REQUIRED, StreamOptions
from gateway.core.raw import decode_field

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_STRING = re.compile(rb'"(?:[^"\\]+|\\.)*+"?', re.DOTALL)
"""The last quote is optional: else each quote of a string without an end would be a new try to its end."""
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[{]}"))
SHORT_BYTES = 2048
"""Bodies that are searched for a word sooner than their messages are looked at one by one."""


@dataclass(slots=True)
class Parser:
    """Checks bodies of one endpoint. `depth_limit` bounds the nesting of arrays and objects."""

    endpoint: Endpoint
    depth_limit: int
    decoders: dict[str, Callable[[msgspec.Raw], Any]] = field(init=False)
    required: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        types = FIELD_TYPES[self.endpoint]
        self.decoders = {name: msgspec.json.Decoder(type_).decode for name, type_ in types.items()}
        self.required = REQUIRED[self.endpoint]

    def parse(self, body: bytes, request_id: str, received_s: float) -> Call:
        """Raises InvalidRequest (400) naming the field, or NotFound for a model name that cannot be one."""
        fields = self._scan(body)
        values = self._check(fields)
        stream = values.get("stream") is True
        options = values.get("stream_options")
        if options is not None and not stream:
            raise InvalidRequest("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
        if (
            values.get("top_logprobs") is not None
            and self.endpoint is Endpoint.CHAT
            and values.get("logprobs") is not True
        ):
            raise InvalidRequest("'top_logprobs' needs 'logprobs' to be true.", param="top_logprobs")
        if stream and values.get("best_of") not in (None, 1):
            raise InvalidRequest("'best_of' cannot be used with 'stream'.", param="best_of")
        return Call(
            self.endpoint,
            values["model"],
            body,
            fields,
            stream=stream,
            wants_usage=isinstance(options, StreamOptions) and options.include_usage,
            request_id=request_id,
            received_s=received_s,
            is_text=len(body) > SHORT_BYTES and self.endpoint is Endpoint.CHAT and _is_text(values["messages"]),
        )

    def _scan(self, body: bytes) -> dict[str, msgspec.Raw]:
        if body.count(b"[") + body.count(b"{") > self.depth_limit and depth(body) > self.depth_limit:
            raise InvalidRequest(
                f"The JSON body is nested deeper than {self.depth_limit} levels.", code="json_too_deep"
            )
        try:
            if not body.isascii():
                body.decode()
            return _FIELDS.decode(body)
        except UnicodeDecodeError as error:
            raise InvalidRequest(
                f"The request body is not valid UTF-8 (byte {error.start}).", code="invalid_utf8"
            ) from None
        except msgspec.ValidationError:
            raise InvalidRequest("The request body must be a JSON object.", code="invalid_json") from None
        except (msgspec.DecodeError, RecursionError) as error:
            raise InvalidRequest(f"The request body is not valid JSON: {error}.", code="invalid_json") from None

    def _check(self, fields: dict[str, msgspec.Raw]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        decoders = self.decoders
        name = ""
        try:
            for name, raw in fields.items():
                values[name] = decoders[name](raw)
        except KeyError:
            raise InvalidRequest(
                f"Unknown field: {name[:128]!r}.", param=name[:128], code="unknown_parameter"
            ) from None
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"Invalid {name!r}: {_reason(error)}.", param=name, code="invalid_value") from None
        except msgspec.DecodeError as error:
            raise InvalidRequest(f"The request body is not valid JSON: {error}.", code="invalid_json") from None
        for name in self.required:
            if name not in values:
                raise InvalidRequest(
                    f"Missing required field: {name!r}.", param=name, code="missing_required_parameter"
                )
        return values


def decoded(call: Call) -> dict[str, Any]:
    """All fields of a call by name. Raises InvalidRequest."""
    return {name: decode_field(name, raw) for name, raw in call.fields.items()}


def _is_text(messages: list[dict[str, msgspec.Raw]]) -> bool:
    """One look at the first byte of each member, however long the prompt is."""
    for message in messages:
        for value in message.values():
            if memoryview(value)[0] != 0x22:
                return False
    return True


def _reason(error: msgspec.ValidationError) -> str:
    reason = str(error).replace(" - at `$", " - at `")
    return reason[0].lower() + reason[1:].removesuffix(" - at ``")


def depth(body: bytes) -> int:
    """Nesting of arrays and objects, counted outside strings. Linear, whatever the body."""
    steps = _STRING.sub(b"", body).translate(_STEPS, _NO_BRACKETS)
    return max(accumulate(memoryview(steps).cast("b")), default=0)
