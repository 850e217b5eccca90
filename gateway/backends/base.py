"""The contract of a backend: how the gateway speaks to one kind of engine."""

from collections.abc import AsyncGenerator, Mapping
from typing import ClassVar, Protocol

from gateway.core.call import Call, Chunk, Endpoint, Reply
from gateway.core.replica import Probe, Replica


class Backend(Protocol):
    """One per deployment. Raises PenstockError subclasses only; `retryable` ones leave the client untouched."""

    kind: ClassVar[str]
    fields: ClassVar[Mapping[Endpoint, frozenset[str]]]
    """Request fields this engine acts on, per endpoint it offers."""

    async def complete(self, replica: Replica, call: Call) -> Reply:
        """A whole answer."""
        ...

    def stream(self, replica: Replica, call: Call) -> AsyncGenerator[Chunk, None]:
        """Events as they arrive. Closing the generator closes the upstream call, and the engine aborts."""
        ...

    async def probe(self, replica: Replica) -> Probe:
        """A cheap look: is it up, which models has it."""
        ...

    async def warm_up(self, replica: Replica, endpoint: Endpoint) -> None:
        """One real token (or vector); raises PenstockError when none came."""
        ...

    async def aclose(self) -> None:
        """Close every connection."""
        ...
