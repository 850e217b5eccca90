"""`penstock compress`: from a command line to one job, and from an error to one line and an exit code.

Nothing heavy is imported before it is known that the command line is right and that this environment has torch.
"""

import argparse
import errno
import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from compressor.errors import CompressorError, NoSpaceError

if TYPE_CHECKING:
    from compressor.pipeline import Job

EXAMPLES = """\
examples:
  penstock compress --list                                         every recipe, and who can serve its result
  penstock compress model_repo/checkpoints/starter --recipe gptq-w4a16
  penstock compress ./llama --recipe gptq-w4a16 --engine sglang --calibration rows.jsonl --out ./llama-w4
  penstock compress ./llama --recipe gptq-w4a16 --set params.bits=3 --set calibration.samples=256
  penstock compress ./llama --recipe ./mine.yaml --dry-run         what would be done, what it would take
  penstock compress compare starter starter-rtn-w4a16 starter-gptq-w4a16 --html report.html
  penstock compress measure starter-gptq-w4a16 --parent starter    quality alone

A run that is stopped (Ctrl-C, a full disk, a lost machine) keeps what is done; the same command goes on from there.
exit codes: 0 made, 1 a fault, 2 a wrong command line or recipe, 3 made and lost more than its recipe's gate allows,
130 stopped by Ctrl-C
"""
COMMANDS = {
    "compare": ("compressor.report", "main_compare"),
    "measure": ("compressor.quality.command", "main_measure"),
}
DTYPES = ("float32", "bfloat16")
STOPPED = 130


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    run: Callable[[], int]
    if argv and argv[0] in COMMANDS:
        run = lambda: _command(argv[0], argv[1:])  # noqa: E731
    else:
        parser = _parser()
        options = parser.parse_args(argv)
        if options.model is None and not (options.list or options.methods):
            parser.error("give a MODEL, or --list")
        if options.model is not None and options.recipe is None:
            parser.error("give a --recipe; `penstock compress --list` shows them")
        run = lambda: _run(options)  # noqa: E731
    if importlib.util.find_spec("torch") is None:
        return _elsewhere(argv)
    return _guarded(run)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="penstock compress",
        usage="penstock compress MODEL --recipe NAME|FILE [options]\n"
        "       penstock compress --list | compare A B ... | measure A",
        description="Make a checkpoint smaller by a recipe, in a format that engines load, and measure what it lost.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", nargs="?", type=Path, metavar="MODEL", help="a folder: config.json, *.safetensors, tokenizer")
    add("--recipe", metavar="NAME|FILE", help="a shipped recipe (--list) or a YAML file")
    add("--out", type=Path, metavar="DIR", help="default: MODEL's name and the recipe's, in this folder")
    add("--force", action="store_true", help="replace the checkpoint that is at --out")
    add("--calibration", type=Path, metavar="FILE", help='JSON lines of {"messages": [...]} or {"text": ...}')
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change one key of the recipe: params.bits=3")
    add("--engine", metavar="NAME", help="refuse, before the work, what this engine cannot serve")
    add("--through", choices=("own", "llmcompressor"), default="own", help="whose implementation does the steps")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1; default: the GPU when there is one")
    add("--dtype", choices=DTYPES, help="of blocks while data runs through; default: float32, bfloat16 on a GPU")
    add("--no-quality", action="store_true", help="do not measure what was lost (a gate cannot be judged then)")
    add("--dry-run", action="store_true", help="check everything, say what would be done, do nothing")
    add("--quiet", action="store_true", help="warnings and errors only")
    add("--list", action="store_true", help="every recipe in one line, with the engines that can serve its result")
    add("--methods", action="store_true", help="every method with its paper, parameters and defaults")
    add("--format", choices=("text", "markdown", "json"), default="text", help="of --list and --methods")
    return parser


def _elsewhere(argv: list[str]) -> int:
    """This environment serves; compression has one of its own beside it, which takes over when it is there."""
    root = Path(sys.prefix).parent
    there = root / ".venvs/compress/bin/penstock"
    if there.is_file() and root != Path(sys.prefix):
        os.execv(there, [str(there), "compress", *argv])  # noqa: S606 - a program of ours, no shell
    _complain(
        "it needs its own environment, with torch: run `make compressor` once, then "
        ".venvs/compress/bin/penstock compress ... (without the repository: pip install 'penstock[compressor]')"
    )
    return 1


def _guarded(run: Callable[[], int]) -> int:
    """The outermost door: errors become one line, a stop says what becomes of the work."""
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        return run()
    except CompressorError as error:
        _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        _complain("stopped; what is done is kept, and the same command goes on from there")
        return STOPPED
    except BrokenPipeError:
        sys.stderr.close()  # whoever read us has seen enough
        return 1
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _complain("the disk is full: make room and run the same command again; what is done is kept")
            return NoSpaceError.exit_code
        _complain(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "))
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(*_: object) -> NoReturn:
    """Not by way of SIGINT, which is ignored where a shell put us into the background."""
    raise KeyboardInterrupt


def _command(name: str, argv: list[str]) -> int:
    module, attribute = COMMANDS[name]
    program: Callable[[list[str]], int] = getattr(importlib.import_module(module), attribute)
    return program(argv)


def _run(options: argparse.Namespace) -> int:
    if options.list or options.methods:
        from compressor import listing

        print((listing.recipes_as if options.list else listing.methods_as)(options.format), end="")  # noqa: T201
        return 0
    from compressor import pipeline
    from compressor.screen import Screen

    job = _job(options)
    if options.dry_run:
        from compressor.dry_run import forecast

        print(forecast(pipeline.plan(job)), end="")  # noqa: T201
        return 0
    return _tell(job, pipeline.compress(job, Screen(is_quiet=options.quiet)))


def _job(options: argparse.Namespace) -> "Job":
    import torch

    from compressor.checkpoint.publish import TakenError
    from compressor.pipeline import Job
    from compressor.recipe import load

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    _refuse_device(device)
    recipe = load(options.recipe, options.set)
    if options.calibration is not None:
        data = recipe.calibration.model_copy(update={"file": options.calibration})
        recipe = recipe.model_copy(update={"calibration": data})
    out = options.out or Path(f"{options.model.resolve().name}-{recipe.name}")
    if out.resolve() == options.model.resolve():
        raise TakenError(f"--out is the model itself, {options.model}: a parent is never replaced")
    return Job(
        model=options.model,
        recipe=recipe,
        out=out,
        engine=options.engine,
        through=options.through,
        device=device,
        dtype=getattr(torch, options.dtype or ("float32" if device == "cpu" else "bfloat16")),
        with_quality=not options.no_quality,
        is_forced=options.force,
        cache=Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock" / "parents",
    )


def _refuse_device(name: str) -> None:
    import torch

    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise CompressorError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from error


def _tell(job: "Job", manifest: dict[str, Any]) -> int:
    """The result on stdout, and the gate's verdict as exit code."""
    from compressor.checkpoint.card import size
    from compressor.checkpoint.describe import headline
    from compressor.errors import GateError

    told = [str(manifest["scheme"]), f"{manifest['bits_per_weight']:.2f} bits a weight", size(manifest["size_bytes"])]
    told += [f"{name} {value:.4g}" for name, value in headline(manifest).items()]
    print(f"{job.out}: {', '.join(told)}")  # noqa: T201
    gate = manifest.get("gate") or {}
    if gate.get("passed") is False:
        _complain(f"{job.out} was made and is kept, but {gate['reason']}")
        return GateError.exit_code
    return 0


def _complain(text: str) -> None:
    print(f"penstock compress: {text}", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
