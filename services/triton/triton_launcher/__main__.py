"""`penstock triton render | serve`: the command line, and the one place where failures become words and exit codes."""

import argparse
import os
import sys
from pathlib import Path

from triton_launcher.errors import LauncherError

EPILOG = """\
examples:
  penstock triton serve services/triton/repositories/cpu.yaml --venv .venvs/triton \\
      --checkpoint model_repo/checkpoints/starter
  penstock triton render services/triton/repositories/gpu.yaml --out /models
  penstock triton serve services/triton/repositories/gpu.yaml        inside NVIDIA's image, on a GPU

The YAML: services/triton/repositories/, explained in docs/engines/triton.md.
exit codes: 0 stopped on request, 1 it failed, 2 wrong file or arguments
"""
ROOT = Path(__file__).resolve().parents[3]
SHELF = ROOT / "model_repo" / "triton"


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        return _render(args) if args.command == "render" else _serve(args)
    except LauncherError as error:
        print(f"penstock triton: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _render(args: argparse.Namespace) -> int:
    from triton_launcher.render import render
    from triton_launcher.settings import read_repository

    repository = read_repository(args.repository, args.checkpoint, args.engine_dir)
    models = render(repository, SHELF, args.out, args.cache_dir)
    print(f"wrote {', '.join(models)} to {args.out}")  # noqa: T201
    return 0


def _serve(args: argparse.Namespace) -> int:
    from triton_launcher.render import render
    from triton_launcher.serve import Listen, become, command
    from triton_launcher.server import host_server, venv_server
    from triton_launcher.settings import read_repository, require_files

    repository = read_repository(args.repository, args.checkpoint, args.engine_dir)
    require_files(repository)
    scratch = args.cache_dir / "triton" / str(args.grpc_port)
    server = venv_server(args.venv.absolute(), scratch) if args.venv else host_server()
    listen = Listen(args.host, args.grpc_port, args.http_port, args.metrics_port)
    listen.require_free()
    out = (args.out or scratch / "models").absolute()
    models = render(repository, SHELF, out, args.cache_dir)
    become(command(server, out, models, listen, args.grace_s), server.environment(dict(os.environ)), listen.http_url)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="penstock triton",
        description="Render a Triton model repository from one small YAML, and serve it with the real tritonserver.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="render | serve")
    render = commands.add_parser("render", help="only write the model repository")
    serve = commands.add_parser("serve", help="write it and become tritonserver")
    for one in (render, serve):
        one.add_argument("repository", type=Path, help="the YAML, e.g. services/triton/repositories/cpu.yaml")
        one.add_argument(
            "--checkpoint", type=Path, help="over the file's own: folder with tokenizer.json, weights on CPU"
        )
        one.add_argument("--engine-dir", type=Path, help="over the file's own: what trtllm-build wrote (GPU)")
        one.add_argument(
            "--cache-dir", type=Path, default=Path.home() / ".cache/penstock", help="conversions, rendered repositories"
        )
        one.add_argument("--out", type=Path, required=one is render, help="where the model repository is written")
    serve.add_argument("--venv", type=Path, help="environment with nvidia-pytriton; left out: /opt/tritonserver")
    serve.add_argument("--host", default="127.0.0.1", help="address of all three ports (default: %(default)s)")
    serve.add_argument("--grpc-port", type=int, default=8001, help="default: %(default)s")
    serve.add_argument("--http-port", type=int, default=8000, help="default: %(default)s")
    serve.add_argument("--metrics-port", type=int, default=8002, help="default: %(default)s")
    serve.add_argument(
        "--grace-s", type=int, default=30, help="for running requests after SIGTERM (default: %(default)s)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
