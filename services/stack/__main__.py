"""`penstock up`: the command line, the environment, and the one place where failures become words and exit codes."""

import argparse
import asyncio
import hashlib
import os
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stack.plan import Place
    from stack.settings import StackFile

EPILOG = """\
examples:
  penstock up stack.yaml                          everything that the file says
  penstock up --engine openvino                   the starter model on the embedded engine, no file needed
  penstock up --engine vllm --model my/checkpoint --port 8001
  penstock up --check stack.yaml                  read it, say what would run, start nothing

With a host that other machines reach, keys are required: export PENSTOCK_API_KEY=sk-$(openssl rand -hex 24).
It is handed to the gateway only as its SHA-256. The file's format: docs/stack.md.

exit codes: 0 stopped on request, 1 could not start or had to give up, 2 wrong file or arguments,
130 killed by a second Ctrl-C
"""
STARTER = "model_repo/checkpoints/starter"
STARTER_NAME = "penstock-starter"


def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if bool(args.stack) == bool(args.engine):
        parser.error("give either a stack file or --engine")
    if args.stack and (args.model or args.name or args.engine_arg or args.replicas != 1):
        parser.error(
            "--model --name --replicas --engine-arg belong to --engine; in a stack file: engines.NAME.checkpoint ..."
        )

    from stack.errors import StackError

    try:
        return _up(args)
    except StackError as error:
        print(f"penstock up: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _up(args: argparse.Namespace) -> int:
    from stack import plan
    from stack.console import Screen
    from stack.run import Stack

    file, place = _from_file(args) if args.stack else _quick(args)
    address = plan.gateway_address(file, args.host, args.port)
    file = plan.with_rpc(file, address[0], args.grpc_port)
    environ = dict(os.environ)
    key = environ.get(plan.API_KEY_VARIABLE) or None
    if args.check:
        return _check(file, place, address, key)
    stack = Stack(file, place, address, environ, key, Screen(logs=args.logs))
    return asyncio.run(stack.run())


def _from_file(args: argparse.Namespace) -> "tuple[StackFile, Place]":
    from stack.errors import StackError
    from stack.files import read_stack
    from stack.plan import Place

    path = Path(args.stack)
    if path.is_dir():
        raise StackError(f"{path} is a folder; name the file in it", 2)
    root, file = _root(), read_stack(path)
    # Two files of one name in different folders are two stacks.
    mark = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:6]
    run = args.run_dir or root / ".cache" / "stack" / (file.name or f"{path.stem}-{mark}")
    return file, Place(root=root, base=path.resolve().parent, run=run.absolute())


def _quick(args: argparse.Namespace) -> "tuple[StackFile, Place]":
    """The stack file that --engine and --model stand for."""
    from stack.errors import StackError
    from stack.plan import Place
    from stack.settings import Engine, StackFile

    root = _root()
    starter = root / STARTER
    checkpoint = args.model or str(starter)
    if not args.model and not starter.exists():
        raise StackError(
            f"the starter model is not in {starter}: `make starter-model` trains it, --model names another"
        )
    name = "engine" if args.engine.endswith((".yaml", ".yml")) else args.engine.split("/")[0].replace("_", "-")
    model = args.name or (STARTER_NAME if Path(checkpoint).resolve() == starter else None)
    engine = Engine(
        profile=args.engine, checkpoint=checkpoint, model=model, args=args.engine_arg, replicas=args.replicas
    )
    run = args.run_dir or root / ".cache" / "stack" / f"serve-{args.port or 8000}"
    return StackFile(engines={name: engine}), Place(root=root, base=Path.cwd(), run=run.absolute())


def _check(file: "StackFile", place: "Place", address: tuple[str, int], key: str | None) -> int:
    """Print the plan: one line a process, and what the gateway will be told."""
    import yaml

    from stack import plan
    from stack.ports import Claims

    engines = plan.served_engines(file, place)
    with closing(Claims()) as claims:
        on_ports = plan.choose_ports(engines, address, claims, plan.rpc_port(file))
    config = plan.gateway_config(file, engines, address, on_ports, key)
    for engine in engines:
        for spec in plan.replica_specs(engine, place, on_ports[engine.name], {}):
            print(f"{spec.name}: {engine.model} at {spec.host}:{spec.port}\n  {' '.join(spec.command)}")  # noqa: T201
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    print(f"gateway: {address[0]}:{address[1]}, told:\n  " + text.replace("\n", "\n  ").rstrip(), flush=True)  # noqa: T201
    return _judged_by_gateway(text)


def _judged_by_gateway(config: str) -> int:
    """`penstock gateway check` on the generated configuration; its exit code."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        file.write(config)
        file.flush()
        command = [sys.executable, "-m", "gateway", "check", file.name]
        return subprocess.run(command, cwd=_root(), stdout=subprocess.DEVNULL, check=False).returncode  # noqa: S603


def _root() -> Path:
    """The checkout: profiles lie in its services/, beside this package."""
    return Path(__file__).resolve().parents[2]


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: a number from 1 to 65535 is meant")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError(f"{text!r}: a number from 1 to 64 is meant")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="penstock up",
        description="Start engines and the gateway on this machine, wait until they answer, stop them cleanly.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("stack", nargs="?", help="a stack file, e.g. stack.yaml")
    parser.add_argument("--check", action="store_true", help="read everything, print the plan, start nothing")
    parser.add_argument(
        "--engine", metavar="E", help="instead of a file: openvino, vllm, vllm/tensor-parallel, or a profile's path"
    )
    parser.add_argument(
        "--model", metavar="M", help="with --engine: a checkpoint's path or a hub id; default: the starter model"
    )
    parser.add_argument(
        "--name", metavar="N", help="with --engine: the public model name; default: the checkpoint's own"
    )
    parser.add_argument(
        "--replicas", type=_count, default=1, metavar="N", help="with --engine: how many processes of it"
    )
    parser.add_argument(
        "--engine-arg",
        action="append",
        default=[],
        metavar="ARG",
        help="with --engine: one more argument for it; repeatable, --engine-arg=--x",
    )
    parser.add_argument("--host", help="where the gateway listens; default: the file's, else 127.0.0.1")
    parser.add_argument("--port", type=_port, help="default: the file's, else 8000")
    parser.add_argument("--grpc-port", type=_port, help="also open the gateway's gRPC door there (docs/grpc.md)")
    parser.add_argument(
        "--run-dir",
        type=Path,
        metavar="DIR",
        help="for logs and the generated gateway.yaml; default: .cache/stack/NAME",
    )
    parser.add_argument(
        "--logs",
        choices=("auto", "all", "none"),
        default="auto",
        help="on the screen: auto = once ready (default), all, none. Files get all",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
