"""Reading one request's input tensors strictly: what is not acted on is refused by its name, never ignored."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from openvino_engine.errors import invalid, unsupported

Array = npt.NDArray[Any]
Neutral = Callable[[Array], bool]
"""Whether a value asks for nothing."""


class Tensors:
    """Inputs by name, shapes as Triton hands them over (with or without a batch dimension of 1).

    `acted`: names that are read. `neutral`: names that are not, with the values that ask for nothing. Raises ApiError.
    """

    def __init__(self, values: Mapping[str, Array], acted: frozenset[str], neutral: Mapping[str, Neutral]) -> None:
        for name, value in values.items():
            if name not in acted and not neutral.get(name, _is_empty)(value):
                raise unsupported(name, "leave it out")
        self._values = values

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def array(self, name: str) -> Array | None:
        """The raw tensor, None when absent."""
        return self._values.get(name)

    def scalar(self, name: str) -> Any:
        """Its only element as a Python value, None when absent."""
        value = self._values.get(name)
        if value is None:
            return None
        if value.size != 1:
            raise invalid(name, f"{name!r} must hold one value, not {value.size}: one prompt a request")
        return value.reshape(-1)[0].item() if value.dtype != np.object_ else value.reshape(-1)[0]

    def flag(self, name: str, default: bool = False) -> bool:
        """A boolean."""
        value = self.scalar(name)
        return default if value is None else bool(value)

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``."""
        value = self.scalar(name)
        if value is None:
            return default
        if not low <= value <= high:
            raise invalid(name, f"{name!r} must be between {low} and {high}, not {value}")
        return int(value)

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A number from ``low`` to ``high``; float32 is widened to the decimal that was meant."""
        value = self.scalar(name)
        if value is None:
            return default
        meant = float(np.format_float_positional(np.float32(value), unique=True)) if np.isfinite(value) else value
        if not low <= meant <= high:  # NaN is in no range
            raise invalid(name, f"{name!r} must be between {low:g} and {high:g}, not {value}")
        return float(meant)

    def text(self, name: str) -> str | None:
        """One string, None when absent."""
        value = self.scalar(name)
        return None if value is None else decoded(value, name)

    def texts(self, name: str) -> list[str]:
        """Strings that are not empty (an empty one is how these contracts say "none")."""
        value = self._values.get(name)
        return [] if value is None else [text for item in value.reshape(-1) if (text := decoded(item, name))]


def decoded(value: object, name: str) -> str:
    """A BYTES element as text. Raises ApiError when it is not UTF-8."""
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise invalid(name, f"{name!r} is not UTF-8 (byte {error.start})") from error


def only(*values: Any) -> Neutral:
    """Neutral when every element is one of these."""
    return lambda array: all(element in values for element in array.reshape(-1).tolist())


def _is_empty(array: Array) -> bool:
    return array.size == 0
