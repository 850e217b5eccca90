"""Small changes to PyTorch, made the moment its modules have been imported.

- Pinned memory is for copies to a GPU. SGLang's LoRA code asks for it unconditionally, and PyTorch then raises
  "pin_memory=True requires a CUDA or other accelerator backend". Ordinary memory serves.
- torch.compile asks whether Triton can be imported and would build on gpu_only.py's answer.
"""

import functools
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

MAKERS = ("empty", "zeros", "ones", "full", "tensor", "arange", "empty_like", "zeros_like")


def never_pin(torch: Any) -> None:
    for name in MAKERS:
        setattr(torch, name, _unpinned(getattr(torch, name)))
    torch.Tensor.pin_memory = lambda self, *_: self


def _unpinned(make: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(make)
    def unpinned(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("pin_memory", None)
        return make(*args, **kwargs)

    return unpinned


def there_is_no_triton(torch_triton: Any) -> None:
    torch_triton.has_triton_package = functools.cache(lambda: False)


CHANGES: dict[str, Callable[[Any], None]] = {"torch": never_pin, "torch.utils._triton": there_is_no_triton}


class Finder(importlib.abc.MetaPathFinder):
    """First on sys.meta_path: finds what the others find, and adds the change to what its loader does."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in CHANGES:
            return None
        others = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in others if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        execute, loader = spec.loader.exec_module, spec.loader

        def execute_and_change(module: types.ModuleType) -> None:
            execute(module)
            CHANGES[name](module)

        loader.exec_module = execute_and_change  # type: ignore[method-assign]
        return spec
