"""The core model's inputs (TensorRT-LLM's `inflight_batcher_llm/tensorrt_llm`) as the embedded engine's parameters.

Defaults are TensorRT-LLM's, not OpenAI's: without top_k and top_p decoding is greedy, and an unset seed is 0.
"""

from dataclasses import dataclass

from openvino_engine.checkpoint import Checkpoint
from openvino_engine.constraint import Constraint
from openvino_engine.errors import context_exceeded, invalid, unsupported
from openvino_engine.sampling import Sampling
from openvino_engine.sequence import StopRules
from triton_models.tensors import Array, Tensors, only
from triton_models.words import read_words

_ACTED = frozenset(
    [
        "input_ids",
        "input_lengths",
        "request_output_len",
        "num_return_sequences",
        "end_id",
        "pad_id",
        "stop_words_list",
        "temperature",
        "runtime_top_k",
        "runtime_top_p",
        "repetition_penalty",
        "min_tokens",
        "presence_penalty",
        "frequency_penalty",
        "seed",
        "return_log_probs",
        "return_num_input_tokens",
        "return_num_output_tokens",
        "exclude_input_in_output",
        "stop",
        "streaming",
        "guided_decoding_guide_type",
        "guided_decoding_guide",
    ]
)
_NEUTRAL = {
    "bad_words_list": lambda array: not read_words(array, "bad_words_list"),
    "embedding_bias": only(0.0),
    "beam_width": only(1),
    "len_penalty": only(1.0, 0.0),
    "early_stopping": only(False),
    "beam_search_diversity_rate": only(0.0),
    "runtime_top_p_min": only(0.0),
    "runtime_top_p_decay": only(1.0),
    "return_context_logits": only(False),
    "return_generation_logits": only(False),
    "return_perf_metrics": only(False),
}
_GUIDES = ("json", "json_schema", "regex", "ebnf_grammar")
_NO_END = -1
_MOST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class CoreRequest:
    """A checked request. ``echo``: the prompt's ids come first in a whole answer."""

    prompt: list[int]
    sampling: Sampling
    stop_words: tuple[tuple[int, ...], ...]
    sequences: int
    streaming: bool
    echo: bool
    wants_log_probs: bool
    wants_input_count: bool
    wants_output_count: bool


def read_request(values: dict[str, Array], checkpoint: Checkpoint, context: int) -> CoreRequest:
    """Raises ApiError naming the tensor that is wrong or not supported."""
    tensors = Tensors(values, _ACTED, _NEUTRAL)
    prompt = _prompt(tensors, checkpoint.rows)
    max_tokens = tensors.integer("request_output_len", 0, 1, _MOST)
    if len(prompt) + max_tokens > context:
        raise context_exceeded(context, len(prompt), max_tokens, "input_ids")
    constraint = _constraint(tensors)
    rules = _stop_rules(tensors, checkpoint, max_tokens, constraint)
    log_probs = tensors.flag("return_log_probs")
    return CoreRequest(
        prompt=prompt,
        sampling=_sampling(tensors, rules, constraint, log_probs=log_probs),
        stop_words=read_words(tensors.array("stop_words_list"), "stop_words_list"),
        sequences=tensors.integer("num_return_sequences", 1, 1, 128),
        streaming=tensors.flag("streaming"),
        echo=not tensors.flag("exclude_input_in_output"),
        wants_log_probs=log_probs,
        wants_input_count=tensors.flag("return_num_input_tokens"),
        wants_output_count=tensors.flag("return_num_output_tokens"),
    )


def _prompt(tensors: Tensors, rows: int) -> list[int]:
    ids = tensors.array("input_ids")
    if ids is None or ids.size == 0:
        raise invalid("input_ids", "'input_ids' must hold at least one token")
    if ids.ndim > 1 and ids.shape[0] != 1:
        raise invalid("input_ids", f"'input_ids' has the shape {list(ids.shape)}: one prompt a request")
    length = tensors.integer("input_lengths", ids.size, 1, ids.size)
    prompt: list[int] = ids.reshape(-1)[:length].tolist()
    if not all(0 <= token < rows for token in prompt):
        raise invalid("input_ids", f"'input_ids' must hold token ids from 0 to {rows - 1}")
    return prompt


def _stop_rules(tensors: Tensors, checkpoint: Checkpoint, max_tokens: int, constraint: Constraint | None) -> StopRules:
    end_id = tensors.integer("end_id", -2, _NO_END, checkpoint.rows - 1)
    eos = frozenset({end_id}) if end_id >= 0 else checkpoint.eos_ids
    min_tokens = tensors.integer("min_tokens", 0, 0, max_tokens)
    if constraint is not None:
        if end_id == _NO_END or min_tokens > 1:
            name = "end_id" if end_id == _NO_END else "min_tokens"
            raise unsupported(name, "it contradicts guided decoding, which ends when its grammar ends")
        return StopRules(eos=frozenset({checkpoint.grammar_eos}), max_tokens=max_tokens)
    return StopRules(eos=eos, ignore_eos=end_id == _NO_END, min_tokens=min_tokens, max_tokens=max_tokens)


def _sampling(tensors: Tensors, rules: StopRules, constraint: Constraint | None, *, log_probs: bool) -> Sampling:
    temperature = tensors.number("temperature", 1.0, 0, 100)
    top_k = tensors.integer("runtime_top_k", 0, 0, _MOST)
    top_p = tensors.number("runtime_top_p", 0.0, 0, 1)
    greedy = top_k == 1 or (top_k == 0 and top_p == 0)
    return Sampling(
        stop=rules,
        temperature=0.0 if greedy else temperature,
        top_p=top_p or 1.0,
        top_k=top_k,
        repetition_penalty=_above_zero(tensors, "repetition_penalty", 1.0),
        presence_penalty=tensors.number("presence_penalty", 0.0, -2, 2),
        frequency_penalty=tensors.number("frequency_penalty", 0.0, -2, 2),
        seed=tensors.integer("seed", 0, 0, 2**64 - 1),
        logprobs=log_probs,
        constraint=constraint,
    )


def _above_zero(tensors: Tensors, name: str, default: float) -> float:
    value = tensors.number(name, default, 0, 10)
    if value == 0:
        raise invalid(name, f"{name!r} must be above 0")
    return value


def _constraint(tensors: Tensors) -> Constraint | None:
    kind, guide = tensors.text("guided_decoding_guide_type"), tensors.text("guided_decoding_guide")
    if not kind:
        if guide:
            raise invalid("guided_decoding_guide_type", "'guided_decoding_guide' needs a guided_decoding_guide_type")
        return None
    if kind not in _GUIDES:
        raise unsupported("guided_decoding_guide_type", f"{', '.join(_GUIDES)} are, not {kind[:40]!r}")
    if kind == "json":
        return Constraint(json_schema='{"type":"object"}')
    if not guide:
        raise invalid("guided_decoding_guide", f"'guided_decoding_guide' must hold the {kind}")
    if kind == "json_schema":
        return Constraint(json_schema=guide)
    return Constraint(regex=guide) if kind == "regex" else Constraint(grammar=guide)
