"""Reading a request's JSON object strictly: a wrong type, a wrong range or an unknown name is a 400 that names it."""

from collections.abc import Mapping
from typing import Any

from openvino_engine.errors import invalid, unsupported

# Known to OpenAI's or vLLM's API, not to this engine: accepted only with a value that asks for nothing.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "cache_salt": (),
    "function_call": (),
    "functions": (),
    "length_penalty": (1, 1.0),
    "logit_bias": ({},),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "priority": (0,),
    "prompt_cache_key": (),
    "prompt_logprobs": (0,),
    "reasoning_effort": ("none",),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "service_tier": ("auto", "default"),
    "spaces_between_special_tokens": (True,),
    "store": (False,),
    "suffix": ("",),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "verbosity": (),
    "web_search_options": (),
}
# Names of the end user: they change no answer, by their meaning.
_INERT = frozenset({"user", "safety_identifier"})


class Fields:
    """A request body whose every field must be known. null counts as absent, as OpenAI's clients send it."""

    def __init__(self, body: object, known: frozenset[str]) -> None:
        if not isinstance(body, dict):
            raise invalid(None, "the request body must be a JSON object", code="invalid_json")
        for name, value in body.items():
            if name in known:
                continue
            if name in _INERT:
                if value is not None and not isinstance(value, str):
                    raise invalid(name, f"{name!r} must be a string", code="invalid_type")
            elif name not in _NEUTRAL:
                raise invalid(name, f"unknown field {name!r}", code="unknown_parameter")
            elif value is not None and value not in _NEUTRAL[name]:
                raise unsupported(name, "leave it out")
        self._body = {name: value for name, value in body.items() if value is not None}

    def __contains__(self, name: str) -> bool:
        return name in self._body

    def get(self, name: str) -> Any:
        """The raw value, None when absent."""
        return self._body.get(name)

    def boolean(self, name: str, default: bool = False) -> bool:
        """true or false."""
        value = self._body.get(name, default)
        if not isinstance(value, bool):
            raise invalid(name, f"{name!r} must be true or false", code="invalid_type")
        return value

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``."""
        value = self._body.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise invalid(name, f"{name!r} must be an integer", code="invalid_type")
        if not low <= value <= high:
            raise invalid(name, f"{name!r} must be between {low} and {high}, not {value}")
        return value

    def optional_integer(self, name: str, low: int, high: int) -> int | None:
        """A whole number, or None when absent."""
        return self.integer(name, low, low, high) if name in self._body else None

    def number(self, name: str, default: float, low: float, high: float, *, above: bool = False) -> float:
        """A number from ``low`` (not itself when ``above``) to ``high``."""
        value = self._body.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise invalid(name, f"{name!r} must be a number", code="invalid_type")
        if not low <= value <= high or (above and value == low):
            raise invalid(name, f"{name!r} must be {'above' if above else 'at least'} {low:g} and at most {high:g}")
        return float(value)

    def text(self, name: str) -> str | None:
        """A string, or None when absent."""
        value = self._body.get(name)
        if value is not None and not isinstance(value, str):
            raise invalid(name, f"{name!r} must be a string", code="invalid_type")
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        """A JSON object, empty when absent."""
        value = self._body.get(name, {})
        if not isinstance(value, dict):
            raise invalid(name, f"{name!r} must be an object", code="invalid_type")
        return value

    def strings(self, name: str, *, most: int) -> tuple[str, ...]:
        """A string or a list of non-empty strings."""
        value = self._body.get(name, [])
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise invalid(name, f"{name!r} must be a string or a list of strings", code="invalid_type")
        if len(items) > most or not all(items):
            raise invalid(name, f"{name!r} must hold at most {most} strings, none empty")
        return tuple(items)

    def token_ids(self, name: str, rows: int) -> frozenset[int]:
        """A list of token ids of this model."""
        value = self._body.get(name, [])
        if not isinstance(value, list) or not all(
            isinstance(item, int) and not isinstance(item, bool) for item in value
        ):
            raise invalid(name, f"{name!r} must be a list of integers", code="invalid_type")
        if not all(0 <= item < rows for item in value):
            raise invalid(name, f"{name!r} must hold token ids from 0 to {rows - 1}")
        return frozenset(value)
