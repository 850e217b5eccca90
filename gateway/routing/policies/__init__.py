"""Which of several candidates answers. One small file per policy; the table below is the only registry."""

from gateway.routing.policies.base import Policy
from gateway.routing.policies.least_request import LeastRequest
from gateway.routing.policies.round_robin import RoundRobin

POLICIES: dict[str, type[Policy]] = {"least_request": LeastRequest, "round_robin": RoundRobin}

__all__ = ["POLICIES", "Policy"]
