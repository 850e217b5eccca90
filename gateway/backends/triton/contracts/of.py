"""Which contract a model has, told by the inputs that its metadata lists: model names say nothing certain."""

from gateway.backends.triton.checkpoint import Checkpoint
from gateway.backends.triton.contracts.base import Contract
from gateway.backends.triton.contracts.core import Core
from gateway.backends.triton.contracts.fastertransformer import FasterTransformer
from gateway.backends.triton.contracts.legacy import Legacy
from gateway.backends.triton.contracts.llmapi import LLMAPI
from gateway.backends.triton.contracts.vllm import VLLMOnTriton
from gateway.backends.triton.tensors import ModelInfo

KINDS: tuple[type[Contract], ...] = (Core, Legacy, LLMAPI, FasterTransformer, VLLMOnTriton)


class UnknownContract(Exception):
    """The model is none of those that the gateway can speak to."""


def contract_of(model: ModelInfo, checkpoint: Checkpoint) -> Contract:
    """Raises UnknownContract naming what was looked for."""
    inputs = model.inputs
    kind: type[Contract]
    if {"input_ids", "input_lengths", "request_output_len"} <= inputs.keys():
        kind = FasterTransformer if inputs["input_ids"].datatype == "UINT32" else Core
    elif {"text_input", "sampling_param_max_tokens"} <= inputs.keys():
        kind = LLMAPI
    elif {"text_input", "sampling_parameters"} <= inputs.keys():
        kind = VLLMOnTriton
    elif {"text_input", "max_tokens"} <= inputs.keys():
        kind = Legacy
    else:
        raise UnknownContract(_why(model, ", ".join(sorted(inputs)[:8]) or "none"))
    answer = "output_ids" if "input_ids" in inputs else "text_output"
    if answer not in model.outputs:
        raise UnknownContract(f"model {model.name!r} looks like {kind.name} but has no output {answer!r}")
    return kind(model, checkpoint)


def _why(model: ModelInfo, inputs: str) -> str:
    return f"model {model.name!r} has no tensor contract that is known (its inputs: {inputs}); there are: " + ", ".join(
        kind.name for kind in KINDS
    )
