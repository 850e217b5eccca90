"""What a call asks for, in words that belong to no tensor contract: checked, with OpenAI's defaults filled in.

A contract (contracts/) then says which of it its model can do; whatever it cannot is refused by name.
"""

from typing import Any

import msgspec

from gateway.backends.constraint import Constraint, constraint
from gateway.backends.triton.checkpoint import Checkpoint
from gateway.backends.triton.tools import ToolUse, read_tools
from gateway.core.call import Call, Endpoint
from gateway.core.errors import InvalidRequest

GREEDY_BELOW = 1e-3
"""Temperatures below it mean the most likely token: engines divide by them."""
COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions
ALWAYS = frozenset(
    {"model", "stream", "stream_options", "n", "max_tokens", "max_completion_tokens", "stop",
     "include_stop_str_in_output", "messages", "prompt", "echo", "suffix", "chat_template_kwargs", "documents",
     "add_generation_prompt", "continue_final_message", "tools", "tool_choice", "parallel_tool_calls",
     "response_format", "structured_outputs", "add_special_tokens", "user", "safety_identifier"}
)  # fmt: skip
"""Fields that are acted on here or mean nothing to an engine; of the others a contract says whether it has them."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "temperature": (1,),
    "top_p": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "top_k": (0, -1),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "skip_special_tokens": (True,),
    "tool_choice": ("none", "auto"),
}
"""Values that ask for nothing: no reason to refuse."""


class Sampling(msgspec.Struct, frozen=True, gc=False):
    """`top_k` 0: all; `temperature` 0: the most likely token; `seed` None: another one each time."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW or self.top_k == 1


class Ending(msgspec.Struct, frozen=True, gc=False):
    """When an answer ends. `strings` and `ids` are the client's stops, not counted before `min_tokens`."""

    max_tokens: int | None
    strings: tuple[str, ...] = ()
    ids: frozenset[int] = frozenset()
    include_string: bool = False
    min_tokens: int = 0
    ignore_eos: bool = False


class Asked(msgspec.Struct, frozen=True):
    """`wanted`: names of given fields that not every contract has. `logprobs`: of the chosen tokens."""

    sampling: Sampling
    ending: Ending
    tools: ToolUse
    constraint: Constraint | None
    wanted: frozenset[str]
    n: int = 1
    logprobs: bool = False
    echo: bool = False
    skip_special_tokens: bool = True
    bad_words: tuple[str, ...] = ()
    constrained_by: str = "response_format"


def read_asked(call: Call, fields: dict[str, Any], checkpoint: Checkpoint) -> Asked:
    """From the decoded fields that are not null. Raises InvalidRequest naming the field."""
    _refuse_stream_extras(fields)
    tools = read_tools(fields)
    wanted = {name for name in fields.keys() - ALWAYS if fields[name] not in NEUTRAL.get(name, ())}
    limit = constraint(call)
    name = "structured_outputs" if "structured_outputs" in fields else "response_format"
    if limit is not None and tools.offered is not None:
        raise InvalidRequest(
            f"{name!r} and 'tools' cannot both shape the answer: set 'tool_choice' to none.", param=name
        )
    return Asked(
        sampling=_sampling(fields, checkpoint),
        ending=_ending(call, fields, checkpoint),
        tools=tools,
        constraint=limit,
        wanted=frozenset(wanted),
        n=fields.get("n", 1),
        logprobs=_logprobs(call, fields),
        echo=call.endpoint is Endpoint.COMPLETIONS and fields.get("echo", False),
        skip_special_tokens=fields.get("skip_special_tokens", True),
        bad_words=tuple(fields.get("bad_words", ())),
        constrained_by=name,
    )


def decoded_fields(call: Call) -> dict[str, Any]:
    """The call's fields as Python values, nulls left out."""
    decode = msgspec.json.decode
    return {name: value for name, raw in call.fields.items() if (value := decode(raw)) is not None}


def _refuse_stream_extras(fields: dict[str, Any]) -> None:
    for name in ("continuous_usage_stats", "include_obfuscation"):
        if fields.get("stream_options", {}).get(name):
            raise unsupported(f"stream_options.{name}", "chunks carry neither padding nor usage of their own")
    if fields.get("suffix"):
        raise unsupported("suffix", "no tensor of a Triton model says what comes after the answer")


def _sampling(fields: dict[str, Any], checkpoint: Checkpoint) -> Sampling:
    given = checkpoint.sampling | {
        name: fields[name] for name in Sampling.__struct_fields__ if name in fields and name != "top_k"
    }
    top_k = max(int(fields.get("top_k", checkpoint.sampling.get("top_k", 0))), 0)
    return Sampling(**{**given, "top_k": top_k})


def _ending(call: Call, fields: dict[str, Any], checkpoint: Checkpoint) -> Ending:
    most = fields.get("max_completion_tokens", fields.get("max_tokens"))
    if most is None and call.endpoint is Endpoint.COMPLETIONS:
        most = COMPLETION_TOKENS
    if most == 0:
        raise unsupported("max_tokens", "0 asks for the prompt's scores, which Triton's models do not give")
    stop = fields.get("stop", ())
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(strings):
        raise InvalidRequest("'stop' must not hold an empty string.", param="stop", code="invalid_value")
    ids = frozenset(fields.get("stop_token_ids", ()))
    if not all(0 <= token < checkpoint.tokens.rows for token in ids):
        raise InvalidRequest(
            f"'stop_token_ids' must hold token ids from 0 to {checkpoint.tokens.rows - 1}.", param="stop_token_ids"
        )
    return Ending(
        max_tokens=most,
        strings=strings,
        ids=ids,
        include_string=fields.get("include_stop_str_in_output", False),
        min_tokens=fields.get("min_tokens", 0),
        ignore_eos=fields.get("ignore_eos", False),
    )


def _logprobs(call: Call, fields: dict[str, Any]) -> bool:
    name = "top_logprobs" if call.endpoint is Endpoint.CHAT else "logprobs"
    if (fields.get(name) or 0) > 0 and fields[name] is not True:
        raise unsupported(name, "Triton's models give the log-probability of the chosen token only, ask for 0")
    wants = fields.get("logprobs")
    if wants is not None and wants is not False and fields.get("echo"):
        raise unsupported("echo", "the prompt's tokens have no log-probabilities")
    return wants is not None and wants is not False


def unsupported(param: str, why: str) -> InvalidRequest:
    """400 for a field that is understood but cannot be honoured."""
    return InvalidRequest(
        f"{param!r} is not supported by this model's engine: {why}.", param=param, code="unsupported_parameter"
    )
