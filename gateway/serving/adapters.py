"""Adapters (LoRA) while the gateway runs: loaded on every replica of a model, or on none.

Apart from serve.py, which only reads the result: the router's table. A change is made at the engines first and
shown to clients last (loading), or hidden from clients first and made at the engines last (unloading).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from gateway.core.errors import Conflict, InvalidRequest, ModelNotFound, PenstockError, Unavailable, UpstreamError
from gateway.core.replica import Replica
from gateway.routing.adapters import Adapter, loader_of, put
from gateway.routing.deployment import Deployment
from gateway.routing.router import Model, Router

log = logging.getLogger("penstock.adapters")


@dataclass(frozen=True, slots=True)
class Place:
    """A replica where an adapter is to be, or not to be."""

    deployment: Deployment
    replica: Replica

    @property
    def name(self) -> str:
        return f"{self.deployment.name}/{self.replica.name}"


class Adapters:
    """Changes the adapters of running models, one change at a time."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._one_at_a_time = asyncio.Lock()

    def all(self) -> list[tuple[Model, Adapter]]:
        return [(model, model.shelf.adapters[name]) for name, model in self._router.adapters.items()]

    async def add(self, name: str, model_name: str, path: str) -> tuple[Model, Adapter, bool]:
        """Load it on every ready replica of the model; those that come up later get it before they are ready.

        The last value: it is new (False: exactly this one was there). Raises ModelNotFound, Conflict for a name that
        is taken, InvalidRequest when an engine cannot load adapters or refuses this one, Unavailable when no
        replica is ready, UpstreamError. After an error no replica has it.
        """
        async with self._one_at_a_time:
            model = self._router.models.get(model_name)
            if model is None:
                raise ModelNotFound(f"There is no model {model_name[:128]!r} to adapt.", param="model")
            known = model.shelf.adapters.get(name)
            if known is not None and known.path == path:
                return model, known, False
            self._refuse_taken(name)
            _refuse_unable(model)
            adapter = Adapter(name, path)
            async with model.shelf.changing:
                await _load_everywhere(model, adapter)
                self._router.add(model, adapter)
            log.info("adapter %s of %s is loaded from %s", name, model.name, path)
            return model, adapter, True

    async def remove(self, name: str) -> None:
        """Unload it on every ready replica. No request is waited for: new ones are told that it does not exist, running
        ones end with it. Raises ModelNotFound, UpstreamError: then it is everywhere again."""
        async with self._one_at_a_time:
            model = self._router.adapters.get(name)
            if model is None:
                raise ModelNotFound(f"There is no adapter {name[:128]!r}.", param="name")
            adapter = model.shelf.adapters[name]
            async with model.shelf.changing:
                self._router.remove(model, adapter)
                try:
                    await _unload_everywhere(model, adapter)
                except PenstockError:
                    self._router.add(model, adapter)
                    raise
            log.info("adapter %s of %s is unloaded", name, model.name)

    def _refuse_taken(self, name: str) -> None:
        if name in self._router.models:
            raise Conflict(f"{name!r} is the name of a model.", param="name")
        if name in self._router.adapters:
            model = self._router.adapters[name]
            path = model.shelf.adapters[name].path
            raise Conflict(
                f"{name!r} is an adapter of {model.name!r} already, loaded from {path!r}; delete it first.",
                param="name",
            )


def _refuse_unable(model: Model) -> None:
    for deployment in model.deployments:
        if loader_of(deployment) is None:
            raise InvalidRequest(
                f"{model.name!r} cannot have adapters loaded at run time: the engine of its deployment "
                f"{deployment.name!r} ({deployment.backend.kind}) loads adapters: "
                f"{deployment.backend.capabilities.adapters}.",
                param="model", code="adapters_unsupported",
            )  # fmt: skip


async def _load_everywhere(model: Model, adapter: Adapter) -> None:
    places = _ready(model)
    if not places:
        whys = "; ".join(f"{deployment.name}: {deployment.why_not_ready()}" for deployment in model.deployments)
        raise Unavailable(f"No replica of {model.name!r} is ready to load it: {whys}.")
    had: list[Place] = []

    async def load(place: Place) -> None:
        loader = loader_of(place.deployment)
        assert loader is not None  # _refuse_unable looked
        probe = await place.deployment.backend.probe(place.replica)
        if not await put(loader, place.replica, adapter, probe.models or {}):
            had.append(place)

    failures = await _on_each(places, load)
    if failures:
        loaded = [place for place in places if place not in failures and place not in had]
        stuck = await _on_each(loaded, lambda place: _unload(place, adapter))
        raise _failed("loaded", adapter, failures, stuck)


async def _unload_everywhere(model: Model, adapter: Adapter) -> None:
    places = _ready(model)
    failures = await _on_each(places, lambda place: _unload(place, adapter))
    if failures:
        unloaded = [place for place in places if place not in failures]
        stuck = await _on_each(unloaded, lambda place: _load(place, adapter))
        raise _failed("unloaded", adapter, failures, stuck)


def _ready(model: Model) -> list[Place]:
    return [Place(deployment, replica) for deployment in model.deployments for replica in deployment.ready]


async def _load(place: Place, adapter: Adapter) -> None:
    if (loader := loader_of(place.deployment)) is not None:
        await loader.load_adapter(place.replica, adapter.name, adapter.path)


async def _unload(place: Place, adapter: Adapter) -> None:
    if (loader := loader_of(place.deployment)) is not None:
        await loader.unload_adapter(place.replica, adapter.name)


async def _on_each(places: Iterable[Place], act: Callable[[Place], Awaitable[None]]) -> dict[Place, PenstockError]:
    """What failed, where. All are tried, at once."""

    async def attempt(place: Place) -> PenstockError | None:
        try:
            await act(place)
        except PenstockError as error:
            return error
        return None

    places = list(places)
    errors = await asyncio.gather(*map(attempt, places))
    return {place: error for place, error in zip(places, errors, strict=True) if error is not None}


def _failed(
    done: str, adapter: Adapter, failures: dict[Place, PenstockError], stuck: dict[Place, PenstockError]
) -> PenstockError:
    """One error for all: the client's when every engine that failed says so, else the engines'."""
    message = f"The adapter {adapter.name!r} could not be {done} on {_whys(failures)}."
    message += f" Undoing it failed on {_whys(stuck)}." if stuck else " The other replicas are as they were."
    log.warning("%s", message)
    if all(error.status < 500 for error in failures.values()):
        return InvalidRequest(message, code="adapter_refused")
    return UpstreamError(message)


def _whys(errors: dict[Place, PenstockError]) -> str:
    return "; ".join(f"{place.name}: {error.message.rstrip('.')}" for place, error in errors.items())
