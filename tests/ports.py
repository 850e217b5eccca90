"""Free ports for servers that must be told one.

Not what the kernel hands out by itself (from 32768 on): such a port would be given to somebody else, a client's
connection even, in the seconds before its server binds it.
"""

import contextlib
import random
import socket

_RANGE = range(20_000, 32_000)


def free_port() -> int:
    (port,) = free_ports(1)
    return port


def free_ports(count: int) -> list[int]:
    """`count` different ones, that nobody listens on."""
    ports: list[int] = []
    with contextlib.ExitStack() as probes:
        for port in random.sample(_RANGE, len(_RANGE)):
            probe = probes.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                ports.append(port)
            if len(ports) == count:
                return ports
    raise RuntimeError(f"no {count} free ports in {_RANGE}")
