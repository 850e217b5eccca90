"""FasterTransformer's model (archived in 2023): unsigned token ids, and answers that begin with the prompt.

`output_ids` is padded with the end token to the longest answer; `sequence_length` counts prompt and answer. Builds with
decoupled responses send all tokens so far each time. docs/engines/triton.md says how to move to TensorRT-LLM.
Source: triton-inference-server/fastertransformer_backend `all_models/gpt/fastertransformer/config.pbtxt`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from gateway.backends.triton.answer import Step
from gateway.backends.triton.contracts.base import Answering, Contract, Reader, stop_words, word_list
from gateway.backends.triton.tensors import Inputs


class FasterTransformer(Contract):
    name: ClassVar[str] = "FasterTransformer"
    names: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "temperature": ("temperature",),
        "top_p": ("runtime_top_p",),
        "top_k": ("runtime_top_k",),
        "seed": ("random_seed",),
        "repetition_penalty": ("repetition_penalty",),
        "presence_penalty": ("presence_penalty",),
        "min_tokens": ("min_length",),
    }
    speaks_ids: ClassVar[bool] = True
    gateway_fields: ClassVar[frozenset[str]] = frozenset({"stop_token_ids", "skip_special_tokens"})

    def wanted_outputs(self) -> Sequence[str]:
        return ("output_ids", "sequence_length")

    def write(self, inputs: Inputs, answering: Answering) -> None:
        ids, checkpoint = answering.prompt.ids, self.checkpoint
        inputs.put("input_ids", *ids)
        inputs.put("input_lengths", len(ids))
        inputs.put("request_output_len", answering.max_tokens)
        inputs.put_known("end_id", checkpoint.end_id)
        words = stop_words(answering.asked, checkpoint)
        if words and answering.has_matrices and "stop_words_list" in self.model.inputs:
            values, width = word_list(words)
            inputs.put("stop_words_list", *values, width=width)

    def reader(self, answering: Answering) -> Reader:
        return _Growing(answering.prompt.ids).read


class _Growing:
    """The new tokens of responses that each hold everything so far."""

    __slots__ = ("_known", "_prompt")

    def __init__(self, prompt: list[int]) -> None:
        self._prompt = prompt
        self._known = len(prompt)

    def read(self, values: Mapping[str, Sequence[Any]]) -> Step:
        ids = list(values.get("output_ids", ()))
        length = values.get("sequence_length")
        if length:
            ids = ids[: length[0]]
        if ids[: len(self._prompt)] != self._prompt:
            return Step(ids)  # a build that sends what is new
        new, self._known = ids[self._known :], max(self._known, len(ids))
        return Step(new)
