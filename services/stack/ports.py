"""Which ports are free and who holds the others; apart because it reads the machine, not the configuration."""

import errno
import ipaddress
import os
import socket
from pathlib import Path

from stack.errors import StackError

FIRST_ENGINE_PORT = 8101


def require_free(host: str, port: int, hint: str) -> None:
    """Raise StackError when nothing could listen on host:port now; `hint` says how to choose another."""
    try:
        _bind(host, port)
    except OSError as error:
        raise StackError(_complaint(host, port, hint, error)) from error


class Claims:
    """Ports this stack has chosen and whose engines may listen only later: no other stack chooses them meanwhile.

    A claim is a socket of an abstract name, so it ends with the process, however that ends.
    """

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def free_ports(self, host: str, count: int, avoid: set[int]) -> list[int]:
        """The first `count` free ports from 8101 on, none of `avoid`, and claim them. Raises StackError."""
        found: list[int] = []
        for port in range(FIRST_ENGINE_PORT, 65536):
            if len(found) == count:
                return found
            if port not in avoid and _is_free(host, port) and self._claim(port):
                found.append(port)
        raise StackError(f"no {count} free ports from {FIRST_ENGINE_PORT} on {host}")

    def _claim(self, port: int) -> bool:
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0penstock-port-{port}")
        except OSError:
            claim.close()
            return False
        self._held.append(claim)
        return True

    def close(self) -> None:
        for claim in self._held:
            claim.close()


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def reachable(host: str) -> str:
    """The address on which this machine reaches what listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104


def url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _bind(host: str, port: int) -> None:
    family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, proto) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        probe.listen(1)


def _is_free(host: str, port: int) -> bool:
    try:
        _bind(host, port)
    except OSError:
        return False
    return True


def _complaint(host: str, port: int, hint: str, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        holder = _holder(port)
        return f"port {port} on {host} is taken{f' by {holder}' if holder else ''}; stop that, or {hint}"
    if error.errno == errno.EACCES:
        return f"port {port} on {host}: ports below 1024 need more rights; {hint}"
    return f"cannot listen on {host}:{port}: {error.strerror or error}; {hint}"


def _holder(port: int) -> str | None:
    """`python3 (pid 4711)`, where /proc lets us see it."""
    inodes = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(fd) in inodes for fd in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
        except OSError:
            continue
    return None


def _listening_inodes(port: int) -> list[str]:
    """Inodes of the sockets in state LISTEN (0A) on `port`; the tables are described in proc(5)."""
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = [row.split() for row in Path(table).read_text().splitlines()[1:]]
        except OSError:
            continue
        found += [row[9] for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port]
    return found
