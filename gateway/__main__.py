"""`penstock gateway serve|check|engines|key|schema`: flags -> settings -> server."""

import argparse
import functools
import gc
import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import uvicorn

from gateway.api.auth import new_key
from gateway.api.wire import WireProtocol
from gateway.app import App, create_app
from gateway.backends.base import Patience
from gateway.backends.capabilities import Adapters
from gateway.backends.fit import misfits
from gateway.backends.registry import backend_class, engine_kinds, make_backend
from gateway.backends.table import as_json, as_markdown, as_text, updated
from gateway.settings import ConfigError, DeploymentSettings, RpcSettings, ServerSettings, Settings, load
from gateway.telemetry.logs import set_up_logging

EXAMPLE = """\
example configuration:
  models:
    penstock-starter:               # the name clients ask for
      deployments:
        main:
          engine: openvino          # {kinds}
          replicas:
            a: {{url: "http://127.0.0.1:8101"}}
            b: {{url: "http://127.0.0.1:8102"}}

Every key, with its default and unit: `penstock gateway schema`, docs/gateway.md.
"""


_FLAGS = {"host": ("server", "host"), "port": ("server", "port"), "grpc_port": ("rpc", "port")}
"""Flag of `serve` -> what it overrides in the configuration."""


class Server(uvicorn.Server):
    """uvicorn, but: SIGTERM first turns /ready to 503, and every stop is clean and exits with 0."""

    def __init__(self, config: uvicorn.Config, app: App) -> None:
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._app.service.is_draining = True
        super().handle_exit(sig, frame)
        if self._app.rpc is not None:
            self._app.rpc.signalled(is_forced=self.force_exit)
        self._captured_signals.clear()  # do not raise the signal again once drained

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self._app.rpc is not None:
            print(f"gateway listening for gRPC on {self._app.rpc.address}", file=sys.stderr, flush=True)  # noqa: T201

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:  # a second Ctrl-C: uvicorn would leave the rest to the interpreter
            for task in self.server_state.tasks:
                task.cancel()
            await self.lifespan.shutdown()


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except ConfigError as error:
        print(f"penstock gateway: the configuration cannot be used:\n{error}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        return 130


def serve(args: argparse.Namespace) -> int:
    settings = _load(args)
    set_up_logging(settings.telemetry.log_level)
    app = create_app(settings)
    server = settings.server
    try:
        if settings.rpc.port:  # gRPC binds its port itself, and says less when it cannot
            _listen(settings.rpc).close()
    except OSError as error:
        print(  # noqa: T201
            f"penstock gateway: cannot listen for gRPC on {settings.rpc.host}:{settings.rpc.port}: {error.strerror}",
            file=sys.stderr,
        )
        return 1
    try:
        listener = _listen(server)
    except OSError as error:
        print(f"penstock gateway: cannot listen on {server.host}:{server.port}: {error.strerror}", file=sys.stderr)  # noqa: T201
        return 1
    config = uvicorn.Config(
        app.web,
        http=functools.partial(WireProtocol, app.wire),  # type: ignore[arg-type]
        loop="uvloop",
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        backlog=server.backlog,
        timeout_keep_alive=server.keep_alive_s,
        timeout_graceful_shutdown=server.drain_timeout_s,
    )
    host, port = listener.getsockname()[:2]
    print(f"gateway listening on http://{f'[{host}]' if ':' in host else host}:{port}", file=sys.stderr, flush=True)  # noqa: T201
    gc.collect()
    gc.freeze()  # what lives as long as the process need not be looked at again
    gc.set_threshold(20_000, 20, 50)  # requests leave few cycles behind; looking for them often costs more
    running = Server(config, app)
    running.run(sockets=[listener])
    return 0 if running.started else 1


def check(args: argparse.Namespace) -> int:
    settings = _load(args)
    for name, model in settings.models.items():
        for key, deployment in model.deployments.items():
            _try_backend(f"{args.config}: models.{name}.deployments.{key}", deployment)
            urls = ", ".join(replica.url for replica in deployment.replicas.values())
            print(f"{name} -> {key} ({deployment.engine}): {urls}")  # noqa: T201
    keys = len(settings.auth.keys)
    print(f"{args.config}: fine; {keys} API key{'' if keys == 1 else 's'}" + ("" if keys else ", open on loopback"))  # noqa: T201
    return 0


def _try_backend(where: str, deployment: DeploymentSettings) -> None:
    """Engines whose prompts or tokens are the gateway's business read the tokenizer. Raises ConfigError."""
    try:
        make_backend(deployment.engine, Patience(), deployment.checkpoint)
    except ConfigError as error:
        raise ConfigError(f"{where}.{error}") from None


def engines(args: argparse.Namespace) -> int:
    classes = [backend_class(kind) for kind in engine_kinds()]
    if args.update is not None:
        page = args.update.read_text("utf-8")
        args.update.write_text(updated(page, classes), "utf-8")
        return 0
    write = {"text": as_text, "markdown": as_markdown, "json": as_json}[args.format]
    print(write(classes), end="")  # noqa: T201
    return 0


def key(args: argparse.Namespace) -> int:
    secret, sha256 = new_key()
    print(f"key (give it to {args.name}; it cannot be shown again):\n  {secret}\n")  # noqa: T201
    print(f"configuration:\n  auth:\n    keys:\n      {args.name}: {{sha256: {sha256}}}")  # noqa: T201
    return 0


def schema(args: argparse.Namespace) -> int:  # noqa: ARG001
    print(json.dumps(Settings.model_json_schema(), indent=2))  # noqa: T201
    return 0


def _load(args: argparse.Namespace) -> Settings:
    overrides: dict[str, dict[str, object]] = {}
    for name, (section, key) in _FLAGS.items():
        if (value := getattr(args, name, None)) is not None:
            overrides.setdefault(section, {})[key] = value
    settings = load(args.config, overrides)
    faults = [f"{args.config}: models.{fault}" for fault in _faults(settings)]
    if faults:
        raise ConfigError("\n".join(faults))
    return settings


def _faults(settings: Settings) -> Iterator[str]:
    """Deployments that cannot work, each with its key."""
    kinds = engine_kinds()
    for name, model in settings.models.items():
        for key, deployment in model.deployments.items():
            where = f"{name}.deployments.{key}"
            if deployment.engine not in kinds:
                yield f"{where}.engine: no engine {deployment.engine!r}; there are: {', '.join(kinds)}"
                continue
            engine = backend_class(deployment.engine)
            if model.adapters and engine.capabilities.adapters is Adapters.NONE:
                yield f"{name}.adapters: the engine of its deployment {key!r} ({engine.kind}) has no adapters"
            for field, reason in misfits(engine, deployment):
                yield f"{where}.{field}: {reason}"


def _listen(server: ServerSettings | RpcSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    backlog = server.backlog if isinstance(server, ServerSettings) else None
    return socket.create_server((server.host, server.port or 0), family=family, backlog=backlog)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="penstock gateway",
        description="The OpenAI-compatible gateway in front of inference engines.",
        epilog=EXAMPLE.format(kinds=" | ".join(engine_kinds())),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("serve", help="serve until SIGTERM or Ctrl-C, then let running streams finish")
    run.add_argument("--config", type=Path, required=True, help="the configuration (YAML)")
    run.add_argument("--host", help="overrides server.host")
    run.add_argument("--port", type=int, help="overrides server.port; 0 picks a free one")
    run.add_argument("--grpc-port", type=int, help="overrides rpc.port: opens the gRPC door; 0 picks a free port")
    run.set_defaults(run=serve)
    look = commands.add_parser("check", help="say what a configuration means, or what is wrong with it")
    look.add_argument("config", type=Path, help="the configuration (YAML)")
    look.set_defaults(run=check)
    table = commands.add_parser("engines", help="what each engine can do: fields, structured outputs, checkpoints")
    table.add_argument(
        "--format", choices=["text", "markdown", "json"], default="text", help="for people, docs, programs"
    )
    table.add_argument("--update", type=Path, metavar="PAGE", help="write the tables between the markers of this page")
    table.set_defaults(run=engines)
    make = commands.add_parser("key", help="make an API key and the hash to configure")
    make.add_argument("name", nargs="?", default="client", help="whose key it is, as the access log will name it")
    make.set_defaults(run=key)
    commands.add_parser("schema", help="print the JSON schema of the configuration").set_defaults(run=schema)
    return parser


if __name__ == "__main__":
    sys.exit(main())
