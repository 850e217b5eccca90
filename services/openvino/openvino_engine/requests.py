"""What chat and completions have in common: sampling fields, stream options, structured output."""

from dataclasses import dataclass
from typing import Any

from openvino_engine.checkpoint import Checkpoint
from openvino_engine.constraint import Constraint, schema_json
from openvino_engine.errors import ApiError, context_exceeded, invalid, unsupported
from openvino_engine.fields import Fields
from openvino_engine.sampling import Sampling
from openvino_engine.sequence import StopRules

_SEED_LIMIT = 2**63
_SCHEMA_DEPTH = 64
_GRAMMAR_BYTES = 256 * 1024

COMMON_FIELDS = frozenset(
    {
        "model",
        "stream",
        "stream_options",
        "n",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "seed",
        "stop",
        "stop_token_ids",
        "include_stop_str_in_output",
        "min_tokens",
        "max_tokens",
        "ignore_eos",
        "skip_special_tokens",
        "response_format",
        "structured_outputs",
        "add_special_tokens",
        "logprobs",
    }
)


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """Whether to stream, and which usage the chunks carry."""

    stream: bool
    include_usage: bool = False
    continuous_usage: bool = False


def check_model(fields: Fields, served: str) -> None:
    """Raises ApiError: 400 without a model, 404 for another one."""
    model = fields.text("model")
    if model is None:
        raise invalid("model", "you must name a model", code="missing_required_parameter")
    if model != served:
        message = f"The model {model[:200]!r} does not exist; this engine serves {served!r}"
        raise ApiError(404, message, code="model_not_found", param="model")


def stream_options(fields: Fields) -> StreamOptions:
    """Read stream and stream_options; the latter is only legal with the former."""
    stream = fields.boolean("stream")
    if "stream_options" not in fields:
        return StreamOptions(stream)
    if not stream:
        raise invalid("stream_options", "'stream_options' is only allowed when 'stream' is true")
    known = frozenset({"include_usage", "continuous_usage_stats", "include_obfuscation"})
    options = Fields(fields.mapping("stream_options"), known)
    if options.boolean("include_obfuscation"):
        raise unsupported("stream_options.include_obfuscation", "chunks are not padded")
    return StreamOptions(stream, options.boolean("include_usage"), options.boolean("continuous_usage_stats"))


def sampling(fields: Fields, checkpoint: Checkpoint, max_tokens: int, constraint: Constraint | None) -> Sampling:
    """All fields that steer the choice of tokens. Defaults are the checkpoint's generation_config, then OpenAI's."""
    own = checkpoint.sampling
    stop = _stop_rules(fields, checkpoint, max_tokens, constraint)
    if constraint is not None and (stop.ignore_eos or stop.min_tokens):
        name = "ignore_eos" if stop.ignore_eos else "min_tokens"
        raise unsupported(name, "it contradicts a structured output, which ends when its grammar ends")
    return Sampling(
        stop=stop,
        temperature=fields.number("temperature", own.get("temperature", 1.0), 0, 2),
        top_p=fields.number("top_p", own.get("top_p", 1.0), 0, 1, above=True),
        top_k=max(0, fields.integer("top_k", int(own.get("top_k", 0)), -1, 2**31)),
        min_p=min(fields.number("min_p", own.get("min_p", 0.0), 0, 1), 0.9999),
        presence_penalty=fields.number("presence_penalty", 0.0, -2, 2),
        frequency_penalty=fields.number("frequency_penalty", 0.0, -2, 2),
        repetition_penalty=fields.number("repetition_penalty", own.get("repetition_penalty", 1.0), 0, 10, above=True),
        seed=fields.integer("seed", 0, -_SEED_LIMIT, 2 * _SEED_LIMIT) if "seed" in fields else None,
        constraint=constraint,
    )


def _stop_rules(fields: Fields, checkpoint: Checkpoint, max_tokens: int, constraint: Constraint | None) -> StopRules:
    eos, others = checkpoint.eos_ids, frozenset[int]()
    if constraint is not None:
        eos = frozenset({checkpoint.grammar_eos})
        others = checkpoint.eos_ids - eos if constraint.leaves_free_text else others
    return StopRules(
        eos=eos,
        outside_calls=others,
        ids=fields.token_ids("stop_token_ids", checkpoint.rows),
        strings=fields.strings("stop", most=16),
        include_string=fields.boolean("include_stop_str_in_output"),
        ignore_eos=fields.boolean("ignore_eos"),
        min_tokens=fields.integer("min_tokens", 0, 0, max_tokens),
        max_tokens=max_tokens,
    )


def completion_budget(fields: Fields, name: str, prompt: int, context: int, default: int, param: str) -> int:
    """How many tokens the answer may have. Raises ApiError 400 when prompt and answer do not fit the context."""
    if prompt >= context:
        raise context_exceeded(context, prompt, fields.integer(name, 1, 1, 2**31), param)
    if name not in fields:
        return min(default, context - prompt)
    asked = fields.integer(name, 1, 1, 2**31)
    if prompt + asked > context:
        raise context_exceeded(context, prompt, asked, param)
    return asked


def constraint(fields: Fields) -> tuple[Constraint, str] | None:
    """The structured output asked for, with the field that asked; None for free text."""
    asked = fields.mapping("response_format")
    wanted = fields.mapping("structured_outputs")
    found = _response_format(asked) if asked else None
    if wanted and found is not None:
        raise invalid("structured_outputs", "give either 'response_format' or 'structured_outputs', not both")
    if wanted:
        return _structured_outputs(wanted), "structured_outputs"
    return (found, "response_format") if found is not None else None


def _response_format(asked: dict[str, Any]) -> Constraint | None:
    kind = asked.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return Constraint(json_schema='{"type":"object"}')
    if kind != "json_schema":
        raise invalid("response_format.type", "'response_format.type' must be text, json_object or json_schema")
    wrapper = asked.get("json_schema")
    if not isinstance(wrapper, dict) or not isinstance(wrapper.get("name"), str):
        raise invalid("response_format.json_schema", "'response_format.json_schema' needs a name and a schema")
    return Constraint(json_schema=schema_text(wrapper.get("schema", {}), "response_format.json_schema.schema"))


def _structured_outputs(wanted: dict[str, Any]) -> Constraint:
    kinds = ("json", "regex", "choice", "grammar", "json_object")
    given = [kind for kind in kinds if wanted.get(kind) not in (None, False)]
    unknown = [name for name, value in wanted.items() if name not in kinds and value is not None]
    if unknown:
        raise unsupported(f"structured_outputs.{unknown[0]}", f"{', '.join(kinds)} are")
    if len(given) != 1:
        raise invalid("structured_outputs", f"'structured_outputs' needs exactly one of {', '.join(kinds)}")
    kind, value = given[0], wanted[given[0]]
    if kind == "json_object":
        return Constraint(json_schema='{"type":"object"}')
    if kind == "json":
        return Constraint(json_schema=schema_text(value, "structured_outputs.json"))
    if kind == "choice":
        return Constraint(choice=_choices(value))
    if not isinstance(value, str) or not value or len(value) > _GRAMMAR_BYTES:
        raise invalid(
            f"structured_outputs.{kind}", f"'structured_outputs.{kind}' must be a string, not empty, not huge"
        )
    return Constraint(regex=value) if kind == "regex" else Constraint(grammar=value)


def _choices(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= 1000 or not all(isinstance(v, str) and v for v in value):
        raise invalid("structured_outputs.choice", "'structured_outputs.choice' must be a list of non-empty strings")
    return tuple(value)


def schema_text(schema: object, param: str) -> str:
    """A JSON schema (object, or JSON text of one) as compact text. Raises ApiError 400 when it cannot be one."""
    if isinstance(schema, str):
        return schema
    if not isinstance(schema, dict):
        raise invalid(param, f"{param!r} must be a JSON schema object", code="invalid_type")
    if _depth(schema) > _SCHEMA_DEPTH:
        raise invalid(param, f"{param!r} is nested deeper than {_SCHEMA_DEPTH} levels", code="invalid_grammar")
    text = schema_json(schema)
    if len(text) > _GRAMMAR_BYTES:
        raise invalid(param, f"{param!r} is larger than {_GRAMMAR_BYTES} bytes", code="invalid_grammar")
    return text


def _depth(root: object) -> int:
    level, depth = [root], 0
    while level:
        depth += 1
        level = [child for node in level for child in _children(node)]
    return depth


def _children(node: object) -> list[object]:
    if isinstance(node, dict):
        return list(node.values())
    return node if isinstance(node, list) else []
