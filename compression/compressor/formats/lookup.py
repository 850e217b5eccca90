"""Every format by its name, loaded when asked for. The only file that names them: a new format is one line here."""

from importlib import import_module
from typing import Any

from compressor.errors import BadRecipeError
from compressor.formats.base import Format

FORMATS = {
    "dense": "compressor.formats.dense:Dense",
}


def format_named(name: str) -> Format:
    """Raises BadRecipeError for a name that is not there."""
    path = FORMATS.get(name)
    if path is None:
        raise BadRecipeError(f"there is no format {name!r}; they are {', '.join(FORMATS)}")
    module, _, attribute = path.partition(":")
    found: Format = getattr(import_module(module), attribute)()
    return found


def format_of(config: dict[str, Any]) -> Format | None:
    """The format that a checkpoint's config.json names in its `quantization_config`; None when its weights are plain."""
    named = (config.get("quantization_config") or {}).get("quant_method")
    return format_named(str(named)) if named in FORMATS else None
