"""The adapters (LoRA) of a model, and how a replica comes to have them.

Apart from the deployments because they belong to the model: every replica of every deployment has all of them
before it gets traffic, so that whoever asks for one is never answered by the base model.
"""

import asyncio
import time
from dataclasses import dataclass, field

from gateway.backends.base import LoadsAdapters
from gateway.backends.capabilities import Adapters
from gateway.core.replica import Replica
from gateway.routing.deployment import Deployment

Cards = dict[str, dict[str, object]]


@dataclass(frozen=True, slots=True)
class Adapter:
    """`path` is where the engine finds it, as the engine sees its files; `created` in Unix seconds."""

    name: str
    path: str
    created: int = field(default_factory=lambda: int(time.time()))


@dataclass(slots=True, eq=False)
class Shelf:
    """The adapters of one model by name. `changing` is held while they change, and while a replica that comes up
    is given them: what becomes ready has exactly what is here."""

    adapters: dict[str, Adapter] = field(default_factory=dict)
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)

    def is_complete(self, deployment: Deployment, models: Cards | None) -> bool:
        """Whether a replica that lists `models` has all of them; True where the engine does not load them itself, or
        lists nothing just now."""
        if not self.adapters or not models or loader_of(deployment) is None:
            return True
        return all(_has(models, adapter) for adapter in self.adapters.values())

    async def fill(self, deployment: Deployment, replica: Replica) -> None:
        """Give `replica` what it lacks. Raises PenstockError. Hold `changing`."""
        loader = loader_of(deployment)
        if loader is None or not self.adapters:
            return
        models = (await deployment.backend.probe(replica)).models or {}
        for adapter in self.adapters.values():
            await put(loader, replica, adapter, models)


def loader_of(deployment: Deployment) -> LoadsAdapters | None:
    """The deployment's backend, if its engine loads adapters while it runs."""
    backend = deployment.backend
    is_dynamic = backend.capabilities.adapters is Adapters.DYNAMIC
    return backend if is_dynamic and isinstance(backend, LoadsAdapters) else None


async def put(loader: LoadsAdapters, replica: Replica, adapter: Adapter, models: Cards) -> bool:
    """Load `adapter`, unless `models`, what the replica lists, has it; False when it had. Raises PenstockError.

    One of the same name from elsewhere (an earlier gateway's) makes way.
    """
    if _has(models, adapter):
        return False
    if adapter.name in models:
        await loader.unload_adapter(replica, adapter.name)
    await loader.load_adapter(replica, adapter.name, adapter.path)
    return True


def _has(models: Cards, adapter: Adapter) -> bool:
    """Engines list an adapter with its path as `root` (vLLM, SGLang); one that says no path is believed."""
    card = models.get(adapter.name)
    return card is not None and card.get("root", adapter.path) == adapter.path
