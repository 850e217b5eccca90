"""The capability tables as text: for `penstock gateway engines`, and for docs/engines.md, which is made from it."""

from collections.abc import Callable, Iterable, Sequence

import msgspec

from gateway.backends.base import Backend
from gateway.backends.capabilities import SCHEMES
from gateway.backends.constraint import ConstraintKind
from gateway.core.call import Endpoint
from gateway.core.openai import CHAT_EXTENSIONS, EXTENSIONS, IDENTIFIERS, OPENAI_FIELDS

Engine = type[Backend]
Row = list[str]
YES, NO = "yes", "–"
BEGIN, END = "<!-- engines: begin (written by `penstock gateway engines --update`) -->", "<!-- engines: end -->"


def capability_rows(engines: Sequence[Engine]) -> list[Row]:
    """First the header, then a row for each engine."""
    header = [
        "engine",
        "how tested",
        "endpoints",
        "structured outputs",
        "tools",
        "images",
        "logprobs",
        "adapters",
        "at once",
    ]
    return [header, *(_capabilities(engine) for engine in engines)]


def checkpoint_rows(engines: Sequence[Engine]) -> list[Row]:
    header = ["engine", "architectures", "quantization (`quant_method`)", "beyond dense weights"]
    return [header, *(_checkpoints(engine) for engine in engines)]


def scheme_rows(engines: Sequence[Engine]) -> list[Row]:
    """A row for every number format that somebody can serve: where the kernels of each engine run."""
    judged = [engine for engine in engines if engine.capabilities.schemes is not None]
    rows = [[scheme, *((engine.capabilities.schemes or {}).get(scheme, NO) for engine in judged)] for scheme in SCHEMES]
    return [["scheme", *(engine.kind for engine in judged)], *(row for row in rows if set(row[1:]) != {NO})]


def field_rows(engines: Sequence[Engine]) -> list[Row]:
    """A row for every field that is not OpenAI's, and for OpenAI's that some engine lacks."""
    names = sorted(OPENAI_FIELDS[Endpoint.CHAT] - IDENTIFIERS) + sorted(EXTENSIONS.keys() | CHAT_EXTENSIONS.keys())
    rows = [[f"`{name}`", *(_mark(name in _all_fields(engine)) for engine in engines)] for name in names]
    return [["field", *(engine.kind for engine in engines)], *(row for row in rows if NO in row[1:] and YES in row[1:])]


def metric_rows(engines: Sequence[Engine]) -> list[Row]:
    header = ["engine", "page", "waiting", "running", "KV cache in use"]
    rows = []
    for engine in engines:
        metrics = engine.capabilities.metrics
        series = (metrics.path, metrics.queued, metrics.running, metrics.kv_usage)
        rows.append([engine.kind, *(f"`{name}`" if name else NO for name in series)])
    return [header, *rows]


def _capabilities(engine: Engine) -> Row:
    able = engine.capabilities
    kinds = able.constraints
    shapes = "all five" if kinds == frozenset(ConstraintKind) else ", ".join(sorted(kinds)) or NO
    return [
        engine.kind,
        str(able.tested),
        ", ".join(endpoint.name.lower() for endpoint in engine.fields),
        shapes,
        _mark(able.tools),
        _mark(able.vision),
        (f"with {able.top_logprobs} alternatives" if able.top_logprobs else YES) if able.logprobs else NO,
        str(able.adapters),
        "many" if able.concurrent else "one",
    ]


def _checkpoints(engine: Engine) -> Row:
    able = engine.capabilities
    if not able.checkpoints:
        return [engine.kind, "not judged: it serves a conversion, or is not known", NO, NO]
    architectures = "its own list" if able.architectures is None else ", ".join(sorted(able.architectures))
    methods = "its own list" if able.quantization is None else ", ".join(sorted(able.quantization)) or "none"
    return [engine.kind, architectures, methods, ", ".join(sorted(able.shapes)) or "none"]


def _all_fields(engine: Engine) -> frozenset[str]:
    return engine.fields.get(Endpoint.CHAT, frozenset()) | engine.fields.get(Endpoint.COMPLETIONS, frozenset())


def _mark(has: bool) -> str:
    return YES if has else NO


TABLES: tuple[tuple[str, Callable[[Sequence[Engine]], list[Row]]], ...] = (
    ("What each engine can do", capability_rows),
    ("Checkpoints each engine loads", checkpoint_rows),
    ("Where the kernels of each number format run", scheme_rows),
    ("Request fields that not all engines have", field_rows),
    ("Where each engine says how busy it is", metric_rows),
)


def as_text(engines: Sequence[Engine]) -> str:
    """For a terminal: columns one beside the other."""
    return "\n".join(f"{title}\n\n{_columns(rows(engines))}" for title, rows in TABLES)


def as_markdown(engines: Sequence[Engine]) -> str:
    return "\n".join(f"### {title}\n\n{_markdown(rows(engines))}" for title, rows in TABLES)


def as_json(engines: Sequence[Engine]) -> str:
    """For programs: the capabilities of each kind, and the fields it takes at each endpoint."""
    table = {
        engine.kind: msgspec.to_builtins(engine.capabilities)
        | {"fields": {end: engine.fields[end] for end in engine.fields}}
        for engine in engines
    }
    return msgspec.json.encode(table, order="deterministic").decode() + "\n"


def updated(page: str, engines: Sequence[Engine]) -> str:
    """`page` with the tables of today between its two markers. Raises ValueError when it has none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no {BEGIN} ... {END}")
    return f"{before}{begin}\n\n{as_markdown(engines)}\n{end}{after}"


def _columns(rows: list[Row]) -> str:
    plain = [[cell.replace("`", "") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*plain, strict=True)]
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in plain)
    return _lines("  ".join(row).rstrip() for row in padded)


def _markdown(rows: list[Row]) -> str:
    head, *body = rows
    return _lines("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body))


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
