"""Model name -> deployment."""

import random
from dataclasses import dataclass

from gateway.core.call import Call
from gateway.core.errors import ModelNotFound
from gateway.routing.deployment import Deployment


@dataclass(slots=True)
class Model:
    """What clients ask for by name. Traffic is shared between its deployments by weight."""

    name: str
    deployments: list[Deployment]
    created: int

    @property
    def is_ready(self) -> bool:
        return any(deployment.candidates() for deployment in self.deployments)


class Router:
    """`models` by public name, aliases included."""

    def __init__(self, models: dict[str, Model]) -> None:
        self.models = models

    def route(self, call: Call) -> Deployment:
        """Raises ModelNotFound; InvalidRequest when the engine would ignore a field of the call."""
        model = self.models.get(call.model)
        if model is None:
            raise ModelNotFound(
                f"The model {call.model[:128]!r} does not exist; GET /v1/models lists those that do.", param="model"
            )
        deployment = model.deployments[0] if len(model.deployments) == 1 else _choose(model.deployments)
        deployment.refuse_ignored_fields(call)
        return deployment


def _choose(deployments: list[Deployment]) -> Deployment:
    """By weight among those that can answer; all of them when none can, so that the error says why."""
    able = [d for d in deployments if d.weight > 0 and d.candidates()] or deployments
    weights = [d.weight for d in able]
    return random.choices(able, weights if any(weights) else None)[0]  # noqa: S311
