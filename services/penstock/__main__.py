"""`penstock COMMAND ...`: dispatch to one program, importing only that one.

Programs register a `main(argv) -> exit code` under the entry-point group `penstock.commands`,
so a program that is not installed (or whose extra is missing) costs nothing and breaks nothing else.
"""

import difflib
import sys
from importlib.metadata import EntryPoint, entry_points

SUMMARIES = {
    "up": "start engines and gateway from one stack.yaml, stop them cleanly",
    "gateway": "the OpenAI-compatible gateway: serve, check a config, make API keys",
    "openvino-engine": "the embedded CPU engine: serve a checkpoint, convert it to GGUF",
    "fake-engine": "a scripted OpenAI server for tests and load tests",
    "starter-model": "train, evaluate and export the starter model",
    "compress": "make a checkpoint smaller by a recipe, and measure what it lost",
    "checkpoint": "show, verify, compare and list checkpoints",
    "triton": "render a Triton model repository, serve it with the real tritonserver",
}


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    commands = {ep.name: ep for ep in entry_points(group="penstock.commands")}
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage(commands))  # noqa: T201
        return 0
    name, rest = argv[0], argv[1:]
    if name not in commands:
        close = difflib.get_close_matches(name, commands, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        print(f"penstock: no command {name!r}{hint}\n\n{_usage(commands)}", file=sys.stderr)  # noqa: T201
        return 2
    try:
        program = commands[name].load()
        return int(program(rest) or 0)
    except ModuleNotFoundError as missing:
        if (missing.name or "").split(".")[0] == commands[name].module.split(".")[0]:
            raise  # a fault of the program itself, no missing library
        print(  # noqa: T201
            f"penstock {name}: the Python package {missing.name!r} is not installed; "
            f"install this program's extra: pip install 'penstock[{_extra(name)}]'",
            file=sys.stderr,
        )
        return 1


def _extra(name: str) -> str:
    extras = {"up": "stack", "openvino-engine": "openvino", "compress": "compressor", "checkpoint": "compressor"}
    return extras.get(name, name)


def _usage(commands: dict[str, EntryPoint]) -> str:
    rows = "\n".join(f"  {name:16} {SUMMARIES.get(name, '')}".rstrip() for name in sorted(commands))
    return f"usage: penstock COMMAND [options]\n\ncommands:\n{rows}\n\n`penstock COMMAND --help` explains each."


if __name__ == "__main__":
    sys.exit(main())
