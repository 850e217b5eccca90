"""A replica: one running engine with a URL, and what the gateway knows of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum


class ReplicaState(StrEnum):
    UNKNOWN = "unknown"  # not probed yet
    DOWN = "down"  # probe or connection failed
    WARMING = "warming"  # answers its probe, has not generated a token yet
    READY = "ready"


@dataclass(slots=True, eq=False)
class Replica:
    """`url` has no trailing slash; `served_model` is the name the engine knows the model by.

    `in_flight` counts attempts that hold a slot; `reason` says in one line why it is not ready; `freed` is called
    when a slot becomes free that no attempt held.
    """

    name: str
    url: str
    served_model: str
    max_in_flight: int
    api_key: str | None = None
    state: ReplicaState = ReplicaState.UNKNOWN
    reason: str = "not probed yet"
    in_flight: int = 0
    model_card: dict[str, object] = field(default_factory=dict)
    freed: Callable[[], None] = lambda: None

    @property
    def is_ready(self) -> bool:
        return self.state is ReplicaState.READY

    def occupy(self) -> None:
        """The engine still works on something nobody waits for: the slot stays taken until `vacate()`."""
        self.in_flight += 1

    def vacate(self) -> None:
        self.in_flight -= 1
        self.freed()


@dataclass(slots=True)
class Probe:
    """What a cheap look at a replica told: `reason` when it is not up; `models` by served name."""

    up: bool
    reason: str = ""
    models: dict[str, dict[str, object]] | None = None
