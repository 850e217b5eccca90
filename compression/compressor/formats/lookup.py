"""Every format by its name. The only file that names them; each is loaded when asked for."""

import difflib
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from compressor.errors import BadRecipeError
from compressor.formats.base import Format
from compressor.numbers.schemes import Scheme

FORMATS = {
    "compressed-tensors": "compressor.formats.compressed_tensors:CompressedTensors",
    "gptq": "compressor.formats.gptq:GPTQ",
    "awq": "compressor.formats.awq:AWQ",
    "modelopt": "compressor.formats.modelopt:ModelOpt",
    "dense": "compressor.formats.dense:Dense",
}


def format_named(name: str, scheme: Scheme | None = None) -> Format:
    """The format `name` for weights of `scheme`. Raises BadRecipeError for a name that is not there."""
    found: Format = _load(name)(scheme)
    return found


def format_of(config: Mapping[str, Any]) -> Format | None:
    """The format that a model's config.json says its weights are in, bound to their scheme; None for plain weights and
    for a method that is not known here. Raises BadCheckpointError for a known method's layout that is not read here."""
    quantization = config.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
    if method not in FORMATS:
        return None
    assert isinstance(quantization, Mapping)
    found: Format = _load(str(method)).of(quantization)
    return found


def _load(name: str) -> Any:
    path = FORMATS.get(name)
    if path is None:
        near = difflib.get_close_matches(name, FORMATS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise BadRecipeError(f"there is no format {name!r}{hint} They are {', '.join(FORMATS)}")
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)
