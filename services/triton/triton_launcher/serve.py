"""The command line of tritonserver: explicit models, three ports, a clean end. The process becomes the server.

Becoming it (exec) rather than keeping it: signals and the exit code are then the server's own. SIGTERM lets running
requests finish for `grace_s`, then models are unloaded. What a server cannot notice by itself watch.py does, its child.
"""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from triton_launcher.errors import LauncherError
from triton_launcher.server import Server

_WATCH = Path(__file__).with_name("watch.py")


@dataclass(frozen=True)
class Listen:
    """Where it listens."""

    host: str
    grpc_port: int
    http_port: int
    metrics_port: int

    @property
    def http_url(self) -> str:
        """Where this machine reaches the HTTP port."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://[{host}]:{self.http_port}" if ":" in host else f"http://{host}:{self.http_port}"

    def require_free(self) -> None:
        """Raises LauncherError naming the first port that is taken: the server's own words are hard to find."""
        for name in ("grpc_port", "http_port", "metrics_port"):
            port = getattr(self, name)
            try:
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind((self.host, port))
            except OSError as error:
                flag = "--" + name.replace("_", "-")
                raise LauncherError(
                    f"cannot listen on {self.host}:{port}: {error.strerror}; choose another: {flag}"
                ) from error


def command(server: Server, repository: Path, models: tuple[str, ...], listen: Listen, grace_s: int) -> list[str]:
    """tritonserver's argv."""
    return [
        str(server.binary),
        f"--model-repository={repository}",
        f"--backend-directory={server.backends}",
        "--model-control-mode=explicit",
        *(f"--load-model={model}" for model in models),
        f"--http-address={listen.host}",
        f"--grpc-address={listen.host}",
        f"--metrics-address={listen.host}",
        f"--http-port={listen.http_port}",
        f"--grpc-port={listen.grpc_port}",
        f"--metrics-port={listen.metrics_port}",
        f"--exit-timeout-secs={grace_s}",
        "--log-warning=true",
        "--log-info=true",
    ]


def become(argv: list[str], environment: dict[str, str], http_url: str) -> None:
    """Replace this process. Raises LauncherError when the binary does not start at all."""
    sys.stdout.flush()
    subprocess.Popen([sys.executable, "-I", "-S", str(_WATCH), http_url], stdin=subprocess.DEVNULL)  # noqa: S603
    try:
        os.execve(argv[0], argv, environment)  # noqa: S606
    except OSError as error:
        raise LauncherError(f"cannot start {argv[0]}: {error.strerror}") from error
