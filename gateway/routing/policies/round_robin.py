"""One after the other, whatever they are doing: for engines that balance by themselves, and as a yardstick."""

from collections.abc import Sequence

from gateway.core.call import Call
from gateway.core.replica import Replica


class RoundRobin:
    def __init__(self) -> None:
        self._turn = -1

    def pick(self, candidates: Sequence[Replica], call: Call) -> Replica:  # noqa: ARG002
        self._turn += 1
        return candidates[self._turn % len(candidates)]

    def on_done(self, replica: Replica, outcome: str) -> None:
        pass
