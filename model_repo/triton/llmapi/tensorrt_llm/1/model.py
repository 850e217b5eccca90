"""On CPU: the embedded engine. With `engine.kind: llmapi` TensorRT-LLM's own model.py takes this file's place."""

from triton_models.llmapi import LlmApiModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
