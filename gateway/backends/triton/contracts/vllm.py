"""vLLM inside Triton (vllm_backend): text in, text out, the sampling parameters as one JSON text.

Always decoupled; a stream's responses hold what is new.
Source: triton-inference-server/vllm_backend `src/model.py`.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import msgspec

from gateway.backends.triton.contracts.base import Answering, Contract, Reader
from gateway.backends.triton.contracts.legacy import Texts, prompt_text
from gateway.backends.triton.tensors import Inputs

_IN_JSON = ("sampling_parameters",)


class VLLMOnTriton(Contract):
    name: ClassVar[str] = "vLLM"
    names: ClassVar[Mapping[str, tuple[str, ...]]] = dict.fromkeys(
        ("temperature", "top_p", "top_k", "seed", "repetition_penalty", "presence_penalty", "frequency_penalty",
         "min_tokens", "ignore_eos", "stop_token_ids", "skip_special_tokens"), _IN_JSON,
    )  # fmt: skip
    end_is_counted: ClassVar[bool] = True

    def wanted_outputs(self) -> Sequence[str]:
        return ("text_output", "finish_reason", "num_output_tokens")

    def write(self, inputs: Inputs, answering: Answering) -> None:
        asked = answering.asked
        inputs.put("text_input", prompt_text(answering, self.checkpoint.adds))
        inputs.put_known("stream", answering.stream)
        inputs.put_known("exclude_input_in_output", True)
        inputs.put_known("return_finish_reason", True)
        inputs.put_known("return_num_output_tokens", True)
        sampling, ending = asked.sampling, asked.ending
        wanted = {
            "max_tokens": answering.max_tokens,
            "temperature": 0 if sampling.is_greedy else sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "seed": None if sampling.seed is None else sampling.seed + answering.number,
            "repetition_penalty": sampling.repetition_penalty,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "min_tokens": ending.min_tokens,
            "ignore_eos": ending.ignore_eos,
            "stop": list(ending.strings),
            "stop_token_ids": sorted(ending.ids),
            "include_stop_str_in_output": True,  # the gateway looks for it and cuts
            "skip_special_tokens": asked.skip_special_tokens,
        }
        inputs.put("sampling_parameters", msgspec.json.encode({k: v for k, v in wanted.items() if v is not None}))

    def sample(self, inputs: Inputs, answering: Answering) -> None:
        """All in the JSON."""

    def reader(self, answering: Answering) -> Reader:  # noqa: ARG002
        return Texts("num_output_tokens", cumulative=False).read
