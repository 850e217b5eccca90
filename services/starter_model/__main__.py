"""`penstock starter-model` or `python -m starter_model`: train, export, evaluate, show the corpus, ask the result."""

import argparse
import os
import signal
import sys
from pathlib import Path

from . import commands

# glibc gives large blocks back to the kernel after every step and asks for them again: this doubles the speed.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "8589934592",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
    "OMP_WAIT_POLICY": "passive",
}

EPILOG = """\
The usual way, from nothing to two checkpoints (about half an hour on two cores):

  make starter-model                         # its own environment with torch, then the two commands below
  python -m starter_model train              # tokenizer, starter, draft; Ctrl-C stops, the same command goes on
  python -m starter_model export             # measure both and write model_repo/checkpoints/

Before that, without torch:

  python -m starter_model corpus --family tool_call --count 3
"""


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    arguments = _parser().parse_args(argv)
    trains = arguments.command in ("train", "adapter")
    if trains:
        _ask_for_allocator(argv)
    stopping = _stop_on_signals() if trains else lambda: False
    try:
        return commands.run(arguments, stopping)
    except ModuleNotFoundError as missing:
        return _complain(f"{missing.name!r} is not installed here; `make starter-model` sets up .venvs/train")
    except (ValueError, OSError) as refused:
        return _complain(str(refused))
    except KeyboardInterrupt:
        return 130


def _complain(text: str) -> int:
    print(f"starter-model: {text}", file=sys.stderr)  # noqa: T201
    return 1


def _ask_for_allocator(argv: list[str]) -> None:
    """glibc reads these once, when a process starts: start again with them set."""
    if sys.platform == "linux" and not all(name in os.environ for name in ALLOCATOR):
        os.execve(sys.executable, [sys.executable, "-m", "starter_model", *argv], {**ALLOCATOR, **os.environ})  # noqa: S606


def _stop_on_signals() -> commands.Stop:
    """First Ctrl-C or SIGTERM: finish the step and save. A second one ends the process at once."""
    seen: list[int] = []

    def handle(number: int, _frame: object) -> None:
        seen.append(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    return lambda: bool(seen)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="penstock starter-model",
        description="The recipe of the starter model: a small Qwen3-architecture model that is really trained here.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands_ = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands_.add_parser("train", help="train the starter and its draft; resumes what was interrupted"))
    _add_export(commands_.add_parser("export", help="measure finished trainings and publish them as checkpoints"))
    _add_adapter(commands_.add_parser("adapter", help="train a LoRA adapter of a checkpoint and publish it (minutes)"))
    _add_evaluate(commands_.add_parser("evaluate", help="measure a checkpoint folder and print JSON"))
    _add_corpus(commands_.add_parser("corpus", help="print samples of the training data"))
    _add_datasets(commands_.add_parser("datasets", help="write the data files that the compressor ships"))
    _add_ask(commands_.add_parser("ask", help="ask a checkpoint something, without an engine"))
    return parser


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="*", metavar="MODEL", help="starter, starter-draft (default: both)")
    parser.add_argument(
        "--run",
        type=Path,
        default=Path(".cache/starter-model"),
        metavar="DIR",
        help="where trainings live (%(default)s)",
    )
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="share of the recipe's steps, e.g. 0.02 for a trial in a minute (%(default)s)",
    )


def _add_train(parser: argparse.ArgumentParser) -> None:
    _add_models(parser)
    parser.add_argument("--threads", type=int, default=None, help="threads of torch (default: as many as cores)")
    parser.add_argument("--no-compile", action="store_true", help="do without torch.compile: slower, starts at once")


def _add_measures(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", type=int, default=200, help="held-out examples per family (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the evaluation set (%(default)s)")


def _add_export(parser: argparse.ArgumentParser) -> None:
    _add_models(parser)
    _add_measures(parser)
    parser.add_argument(
        "--to",
        type=Path,
        default=Path("model_repo/checkpoints"),
        metavar="DIR",
        help="where checkpoints go (%(default)s)",
    )


def _add_adapter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", default="captain", help="which one (%(default)s)")
    parser.add_argument(
        "--base",
        type=Path,
        default=Path("model_repo/checkpoints/starter"),
        metavar="DIR",
        help="the checkpoint that it adapts (%(default)s)",
    )
    parser.add_argument(
        "--to", type=Path, default=Path("model_repo/adapters"), metavar="DIR", help="where it goes (%(default)s)"
    )
    parser.add_argument("--steps", type=int, default=None, help="other than the recipe's, for a trial")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (%(default)s)")
    parser.add_argument("--limit", type=int, default=40, help="held-out examples per family (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the evaluation set (%(default)s)")


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="a checkpoint folder")
    parser.add_argument(
        "--draft", type=Path, default=None, help="also measure how well this draft guesses the checkpoint's tokens"
    )
    parser.add_argument(
        "--json", type=Path, default=None, metavar="FILE", help="write the report there instead of printing it"
    )
    _add_measures(parser)


def _add_corpus(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--family", default=None, help="only this family (default: the mix of the recipe)")
    parser.add_argument("--count", type=int, default=10, help="how many (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--held-out", action="store_true", help="show the evaluation set instead; needs --family")
    parser.add_argument("--list", action="store_true", help="list the families and their weights")


def _add_datasets(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("compression/data"), metavar="DIR", help="where they go (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=2, help="another one than the recipe's evaluation (%(default)s)")


def _add_ask(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="a checkpoint folder")
    parser.add_argument("prompt", nargs="+", help="one or more questions, each asked on its own")
    parser.add_argument("--adapter", type=Path, default=None, metavar="DIR", help="a LoRA adapter of it")
    parser.add_argument("--tools", type=Path, default=None, metavar="FILE", help="JSON list of tools in OpenAI's form")


if __name__ == "__main__":
    sys.exit(main())
