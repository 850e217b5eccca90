"""TensorRT-LLM's current Triton model (`llmapi/tensorrt_llm`): text in, text out, `sampling_param_*` tensors.

A stream's responses hold all text so far (the LLM API's `CompletionOutput.text`). There are no token counts, so the
gateway tokenizes to count, no guided decoding and no log-probabilities per token.
Source: NVIDIA/TensorRT-LLM `triton_backend/all_models/llmapi/tensorrt_llm/{config.pbtxt,1/model.py,1/helpers.py}`.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from gateway.backends.triton.contracts.base import Answering, Contract, Reader
from gateway.backends.triton.contracts.legacy import Texts, prompt_text
from gateway.backends.triton.tensors import Inputs


class LLMAPI(Contract):
    name: ClassVar[str] = "llmapi"
    names: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "temperature": ("sampling_param_temperature",),
        "top_p": ("sampling_param_top_p",),
        "top_k": ("sampling_param_top_k",),
        "seed": ("sampling_param_seed",),
        "presence_penalty": ("sampling_param_presence_penalty",),
        "frequency_penalty": ("sampling_param_frequency_penalty",),
    }

    def wanted_outputs(self) -> Sequence[str]:
        return ("text_output", "finish_reason")

    def write(self, inputs: Inputs, answering: Answering) -> None:
        inputs.put("text_input", prompt_text(answering, self.checkpoint.adds))
        inputs.put("sampling_param_max_tokens", answering.max_tokens)
        inputs.put_known("sampling_param_exclude_input_from_output", True)
        inputs.put_known("return_finish_reason", True)
        inputs.put_known("streaming", answering.stream and self.model.decoupled)
        if answering.asked.ending.strings:
            inputs.put_known("sampling_param_stop", *(stop.encode() for stop in answering.asked.ending.strings))

    def reader(self, answering: Answering) -> Reader:
        return Texts("", cumulative=answering.stream).read
