"""The only place that names concrete backends. Others plug in through the entry-point group
`penstock.backends`: a name and a class that takes `Patience` and the checkpoint's folder (or None) and keeps
the contract of base.py."""

from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from gateway.backends.base import Backend, Patience

BUILT_IN = {
    "lightllm": "lightllm:LightLLM",
    "mnn": "mnn:MNN",
    "openai": "openai_http:OpenAIHTTP",
    "openvino": "openvino:OpenVINO",
    "sglang": "sglang:SGLang",
    "triton": "triton.backend:Triton",
    "trtllm": "trtllm:TRTLLM",
    "vllm": "vllm:VLLM",
}
"""Loaded when first asked for: who has no Triton need not hold gRPC, tokenizers and templates in memory."""


def engine_kinds() -> list[str]:
    """Names a deployment's `engine` may have."""
    return sorted({*BUILT_IN, *(ep.name for ep in entry_points(group="penstock.backends"))})


def backend_class(kind: str) -> type[Backend]:
    """Raises LookupError when no backend has that name."""
    found: type[Backend]
    if kind in BUILT_IN:
        module, _, name = BUILT_IN[kind].partition(":")
        found = getattr(import_module(f"gateway.backends.{module}"), name)
        return found
    for entry_point in entry_points(group="penstock.backends", name=kind):
        found = entry_point.load()
        return found
    raise LookupError(f"no backend for engine {kind!r}; there are: {', '.join(engine_kinds())}")


def make_backend(kind: str, patience: Patience, checkpoint: Path | None = None) -> Backend:
    """Raises LookupError when no backend has that name."""
    make: Any = backend_class(kind)
    backend: Backend = make(patience, checkpoint)
    return backend
