"""Model name -> deployment. An adapter's name leads to the deployments of its model."""

import random
from dataclasses import dataclass, field

from gateway.core.call import Call
from gateway.core.errors import ModelNotFound
from gateway.routing.adapters import Adapter, Shelf
from gateway.routing.deployment import Deployment


@dataclass(slots=True)
class Model:
    """What clients ask for by name. Traffic is shared between its deployments by weight."""

    name: str
    deployments: list[Deployment]
    created: int
    shelf: Shelf = field(default_factory=Shelf)

    @property
    def is_ready(self) -> bool:
        return any(deployment.candidates() for deployment in self.deployments)

    def why_not_ready(self) -> str:
        return "; ".join(deployment.why_not_ready() for deployment in self.deployments)


class Router:
    """`models` by public name, aliases included; `adapters`: the model of each adapter, by the adapter's name."""

    def __init__(self, models: dict[str, Model]) -> None:
        self.models = models
        self.adapters = {name: model for model in models.values() for name in model.shelf.adapters}

    def route(self, call: Call) -> Deployment:
        """Raises ModelNotFound; InvalidRequest when the engine would ignore a field of the call."""
        model = self.models.get(call.model)
        if model is None:
            model = self.adapters.get(call.model)
            if model is None:
                raise _not_found(call.model)
            call.adapter = call.model
        deployment = model.deployments[0] if len(model.deployments) == 1 else _choose(model.deployments)
        deployment.refuse_ignored_fields(call)
        return deployment

    def takes(self, call: Call) -> bool:
        """Every deployment that may answer has the call's endpoint itself, with all that the call asks of it."""
        model = self.models.get(call.model) or self.adapters.get(call.model)
        return model is not None and all(deployment.takes(call) for deployment in model.deployments)

    def refuse_gone(self, call: Call) -> None:
        """Raises ModelNotFound when the call's adapter was taken away while it waited."""
        if call.adapter is not None and call.adapter not in self.adapters:
            raise _not_found(call.adapter)

    def add(self, model: Model, adapter: Adapter) -> None:
        model.shelf.adapters[adapter.name] = adapter
        self.adapters[adapter.name] = model

    def remove(self, model: Model, adapter: Adapter) -> None:
        del model.shelf.adapters[adapter.name], self.adapters[adapter.name]


def _not_found(name: str) -> ModelNotFound:
    return ModelNotFound(f"The model {name[:128]!r} does not exist; GET /v1/models lists those that do.", param="model")


def _choose(deployments: list[Deployment]) -> Deployment:
    """By weight among those that can answer; all of them when none can, so that the error says why."""
    able = [d for d in deployments if d.weight > 0 and d.candidates()] or deployments
    weights = [d.weight for d in able]
    return random.choices(able, weights if any(weights) else None)[0]  # noqa: S311
