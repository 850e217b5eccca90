"""On CPU: the embedded engine. With `engine: tensorrtllm` this file is left out, the backend is a compiled one."""

from triton_models.core import CoreModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
