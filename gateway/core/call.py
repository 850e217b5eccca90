"""A request on its way through the gateway, and what comes back for it.

`Call` is what the client asked; `Reply` and `Chunk` are what a backend answers; `Client` is what
serving needs of whoever asked, so that HTTP and gRPC doors stand on the same core.
"""

from enum import StrEnum
from typing import Annotated, Protocol

import msgspec

from gateway.core.errors import PenstockError


class Endpoint(StrEnum):
    """What is asked for; the value is the path below `/v1/` on every OpenAI-speaking engine."""

    CHAT = "chat/completions"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"
    RESPONSES = "responses"
    MESSAGES = "messages"
    COUNT_TOKENS = "messages/count_tokens"
    RERANK = "rerank"
    SCORE = "score"

    __hash__ = str.__hash__  # an enum's own is a Python function, and this is a key on the request path


Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""What an engine may say it has counted; anything else would spoil the metrics for good."""


class Usage(msgspec.Struct, gc=False):
    """Token counts as the engine reports them."""

    prompt_tokens: Count = 0
    completion_tokens: Count | None = 0


class Call(msgspec.Struct, gc=False, eq=False):
    """One request: parsed just enough to route it, otherwise as it came.

    `fields` maps each top-level key to its raw JSON; `body` is the client's bytes. Times are
    `time.monotonic()` seconds; `deadline_s` is set once, at admission. `adapter`: the LoRA that `model` names,
    set by the router; None for the model itself. `door`: what the client spoke where it was not `endpoint`'s own
    protocol, as metrics and the access log name it; `images`: how many image parts the prompt has, once checked;
    `is_text`: every member of every message of a long chat is a string, so there is no room for an image.
    """

    endpoint: Endpoint
    model: str
    body: bytes
    fields: dict[str, msgspec.Raw]
    stream: bool = False
    wants_usage: bool = False
    request_id: str = ""
    received_s: float = 0.0
    deadline_s: float = float("inf")
    key_name: str | None = None
    traceparent: str | None = None
    is_text: bool = False
    adapter: str | None = None
    door: str | None = None
    images: int = 0


class Reply(msgspec.Struct, gc=False):
    """A whole answer: JSON `body` ready for the client."""

    body: bytes
    usage: Usage | None = None
    finish_reasons: list[str] = []


class Chunk(msgspec.Struct, gc=False):
    """One or more complete SSE events that arrived together, at `at_s` (`time.monotonic()`).

    `contents` counts the events that carry content, reasoning or tool arguments (TTFT, ITL);
    `is_last`: it ends with `[DONE]`; `error`: the engine reported a failure inside the stream.
    """

    data: bytes
    at_s: float
    contents: int = 0
    usage: Usage | None = None
    finish_reason: str | None = None
    is_last: bool = False
    error: PenstockError | None = None


class Sink(Protocol):
    """Where a backend puts what a stream brings, the moment it arrives (docs/decisions/0003)."""

    def push(self, chunk: Chunk) -> bool:
        """Take a chunk; True when the client is behind: read no more from the engine until `drained()`.

        Raises PenstockError to end the stream.
        """
        ...

    def push_content(self, data: bytes, at_s: float) -> bool:
        """The same as `push(Chunk(data, at_s, contents=1))`, quicker: nearly every event is one of these.

        Only after a first one with content has been pushed.
        """
        ...

    @property
    def paused(self) -> bool:
        """What the last push answered, as it is now."""
        ...

    async def drained(self) -> None:
        """Wait until more can be taken. Raises PenstockError when that takes too long."""


class Client(Protocol):
    """Whoever asked. Writes never block."""

    @property
    def started(self) -> bool:
        """Something has been said that cannot be taken back."""
        ...

    @property
    def paused(self) -> bool:
        """More has been sent than the client has taken: await `drained()`."""
        ...

    def reply(self, reply: Reply) -> None:
        """Answer with a whole body."""

    def open_stream(self, first: bytes) -> None:
        """Commit to a stream; `first` leaves together with the head."""

    def send(self, data: bytes) -> None:
        """Relay complete events."""

    async def drained(self) -> None:
        """Wait until the client has taken what was sent."""

    def close_stream(self, last: bytes = b"") -> None:
        """End the stream cleanly."""

    def fail(self, error: PenstockError) -> None:
        """Before a stream is open: an error answer. After: one error event, then the end."""
