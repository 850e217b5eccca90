"""`penstock compress compare A B C`: a table for people, one HTML page, JSON."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compressor.checkpoint.card import size
from compressor.report.compare import compare

EPILOG = """\
examples:
  penstock compress compare starter starter-rtn-w4a16 starter-gptq-w4a16
  penstock compress compare starter starter-* --html report.html --json report.json --served served.json
"""


def main_compare(argv: list[str]) -> int:
    """Raises CompressorError."""
    options = _parser().parse_args(argv)
    comparison = compare(options.checkpoints, options.served)
    if options.json is not None:
        text = json.dumps(comparison, ensure_ascii=False, indent=2, allow_nan=False)
        options.json.write_text(f"{text}\n", "utf-8")
    if options.html is not None:
        from compressor.report.page import as_html

        options.html.write_text(as_html(comparison), "utf-8")
    for line in lines(comparison):
        sys.stdout.write(f"{line}\n")
    return 0


def lines(comparison: Mapping[str, Any]) -> Iterator[str]:
    """The table as text, one line a checkpoint."""
    rows = comparison["checkpoints"]
    wide = max(10, *(len(row["name"]) for row in rows))
    yield f"{'checkpoint':<{wide}}  {'bits':>6}  {'size':>10}  {'perplexity':>18}  {'accuracy':>15}  {'KL':>8}  gate"
    for row in rows:
        bits = f"{row['bits_per_weight']:.2f}" if row["bits_per_weight"] is not None else "–"
        growth = f" ({row['perplexity_growth']:+.1%})" if row["perplexity_growth"] is not None else ""
        lost = f" ({-row['accuracy_lost']:+.3f})" if row["accuracy_lost"] is not None else ""
        weighs = size(row["size_bytes"]) if row["size_bytes"] else "–"
        gate = {True: "passed", False: "FAILED"}.get((row["gate"] or {}).get("passed"), "–")  # type: ignore[arg-type]
        yield (
            f"{row['name']:<{wide}}  {bits:>6}  {weighs:>10}  {_figure(row['perplexity'], 3) + growth:>18}  "
            f"{_figure(row['accuracy'], 3) + lost:>15}  {_figure(row['kl'], 4):>8}  {gate}"
        )
    for note in comparison["notes"]:
        yield f"note: {note}"


def _figure(value: float | None, digits: int) -> str:
    if value is None:
        return "–"
    return f"{value:.{digits}f}" if abs(value) < 1e6 else f"{value:.1e}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="penstock compress compare",
        description="Checkpoints side by side, from their manifests: bits, size, what each lost, its gate.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "checkpoints", nargs="+", type=Path, metavar="DIR", help="folders with penstock.json; put the parent among them"
    )
    add("--html", type=Path, metavar="FILE", help="one page with plots that needs nothing else")
    add("--json", type=Path, metavar="FILE", help="the same as JSON")
    add(
        "--served",
        type=Path,
        metavar="FILE",
        help="figures of serving: a JSON list of {checkpoint, engine, tokens_per_s}",
    )
    return parser
