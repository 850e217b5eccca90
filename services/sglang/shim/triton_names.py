"""The names of Triton that are evaluated, on a CPU too, by modules that only define kernels.

Arithmetic is Triton's own (triton-lang.org, `triton.cdiv`, `triton.next_power_of_2`); decorators make kernels that
cannot be launched; asking for the driver fails as it does with the real Triton on a machine without a GPU.
"""

from collections.abc import Callable
from typing import Any


class Kernel:
    """What @triton.jit makes of a function."""

    def __init__(self, function: Any) -> None:
        self.fn = function
        self.__name__ = getattr(function, "__name__", "kernel")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"the Triton kernel {self.__name__} needs a GPU; this SGLang runs on a CPU")

    def __getitem__(self, grid: Any) -> Any:
        return self

    run = __call__


def jit(function: Any = None, **_options: Any) -> Any:
    """@jit and @jit(...)."""
    return Kernel if function is None else Kernel(function)


def decorating(*_args: Any, **_options: Any) -> Callable[[Any], Any]:
    """@autotune(configs=...) and @heuristics({...})."""
    return lambda kernel: kernel


class Config:
    """One candidate of @autotune."""

    def __init__(self, kwargs: dict[str, Any] | None = None, **options: Any) -> None:
        self.kwargs = kwargs or {}
        self.__dict__.update(options)


class constexpr:
    """A constant, in annotations and at the top of modules."""

    def __init__(self, value: Any = None) -> None:
        self.value = getattr(value, "value", value)


class Driver:
    """triton.runtime.driver."""

    @property
    def active(self) -> Any:
        raise RuntimeError("0 active drivers ([]): there is no GPU")


def cdiv(x: int, y: int) -> int:
    return (x + y - 1) // y


def next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length() if n > 0 else n


NAMES: dict[str, dict[str, Any]] = {
    "triton": {
        "__version__": "3.0.0",
        "jit": jit,
        "autotune": decorating,
        "heuristics": decorating,
        "Config": Config,
        "cdiv": cdiv,
        "next_power_of_2": next_power_of_2,
    },
    "triton.language": {"constexpr": constexpr},
    "triton.runtime": {"driver": Driver()},
    "triton.runtime.jit": {"JITFunction": Kernel, "constexpr_function": jit},
}
