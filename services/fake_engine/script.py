"""What a test may ask of the fake engine: one script, its fields and units, and how it is read.

Apart from the code that plays it, because this struct is the public contract: docs/engines/fake.md
lists these fields, `POST /_fake/script` and `{"fake": {...}}` in a prompt carry them.
Times are seconds, sizes are bytes, chunks are counted from the first one that has content.
"""

import json
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct

Seconds = Annotated[float, Meta(ge=0, le=86_400)]
Natural = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Status = Annotated[int, Meta(ge=400, le=599)]
Point = Literal["before_headers", "after_headers"] | Natural
"""Where a fault strikes; a number means: after that many content chunks."""

ErrorShape = Literal["openai", "vllm", "sglang", "string", "fastapi", "lightllm", "text", "empty"]
Junk = Literal[
    "not_http", "bad_status_line", "length_too_long", "length_too_short", "two_lengths", "both_lengths",
    "huge_headers", "bad_chunk", "not_json", "bad_utf8", "empty",
]  # fmt: skip


class ScriptError(ValueError):
    """The script is not one: the message says which field and why."""


class ToolCall(Struct, forbid_unknown_fields=True, frozen=True):
    """One call the answer makes. A list of `arguments` is streamed fragment by fragment."""

    name: str
    arguments: str | list[str] = "{}"
    id: str | None = None


class Error(Struct, forbid_unknown_fields=True, frozen=True):
    """An HTTP error instead of an answer, after `ttft_s`. `shape` defaults to the engine's own.

    `before_body` answers when the headers have come and closes (global scripts only).
    """

    status: Status = 500
    message: str = "scripted error"
    type: str | None = None
    code: str | int | None = None
    param: str | None = None
    shape: ErrorShape | None = None
    retry_after: str | int | None = None
    before_body: bool = False


class ErrorEvent(Struct, forbid_unknown_fields=True, frozen=True):
    """An error event inside a stream after `after_chunks` content chunks; `done`: is [DONE] still sent."""

    after_chunks: Natural = 0
    message: str = "scripted error"
    type: str = "InternalServerError"
    code: int | str | None = 500
    done: bool = True


class Die(Struct, forbid_unknown_fields=True, frozen=True):
    """The connection ends at `at`: `how` FIN, RST, or the whole process exits.

    `half_event` first writes half of the next event (non-streaming: head and half of the body).
    """

    at: Point = "before_headers"
    how: Literal["close", "reset", "exit"] = "close"
    half_event: bool = False


class Script(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Every field has a harmless default: an empty script is a healthy, instant engine."""

    # when
    ttft_s: Seconds = 0.0
    itl_s: Seconds = 0.0
    early_headers: bool = False
    keep_alive_s: Annotated[float, Meta(gt=0)] | None = None
    # what
    tokens: list[str] | Natural | None = None
    token_bytes: Natural = 0
    tokens_per_chunk: Positive = 1
    flood: bool = False
    reasoning: list[str] | Natural | None = None
    reasoning_field: Literal["reasoning", "reasoning_content", "both"] | None = None
    tool_calls: list[ToolCall] = []
    echo: Literal["body", "raw", "headers"] | None = None
    cached_tokens: Natural | None = None
    # how it is framed
    role_chunk: Literal["separate", "merged", "none"] = "separate"
    extra_events: bool = False
    usage_chunk: Literal["send", "never", "always", "every"] = "send"
    finish_reason: str | None = None
    finish_chunk: Literal["separate", "merged", "none"] = "separate"
    done: bool = True
    newline: Literal["lf", "crlf", "cr"] = "lf"
    data_space: bool = True
    framing: Literal["auto", "chunked", "length", "close"] = "auto"
    headers: dict[str, str] = {}
    early_hints: bool = False
    close_after: Literal["announced", "silent"] | None = None
    write_bytes: Positive | None = None
    write_pause_s: Seconds = 0.001
    # what goes wrong
    error: Error | None = None
    hang: Point | None = None
    die: Die | None = None
    error_event: ErrorEvent | None = None
    junk: Junk | None = None
    read_bytes_per_s: Annotated[float, Meta(ge=0)] | None = None
    # how often (global scripts only)
    times: Positive | None = None


Fields = dict[str, Any]


def read_script(fields: Any, base: Fields | None = None) -> Script:
    """`fields` laid over `base`. Raises ScriptError that names the field."""
    if not isinstance(fields, dict):
        raise ScriptError(f"a script is a JSON object, not {type(fields).__name__}")
    try:
        return msgspec.convert({**(base or {}), **fields}, Script)
    except msgspec.ValidationError as error:
        known = ", ".join(Script.__struct_fields__)
        hint = f"; fields: {known}" if "unknown field" in str(error) else ""
        raise ScriptError(f"bad script: {error}{hint}") from None


def script_in_text(text: str) -> Fields | None:
    """The fields of `{"fake": {...}}` at the start of a prompt, or None. Raises ScriptError when it is broken."""
    if not text.startswith('{"fake":'):
        return None
    try:
        _, end = json.JSONDecoder().raw_decode(text)
        value = msgspec.json.decode(text[:end].encode())  # unlike json's, never half of a surrogate pair
    except (ValueError, RecursionError) as error:
        raise ScriptError(f"the prompt starts with a script that is not JSON: {error}") from None
    fields = value["fake"]
    if not isinstance(fields, dict) or len(value) != 1:
        raise ScriptError('the prompt must start with {"fake": {...}} and hold no other key in that object')
    if "times" in fields:
        raise ScriptError("`times` is for POST /_fake/script: a script in a prompt applies to its own request")
    return fields


class GlobalScript(NamedTuple):
    """The fields, over which a prompt's own are laid, and the same read."""

    fields: Fields
    script: Script


class ScriptShelf:
    """The global scripts: a base that never ends (flags) and posted ones, each for `times` requests."""

    def __init__(self, base: Fields) -> None:
        self._base = GlobalScript(base, read_script(base))
        self._posted: list[tuple[GlobalScript, int | None]] = []

    def post(self, body: Any) -> None:
        """Replace the posted scripts by one object, or by a list played in order (each once unless `times`)."""
        is_list = isinstance(body, list)
        posted = []
        for fields in body if is_list else [body]:
            script = read_script(fields, self._base.fields)
            merged = {**self._base.fields, **fields}
            posted.append((GlobalScript(merged, script), script.times or (1 if is_list else None)))
        self._posted = posted

    def reset(self) -> None:
        self._posted.clear()

    def take(self) -> GlobalScript:
        """The script for the next request."""
        if not self._posted:
            return self._base
        script, times = self._posted[0]
        if times == 1:
            self._posted.pop(0)
        elif times is not None:
            self._posted[0] = (script, times - 1)
        return script
