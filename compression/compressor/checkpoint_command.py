"""`penstock checkpoint show|verify|diff|list`: what a checkpoint is, whether it is whole, and how two differ.

Reads manifests and file headers, loads no weights and needs no torch: it works wherever a checkpoint is served.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from compressor.checkpoint import describe
from compressor.checkpoint.card import made_rows, quality_lines, short, size
from compressor.checkpoint.verify import can_look_for_nan, verify
from compressor.errors import CompressorError

EXAMPLES = """\
examples:
  penstock checkpoint show starter-gptq-w4a16          how it was made, true bits, quality, who can serve it
  penstock checkpoint show --json starter-gptq-w4a16 | jq .quality
  penstock checkpoint verify starter-gptq-w4a16        hashes, sizes, shards, shapes, NaN; exit code 1 names the files
  penstock checkpoint diff starter starter-gptq-w4a16  recipe, bits, size and quality side by side
  penstock checkpoint list .                           every checkpoint in a folder, one a line

exit codes: 0 fine, 1 a fault or no checkpoint, 2 a wrong command line
"""


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    try:
        return int(options.run(options))
    except CompressorError as error:
        print(f"penstock checkpoint: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()  # whoever read us has seen enough
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="penstock checkpoint",
        description="Look at checkpoints: how they were made, what they lost, whether they are whole.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    table = (
        ("show", _show, "the manifest for people: size, true bits, quality, recipe, who can serve it"),
        ("verify", _verify, "whether it is whole and what was made: exit code 1 and the files where not"),
        ("diff", _diff, "two checkpoints side by side"),
        ("list", _list, "all checkpoints in a folder"),
    )
    for name, run, about in table:
        command = commands.add_parser(name, help=about, description=about.capitalize() + ".")
        command.set_defaults(run=run)
        command.add_argument("--json", action="store_true", help="the same for programs, on stdout")
        for place in ("first", "second") if name == "diff" else ("folder",):
            what = "a folder of checkpoints" if name == "list" else "a checkpoint's folder"
            command.add_argument(place, type=Path, metavar=place.upper(), help=what)
    return parser


def _show(options: argparse.Namespace) -> int:
    manifest = describe.describe(options.folder)
    if options.json:
        return _print_json(manifest)
    about = [("checkpoint", f"{manifest.get('name')} ({options.folder})"), *made_rows(manifest)]
    _print_rows(about)
    for title, lines in (
        ("quality", list(quality_lines(manifest))),
        ("served by", [f"{engine}: {note}" for engine, note in (manifest.get("served_by") or {}).items()]),
        ("recipe", describe.recipe_lines(manifest)),
        ("files", describe.file_lines(manifest)),
    ):
        if lines:
            _say(f"\n{title}", *(f"  {line}" for line in lines))
    return 0


def _verify(options: argparse.Namespace) -> int:
    checks: list[str] = []
    faults = verify(options.folder, checks.append)
    if options.json:
        _print_json({"folder": str(options.folder), "checked": checks, "faults": [vars_of(fault) for fault in faults]})
        return 1 if faults else 0
    for fault in faults:
        _say(f"{fault.file}: {fault.what}")
    if faults:
        return 1
    left_out = "" if can_look_for_nan() else " (values were not looked at: numpy is not installed here)"
    _say(f"{options.folder} is whole: {', '.join(checks)}{left_out}")
    return 0


def vars_of(fault: Any) -> dict[str, str]:
    return {"file": fault.file, "what": fault.what}


def _diff(options: argparse.Namespace) -> int:
    rows = describe.differences(describe.describe(options.first), describe.describe(options.second))
    if options.json:
        return _print_json([{"what": row.what, "first": row.first, "second": row.second} for row in rows])
    head = ("", str(options.first), str(options.second), "change")
    _print_table([head, *((row.what, _cell(row.first), _cell(row.second), row.change()) for row in rows)])
    return 0


def _list(options: argparse.Namespace) -> int:
    found = describe.describe_all(options.folder)
    if options.json:
        return _print_json(found)
    if not found:
        _say(f"{options.folder} holds no checkpoint")
        return 0
    head = ("name", "scheme", "bits", "size", "zeros", "perplexity", "accuracy", "gate", "method")
    _print_table([head, *map(_line, found)])
    return 0


def _line(manifest: dict[str, Any]) -> tuple[str, ...]:
    if "fault" in manifest:
        return (str(manifest["name"]), str(manifest["fault"]))
    figures = describe.headline(manifest)
    bits, zeros = manifest.get("bits_per_weight"), manifest.get("sparsity")
    gate = (manifest.get("gate") or {}).get("passed")
    return (
        str(manifest.get("name")),
        str(manifest.get("scheme")),
        "–" if bits is None else f"{bits:.2f}",
        size(manifest["size_bytes"]) if isinstance(manifest.get("size_bytes"), int) else "–",
        f"{zeros:.0%}" if zeros else "–",
        _cell(figures.get("perplexity")),
        _cell(figures.get("accuracy")),
        "–" if gate is None else "passed" if gate else "FAILED",
        str(manifest.get("method")),
    )


def _cell(value: Any) -> str:
    return "–" if value is None else short(value)


def _print_rows(rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    _say(*(f"{name:{width}}  {value}" for name, value in rows))


def _print_table(rows: list[tuple[str, ...]]) -> None:
    whole = [row for row in rows if len(row) == len(rows[0])]
    widths = [max(map(len, column)) for column in zip(*whole, strict=True)]
    for row in rows:
        _say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip())


def _print_json(value: Any) -> int:
    _say(json.dumps(value, ensure_ascii=False, indent=2))
    return 0


def _say(*lines: str) -> None:
    for line in lines:
        print(line)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
