"""The contract of a backend: how the gateway speaks to one kind of engine."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from gateway.backends.capabilities import Capabilities
from gateway.core.call import Call, Endpoint, Reply, Sink
from gateway.core.replica import Probe, Replica


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a replica may take, in seconds: to be connected, to its first token, between tokens."""

    connect_timeout_s: float = 5.0
    first_token_timeout_s: float = 120.0
    idle_timeout_s: float = 60.0
    probe_timeout_s: float = 5.0
    adapter_timeout_s: float = 120.0


class Backend(Protocol):
    """One per deployment. Raises PenstockError subclasses only; `retryable` ones leave the client untouched."""

    kind: ClassVar[str]
    fields: ClassVar[Mapping[Endpoint, frozenset[str]]]
    """Request fields this engine acts on, per endpoint it offers."""
    capabilities: ClassVar[Capabilities]

    async def complete(self, replica: Replica, call: Call) -> Reply:
        """A whole answer."""
        ...

    async def stream(self, replica: Replica, call: Call, sink: Sink) -> None:
        """Push events as they arrive, return after the last. Cancelled, it closes the upstream call: the
        engine aborts."""
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


@runtime_checkable
class LoadsAdapters(Protocol):
    """What a backend with `capabilities.adapters` DYNAMIC has besides: LoRA while the engine runs."""

    async def load_adapter(self, replica: Replica, name: str, path: str) -> None:
        """Returns when a request may ask for `name`. Raises PenstockError in the engine's words."""
        ...

    async def unload_adapter(self, replica: Replica, name: str) -> None:
        """Returns when no new request can have it; one that is not there is no error. Raises PenstockError."""
        ...
