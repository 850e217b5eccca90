"""The replica with the fewest attempts in flight; ties go around, so equals share the load."""

from collections.abc import Sequence

from gateway.core.call import Call
from gateway.core.replica import Replica


class LeastRequest:
    def __init__(self) -> None:
        self._turn = 0

    def pick(self, candidates: Sequence[Replica], call: Call) -> Replica:  # noqa: ARG002
        if len(candidates) == 1:
            return candidates[0]
        self._turn += 1
        start = self._turn % len(candidates)
        rotated = [*candidates[start:], *candidates[:start]]
        return min(rotated, key=lambda replica: replica.in_flight / replica.max_in_flight)

    def on_done(self, replica: Replica, outcome: str) -> None:
        pass
