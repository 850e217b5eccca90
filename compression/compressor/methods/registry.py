"""Every method by its name. The only file that names them: a new method is one line here.

Loaded when asked for, so that listing recipes does not import what only one of them needs.
"""

import difflib
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from pydantic import ValidationError

from compressor.errors import BadRecipeError
from compressor.methods.base import BlockMethod, Method, ModelMethod
from compressor.recipe import Step, explain

METHODS = {
    "rtn": "compressor.methods.rtn:RoundToNearest",
    "gptq": "compressor.methods.gptq:GPTQ",
    "awq": "compressor.methods.awq:AWQ",
    "smoothquant": "compressor.methods.smoothquant:SmoothQuant",
    "spqr": "compressor.methods.spqr:SpQR",
    "fp8": "compressor.methods.fp8:FP8",
    "nvfp4": "compressor.methods.nvfp4:NVFP4",
    "mxfp4": "compressor.methods.mxfp4:MXFP4",
    "fp6": "compressor.methods.fp6:FP6",
    "kv-cache": "compressor.methods.kv_cache:KVCache",
    "magnitude": "compressor.methods.magnitude:Magnitude",
    "wanda": "compressor.methods.wanda:Wanda",
    "sparsegpt": "compressor.methods.sparsegpt:SparseGPT",
    "low-rank": "compressor.methods.low_rank:LowRank",
    "lorc": "compressor.methods.lorc:LoRC",
    "llm-pruner": "compressor.methods.llm_pruner.method:LLMPruner",
    "slicegpt": "compressor.methods.slicegpt.method:SliceGPT",
    "gqa": "compressor.methods.gqa:GQA",
}


def method_class(name: str) -> Any:
    """Raises BadRecipeError for a name that is not there."""
    path = METHODS.get(name)
    if path is None:
        near = difflib.get_close_matches(name, METHODS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise BadRecipeError(f"there is no method {name!r}{hint} They are {', '.join(METHODS)}")
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)


def build(steps: Sequence[Step], where: str) -> list[Method]:
    """The methods of a recipe. Raises BadRecipeError with the path of what is wrong in it."""
    methods: list[Method] = []
    for number, step in enumerate(steps):
        try:
            kind = method_class(step.method)
        except BadRecipeError as error:
            raise BadRecipeError(f"{where}: steps.{number}.method: {error}") from None
        prefix = f"steps.{number}.params."
        try:
            methods.append(kind(kind.Params.model_validate(step.params)))
        except ValidationError as error:
            lines = explain(error, kind.Params, prefix)
            raise BadRecipeError("\n".join(f"{where}: {line}" for line in lines)) from None
    return methods


def is_block_method(method: Method) -> bool:
    """Whether it works on one block at a time."""
    return hasattr(method, "apply")


def stages(methods: Sequence[Method]) -> list[list[BlockMethod] | ModelMethod]:
    """Successive block methods are one stage, each whole-model method is one of its own."""
    found: list[Any] = []
    for method in methods:
        if not is_block_method(method):
            found.append(method)
        elif found and isinstance(found[-1], list):
            found[-1].append(method)
        else:
            found.append([method])
    return found
