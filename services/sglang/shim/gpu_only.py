"""Packages that exist only for GPUs, as far as `import` can tell.

SGLang imports them at the top of modules that every server loads, and calls them only on a GPU. A name taken from one
may be imported, used as a decorator, an annotation or a base class; calling or launching it raises
NotImplementedError, so that nothing is ever computed wrongly in silence.

    triton         1 GB, has no CPU backend; here because 400 files define kernels with its decorators
    sgl_kernel     SGLang's compiled kernels, CUDA builds only
    torchvision    the index has only CUDA builds, which beside a CPU torch fail to load; needed for pictures alone
"""

import enum
import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Sequence
from typing import Any

import triton_names

PACKAGES = ("triton", "sgl_kernel", "torchvision")

# Where these are missing SGLang has an answer of its own: a mock of the number formats; the kernels without Gluon.
ABSENT = ("sgl_kernel.scalar_type", "triton.experimental")

InterpolationMode = enum.Enum("InterpolationMode", "NEAREST NEAREST_EXACT BILINEAR BICUBIC BOX HAMMING LANCZOS")

NAMES: dict[str, dict[str, Any]] = {
    **triton_names.NAMES,
    "torchvision": {"__version__": "0"},
    # transformers keys a table with these while it is being imported.
    "torchvision.transforms": {"InterpolationMode": InterpolationMode},
    "torchvision.transforms.functional": {"InterpolationMode": InterpolationMode},
}


class GPUOnly:
    """One function, decorator or value of such a package."""

    def __init__(self, name: str) -> None:
        self.__name__ = self.__qualname__ = name

    def __call__(self, *args: Any, **kwargs: Any) -> "GPUOnly":
        if len(args) == 1 and not kwargs and isinstance(args[0], types.FunctionType | type | GPUOnly):
            return GPUOnly(args[0].__name__)  # a decorator: the kernel under it is one of these too
        raise self._refusal()

    def __getitem__(self, grid: Any) -> Any:
        raise self._refusal()

    def __getattr__(self, name: str) -> "GPUOnly":
        if name.startswith("__"):
            raise AttributeError(name)
        return GPUOnly(f"{self.__name__}.{name}")

    def _refusal(self) -> NotImplementedError:
        return NotImplementedError(f"{self.__name__} needs a GPU; this SGLang runs on a CPU (docs/engines/sglang.md)")


class GPUOnlyModule(types.ModuleType):
    """Every name that is asked for is there: a class when it is written like one."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        full = f"{self.__name__}.{name}"
        if full in NAMES:
            return importlib.import_module(full)
        value = type(name, (), {"__init__": GPUOnly(full)}) if name[0].isupper() else GPUOnly(full)
        setattr(self, name, value)
        return value


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Last on sys.meta_path: a package that is really installed goes before."""

    def find_spec(
        self, name: str, _path: Sequence[str] | None = None, _target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in PACKAGES or name.startswith(ABSENT):
            return None
        return importlib.machinery.ModuleSpec(name, self, origin=__file__, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return GPUOnlyModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__dict__.update(NAMES.get(module.__name__, {}))
        parent, _, child = module.__name__.rpartition(".")
        if parent in sys.modules:
            setattr(sys.modules[parent], child, module)
