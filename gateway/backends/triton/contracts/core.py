"""The core model of TensorRT-LLM's legacy layout (`inflight_batcher_llm/tensorrt_llm`): token ids in, token ids out.

The best of the contracts: the gateway tokenizes and detokenizes, so that no character breaks, stops are exact, and
tokens have their log-probabilities. Scalars are [1], ids [n], word lists [2, n], a batch dimension before them.
Source: NVIDIA/TensorRT-LLM `triton_backend/all_models/inflight_batcher_llm/tensorrt_llm/config.pbtxt`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from gateway.backends.triton.answer import Step
from gateway.backends.triton.contracts.base import Answering, Contract, Reader, stop_words, word_list
from gateway.backends.triton.tensors import Inputs

NO_END = -1


class Core(Contract):
    name: ClassVar[str] = "core ids"
    names: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "temperature": ("temperature",),
        "top_p": ("runtime_top_p",),
        "top_k": ("runtime_top_k",),
        "seed": ("seed", "random_seed"),
        "repetition_penalty": ("repetition_penalty",),
        "presence_penalty": ("presence_penalty",),
        "frequency_penalty": ("frequency_penalty",),
        "min_tokens": ("min_tokens", "min_length"),
        "ignore_eos": ("end_id",),
        "bad_words": ("bad_words_list",),
        "logprobs": ("return_log_probs",),
    }
    speaks_ids: ClassVar[bool] = True
    gateway_fields: ClassVar[frozenset[str]] = frozenset({"stop_token_ids", "skip_special_tokens"})

    def wanted_outputs(self) -> Sequence[str]:
        return ("output_ids", "sequence_length", "output_log_probs")

    def write(self, inputs: Inputs, answering: Answering) -> None:
        asked, ids = answering.asked, answering.prompt.ids
        inputs.put("input_ids", *ids)
        inputs.put("input_lengths", len(ids))
        inputs.put("request_output_len", answering.max_tokens)
        inputs.put_known("end_id", NO_END if asked.ending.ignore_eos else self.checkpoint.end_id)
        inputs.put_known("pad_id", self.checkpoint.pad_id)
        inputs.put_known("exclude_input_in_output", True)
        inputs.put_known("streaming", answering.stream and self.model.decoupled)
        if asked.logprobs:
            self.put(inputs, "logprobs", True)
        encode = self.checkpoint.tokens.encode
        stops = stop_words(asked, self.checkpoint) if answering.has_matrices else []
        for name, words in (
            ("stop_words_list", stops),
            ("bad_words_list", [encode(word) for word in asked.bad_words]),
        ):
            if words and name in self.model.inputs:
                values, width = word_list(words)
                inputs.put(name, *values, width=width)

    def reader(self, answering: Answering) -> Reader:  # noqa: ARG002
        return read_ids


def read_ids(values: Mapping[str, Sequence[Any]]) -> Step:
    """One response's new tokens: whole, or the next of a stream."""
    ids: Sequence[int] = values.get("output_ids", ())
    length = values.get("sequence_length")
    if length and length[0] < len(ids):
        ids = ids[: length[0]]
    logprobs = values.get("output_log_probs", ())
    return Step(ids, logprobs=logprobs[-len(ids) :] if ids and len(logprobs) >= len(ids) else ())
