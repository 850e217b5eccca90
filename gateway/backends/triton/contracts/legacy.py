"""TensorRT-LLM's legacy text contract: `ensemble` and `tensorrt_llm_bls`, the same tensors, text in and text out.

The ensemble's stream decodes each step alone, and so does the bls model with `accumulate_tokens: false`: characters of
several tokens arrive broken and nobody can mend them. With `accumulate_tokens: true` each response holds all text so
far, of which the new part is taken here. Token counts come from the engine where it has the tensors for them.
Source: NVIDIA/TensorRT-LLM `triton_backend/all_models/inflight_batcher_llm/{ensemble,tensorrt_llm_bls}/config.pbtxt`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from gateway.backends.triton.answer import Step
from gateway.backends.triton.checkpoint import Checkpoint
from gateway.backends.triton.contracts.base import Answering, Contract, Reader
from gateway.backends.triton.contracts.core import NO_END
from gateway.backends.triton.tensors import Inputs, ModelInfo

_BROKEN = "\ufffd"


class Legacy(Contract):
    name: ClassVar[str] = "legacy text"
    names: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "temperature": ("temperature",),
        "top_p": ("top_p",),
        "top_k": ("top_k",),
        "seed": ("seed", "random_seed"),
        "repetition_penalty": ("repetition_penalty",),
        "presence_penalty": ("presence_penalty",),
        "frequency_penalty": ("frequency_penalty",),
        "min_tokens": ("min_tokens", "min_length"),
        "ignore_eos": ("end_id",),
        "bad_words": ("bad_words",),
    }

    def __init__(self, model: ModelInfo, checkpoint: Checkpoint) -> None:
        super().__init__(model, checkpoint)
        self.keeps_characters = model.parameters.get("accumulate_tokens", "").lower() in ("true", "1")

    def wanted_outputs(self) -> Sequence[str]:
        counts = "return_num_output_tokens" in self.model.inputs
        return ("text_output", "num_output_tokens") if counts else ("text_output",)

    def write(self, inputs: Inputs, answering: Answering) -> None:
        asked = answering.asked
        inputs.put("text_input", prompt_text(answering, self.checkpoint.adds))
        inputs.put("max_tokens", answering.max_tokens)
        inputs.put_known("end_id", NO_END if asked.ending.ignore_eos else self.checkpoint.end_id)
        inputs.put_known("pad_id", self.checkpoint.pad_id)
        inputs.put_known("exclude_input_in_output", True)
        inputs.put_known("return_num_output_tokens", True)
        inputs.put_known("stream", answering.stream and self.model.decoupled)
        if asked.ending.strings and not asked.ending.min_tokens:
            inputs.put_known("stop_words", *(stop.encode() for stop in asked.ending.strings))
        if asked.bad_words:
            self.put(inputs, "bad_words", *(word.encode() for word in asked.bad_words))

    def reader(self, answering: Answering) -> Reader:
        return Texts("num_output_tokens", cumulative=self.keeps_characters and answering.stream).read


class Texts:
    """Reads text responses; `cumulative`: each holds all text so far."""

    __slots__ = ("_count", "_cumulative", "_said")

    def __init__(self, count: str, *, cumulative: bool) -> None:
        self._count = count
        self._cumulative = cumulative
        self._said = 0

    def read(self, values: Mapping[str, Sequence[Any]]) -> Step:
        text = b"".join(values.get("text_output", ())[:1]).decode("utf-8", "replace")
        counted = values.get(self._count)
        if self._cumulative:
            whole = text.rstrip(_BROKEN)  # a character that the next token completes
            text, self._said = whole[self._said :], max(self._said, len(whole))
        return Step(None, text, counted[0] if counted else None, finish=finish_of(values))


def finish_of(values: Mapping[str, Sequence[Any]]) -> str | None:
    """The output of that name, where the engine has one and has said something OpenAI knows."""
    said = values.get("finish_reason")
    word = said[0].decode() if said else ""
    return word if word in ("stop", "length") else None


def prompt_text(answering: Answering, adds: str) -> bytes:
    """Without the token that the engine's own tokenizer will put before it."""
    text = answering.prompt.text
    return (text.removeprefix(adds) if adds else text).encode()
