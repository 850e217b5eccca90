"""The contract of a policy: pure, no I/O, never given an empty list."""

from collections.abc import Sequence
from typing import Protocol

from gateway.core.call import Call
from gateway.core.replica import Replica


class Policy(Protocol):
    def pick(self, candidates: Sequence[Replica], call: Call) -> Replica:
        """One of `candidates`, all of which are ready and have a free slot."""
        ...

    def on_done(self, replica: Replica, outcome: str) -> None:
        """An attempt at `replica` ended."""
        ...
