"""How tokens are chosen, and the library's GenerationConfig made from it."""

import secrets
from dataclasses import dataclass
from typing import Any

import openvino_genai

from openvino_engine.constraint import Constraint
from openvino_engine.sequence import StopRules

# Below this the library's softmax overflows; the limit of temperature towards zero is greedy.
_GREEDY_BELOW = 1e-3


@dataclass(frozen=True, slots=True)
class Sampling:
    """Parameters of one request, already checked. ``top_k`` 0 is off; ``seed`` None differs every time."""

    stop: StopRules
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    logprobs: bool = False
    constraint: Constraint | None = None

    def config(self, choice: int, draft_tokens: int, ngram_tokens: int = 0) -> Any:
        """The library's configuration for one choice of the request. ``ngram_tokens``: the longest run of tokens
        looked up in the text so far, 0 where a draft model guesses or nobody does."""
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = self.stop.max_tokens
        config.min_new_tokens = self.stop.min_tokens
        config.ignore_eos = self.stop.ignore_eos
        config.stop_token_ids = set(self.stop.eos | self.stop.ids)
        config.logprobs = int(self.logprobs)
        config.presence_penalty = self.presence_penalty
        config.frequency_penalty = self.frequency_penalty
        config.repetition_penalty = self.repetition_penalty
        config.do_sample = self.temperature >= _GREEDY_BELOW
        if config.do_sample:
            self._randomness(config, choice)
        if self.constraint is not None:
            config.structured_output_config = self.constraint.config()
        if draft_tokens:
            config.num_assistant_tokens = draft_tokens
        if ngram_tokens:
            config.max_ngram_size = ngram_tokens
        return config

    def _randomness(self, config: Any, choice: int) -> None:
        config.temperature = self.temperature
        config.top_p = self.top_p
        config.min_p = self.min_p
        if self.top_k:
            config.top_k = self.top_k
        config.rng_seed = secrets.randbits(32) if self.seed is None else _mix(self.seed, choice)


def _mix(seed: int, choice: int) -> int:
    """A 32-bit generator seed from a request's seed and a choice's number (splitmix64's finalizer).

    The library keeps only 32 bits, and choice 1 of seed 1 must not equal choice 0 of seed 2.
    """
    value = (seed * 0x9E3779B97F4A7C15 + choice * 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (value ^ (value >> 31)) & 0xFFFFFFFF
