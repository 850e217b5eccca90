"""LoRA at run time, as vLLM and SGLang have it: routes to load and unload, names in the list of models.

An adapter changes nothing in the answers. Its path must exist, as on a real engine; POST /_fake/adapters makes the
next loads slow, or fail.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from fake_engine.errors import RequestError


class Behaviour(msgspec.Struct, forbid_unknown_fields=True):
    """`load_status`, `unload_status`: what these routes answer, 200 for what is right."""

    load_status: int = 200
    unload_status: int = 200


class _Order(msgspec.Struct):
    lora_name: str
    lora_path: str = ""


@dataclass(slots=True)
class Adapters:
    """`prefix`: the folder of the two routes, None where the engine has none. Names lead to paths."""

    prefix: str | None
    loaded: dict[str, str] = field(default_factory=dict)
    behaviour: Behaviour = field(default_factory=Behaviour)

    def has_route(self, path: str) -> bool:
        return self.prefix is not None and path in (
            f"{self.prefix}/load_lora_adapter",
            f"{self.prefix}/unload_lora_adapter",
        )

    def operate(self, path: str, body: bytes) -> str:
        """Load or unload; the words of success. Raises RequestError with vLLM's words."""
        try:
            order = msgspec.json.decode(body, type=_Order)
        except (msgspec.DecodeError, RecursionError) as error:
            raise RequestError(400, f"bad request body: {error}") from None
        return self._unload(order) if path.endswith("/unload_lora_adapter") else self._load(order)

    def _load(self, order: _Order) -> str:
        name, path = order.lora_name, order.lora_path
        if self.behaviour.load_status != 200:
            raise RequestError(self.behaviour.load_status, "the adapter could not be loaded")
        if name in self.loaded:
            raise RequestError(400, f"The lora adapter '{name}' has already been loaded.", type="InvalidUserInput")
        if not Path(path).exists():
            raise RequestError(404, f"Loading lora {name} failed: No adapter found for {path}")
        self.loaded[name] = path
        return f"Success: LoRA adapter '{name}' added successfully."

    def _unload(self, order: _Order) -> str:
        name = order.lora_name
        if self.behaviour.unload_status != 200:
            raise RequestError(self.behaviour.unload_status, "the adapter could not be unloaded")
        if self.loaded.pop(name, None) is None:
            raise RequestError(404, f"The lora adapter '{name}' cannot be found.")
        return f"Success: LoRA adapter '{name}' removed successfully."

    def cards(self, parent: str) -> list[dict[str, Any]]:
        return [{"id": name, "root": path, "parent": parent} for name, path in self.loaded.items()]

    def refuse_unloaded(self, model: str, bases: tuple[str, ...]) -> None:
        """SGLang knows by the colon that an adapter is meant, and answers nothing for one it has not."""
        base, colon, name = model.partition(":")
        if self.prefix == "" and colon and base in bases and name not in self.loaded:
            raise RequestError(400, f"Got LoRA adapter that has never been loaded: {name}")

    def weights(self, model: str, bases: tuple[str, ...]) -> str:
        """Whose weights answer: an adapter's name, or `base`."""
        return model.rpartition(":")[2] if self.serves(model, bases) else "base"

    def serves(self, model: str, bases: tuple[str, ...]) -> bool:
        """vLLM takes the adapter's name; SGLang `base:adapter`."""
        if self.prefix:  # vLLM
            return model in self.loaded
        base, _, name = model.partition(":")
        return base in bases and name in self.loaded
