"""The only place that names concrete backends. Others plug in through the entry-point group
`penstock.backends`: a name and a class that takes `Patience` and the checkpoint's folder (or None) and keeps
the contract of base.py."""

from importlib.metadata import entry_points
from pathlib import Path

from gateway.backends.base import Backend
from gateway.backends.lightllm import LightLLM
from gateway.backends.mnn import MNN
from gateway.backends.openai_http import OpenAIHTTP, Patience
from gateway.backends.openvino import OpenVINO
from gateway.backends.sglang import SGLang
from gateway.backends.triton.backend import Triton
from gateway.backends.trtllm import TRTLLM
from gateway.backends.vllm import VLLM

BUILT_IN: dict[str, type[OpenAIHTTP] | type[Triton]] = {
    cls.kind: cls for cls in (OpenAIHTTP, VLLM, OpenVINO, SGLang, TRTLLM, LightLLM, MNN, Triton)
}


def engine_kinds() -> list[str]:
    """Names a deployment's `engine` may have."""
    return sorted({*BUILT_IN, *(ep.name for ep in entry_points(group="penstock.backends"))})


def backend_class(kind: str) -> type[Backend]:
    """Raises LookupError when no backend has that name."""
    if kind in BUILT_IN:
        return BUILT_IN[kind]
    for entry_point in entry_points(group="penstock.backends", name=kind):
        found: type[Backend] = entry_point.load()
        return found
    raise LookupError(f"no backend for engine {kind!r}; there are: {', '.join(engine_kinds())}")


def make_backend(kind: str, patience: Patience, checkpoint: Path | None = None) -> Backend:
    """Raises LookupError when no backend has that name."""
    if kind in BUILT_IN:
        return BUILT_IN[kind](patience, checkpoint)
    for entry_point in entry_points(group="penstock.backends", name=kind):
        backend: Backend = entry_point.load()(patience, checkpoint)
        return backend
    raise LookupError(f"no backend for engine {kind!r}; there are: {', '.join(engine_kinds())}")
