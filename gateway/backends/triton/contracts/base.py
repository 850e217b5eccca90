"""What a contract does: a request in OpenAI's words becomes tensors, a response's tensors become a step of an answer.

Sampling is explicit, because the defaults differ: TensorRT-LLM decodes greedily when told nothing, and its unset seed
is 0, which would give everybody the same answer.
"""

import json
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from gateway.backends.constraint import Constraint, ConstraintKind
from gateway.backends.triton.answer import Step
from gateway.backends.triton.asked import Asked, unsupported
from gateway.backends.triton.checkpoint import Checkpoint
from gateway.backends.triton.prompts import Prompt
from gateway.backends.triton.tensors import Inputs, ModelInfo, Tensor

Reader = Callable[[Mapping[str, Sequence[Any]]], Step]
"""Reads the responses to one request, in order."""
GUIDE_TYPE, GUIDE = "guided_decoding_guide_type", "guided_decoding_guide"
_REGEX_SIGNS = re.compile(r"([\\^$.|?*+()\[\]{}])")


class Answering(msgspec.Struct, frozen=True):
    """One answer that is asked of a model. `number`: which of the `n` to the same prompt; `has_matrices`: the wire."""

    asked: Asked
    prompt: Prompt
    max_tokens: int
    number: int = 0
    stream: bool = True
    has_matrices: bool = True


class Contract(ABC):
    """`names`: request field -> input tensors that may carry it, newest name first; `gateway_fields`: done here.

    A field is offered when the model's metadata lists one of its tensors.
    """

    name: ClassVar[str]
    names: ClassVar[Mapping[str, tuple[str, ...]]]
    gateway_fields: ClassVar[frozenset[str]] = frozenset()
    speaks_ids: ClassVar[bool] = False
    """Token ids, not text."""
    end_is_counted: ClassVar[bool] = False
    """Its counts include the token that ended the answer."""

    keeps_characters: bool = True
    """A stream's responses join to the whole text: none was decoded without the bytes that complete its characters."""

    def __init__(self, model: ModelInfo, checkpoint: Checkpoint) -> None:
        self.model = model
        self.checkpoint = checkpoint
        self._found = {
            field: found for field, names in self.names.items() if (found := _first(names, model.inputs)) is not None
        }
        self.outputs = [name for name in self.wanted_outputs() if name in model.outputs]

    @abstractmethod
    def wanted_outputs(self) -> Sequence[str]:
        """Names of the outputs it reads."""

    @abstractmethod
    def write(self, inputs: Inputs, answering: Answering) -> None:
        """Put everything but sampling and guidance."""

    @abstractmethod
    def reader(self, answering: Answering) -> Reader:
        """For the responses to that request."""

    def refuse(self, asked: Asked) -> None:
        """Raises InvalidRequest for what this model cannot be told."""
        for field in sorted(asked.wanted - self.gateway_fields - self._found.keys()):
            raise unsupported(field, f"model {self.model.name!r} ({self.name}) has no tensor for it")
        if GUIDE_TYPE not in self.model.inputs:
            why = f"model {self.model.name!r} ({self.name}) has no guided decoding"
            if asked.tools.forced is not None:
                raise unsupported("tool_choice", f"{why}, only none and auto work")
            if asked.constraint is not None:
                raise unsupported(asked.constrained_by, why)

    def tensors(self, answering: Answering) -> list[Tensor]:
        """The request's inputs."""
        inputs = Inputs(self.model)
        self.write(inputs, answering)
        self.sample(inputs, answering)
        guide = _guide(answering.asked)
        if guide is not None:
            inputs.put(GUIDE_TYPE, guide[0].encode())
            if guide[1]:
                inputs.put(GUIDE, guide[1].encode())
        return inputs.tensors

    def sample(self, inputs: Inputs, answering: Answering) -> None:
        """Temperature, penalties, seed."""
        sampling = answering.asked.sampling
        if sampling.is_greedy:
            self.put(inputs, "top_k", 1)
        else:
            self.put(inputs, "temperature", sampling.temperature)
            self.put(inputs, "top_p", sampling.top_p)
            if sampling.top_k:
                self.put(inputs, "top_k", sampling.top_k)
            seed = secrets.randbits(63) if sampling.seed is None else sampling.seed + answering.number
            self.put(inputs, "seed", seed % 2**64)
        for field, neutral in (("repetition_penalty", 1), ("presence_penalty", 0), ("frequency_penalty", 0)):
            if getattr(sampling, field) != neutral:
                self.put(inputs, field, getattr(sampling, field))
        if answering.asked.ending.min_tokens:
            self.put(inputs, "min_tokens", answering.asked.ending.min_tokens)

    def put(self, inputs: Inputs, field: str, *values: Any, width: int | None = None) -> None:
        """Into the tensor that carries `field`; nothing where there is none."""
        if field in self._found:
            inputs.put(self._found[field], *values, width=width)


def word_list(words: Sequence[Sequence[int]]) -> tuple[list[int], int]:
    """TensorRT-LLM's and FasterTransformer's list of words, [2, n] flat, and n: all ids, then where each word ends,
    padded with 0 and -1."""
    flat = [token for word in words for token in word]
    ends = [sum(map(len, words[: place + 1])) for place in range(len(words))]
    width = max(len(flat), len(ends))
    return flat + [0] * (width - len(flat)) + ends + [-1] * (width - len(ends)), width


def stop_words(asked: Asked, checkpoint: Checkpoint) -> list[list[int]]:
    """Token runs after which the engine may stop. The gateway cuts the text itself; this saves the engine work.

    None when a least number of tokens is asked: what engines count before it differs.
    """
    ending = asked.ending
    if ending.min_tokens:
        return []
    words = [checkpoint.tokens.encode(text) for text in ending.strings]
    others = set() if ending.ignore_eos else checkpoint.eos_ids - {checkpoint.end_id}
    return [*(word for word in words if word), *([token] for token in sorted(ending.ids | others))]


def _first(names: Sequence[str], inputs: Mapping[str, object]) -> str | None:
    return next((name for name in names if name in inputs), None)


def _guide(asked: Asked) -> tuple[str, str | None] | None:
    if asked.tools.forced is not None:
        return "json_schema", _json(asked.tools.forced)
    limit = asked.constraint
    return None if limit is None else _of_constraint(limit)


def _of_constraint(limit: Constraint) -> tuple[str, str | None]:
    """Guide type and guide, as TensorRT-LLM's executor names them."""
    if limit.kind is ConstraintKind.JSON_OBJECT:
        return "json", None
    if limit.kind is ConstraintKind.JSON:
        return "json_schema", _json(limit.value)
    if limit.kind is ConstraintKind.CHOICE:
        return "regex", "|".join("(" + _REGEX_SIGNS.sub(r"\\\1", choice) + ")" for choice in limit.value)
    return ("regex" if limit.kind is ConstraintKind.REGEX else "ebnf_grammar"), limit.value


def _json(schema: Any) -> str:
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
