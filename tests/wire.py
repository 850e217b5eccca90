"""HTTP on a bare socket, for claims about bytes: what was sent when, and how the connection ended.

Client libraries hide just that. Blocking, since the servers under test are processes of their own.
"""

import json
import socket
import time
from typing import Any, Literal, NamedTuple

CHAT = "/v1/chat/completions"
Ending = Literal["open", "closed", "reset"]


class Received(NamedTuple):
    """All bytes until the connection ended, or until `for_s` seconds passed and it was still open."""

    data: bytes
    ending: Ending

    @property
    def head(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[0]

    @property
    def body(self) -> bytes:
        """As on the wire, with chunk headers."""
        return self.data.partition(b"\r\n\r\n")[2]

    @property
    def status(self) -> int:
        return int(self.data.split(b" ", 2)[1])


def chat(fake: dict[str, Any] | None = None, text: str = "hello there", **fields: Any) -> dict[str, Any]:
    """A chat body; `fake` scripts the fake engine through the prompt."""
    prompt = text if fake is None else json.dumps({"fake": fake}, separators=(",", ":")) + " " + text
    return {"model": "fake", "messages": [{"role": "user", "content": prompt}], **fields}


def dial(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=60)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def send(sock: socket.socket, body: dict[str, Any] | bytes, path: str = CHAT, headers: str = "") -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: test\r\n{headers}content-length: {len(data)}\r\n\r\n"
    sock.sendall(head.encode() + data)


def receive(
    sock: socket.socket, for_s: float = 60.0, until: bytes | None = None, quiet_s: float | None = None
) -> Received:
    """Read to the connection's end, to the first sight of `until`, or for `for_s` seconds.

    `quiet_s`: also stop when nothing has come for so long since the last byte; the first may take `for_s`.
    """
    data = bytearray()
    end_s = time.monotonic() + for_s
    while until is None or until not in data:
        if data and quiet_s is not None:
            end_s = time.monotonic() + quiet_s
        left_s = end_s - time.monotonic()
        if left_s <= 0:  # also when there is always more to read
            break
        sock.settimeout(left_s)
        try:
            piece = sock.recv(65_536)
        except TimeoutError:
            return Received(bytes(data), "open")
        except ConnectionResetError:
            return Received(bytes(data), "reset")
        if not piece:
            return Received(bytes(data), "closed")
        data += piece
    return Received(bytes(data), "open")


def exchange(port: int, body: dict[str, Any] | bytes, path: str = CHAT, for_s: float = 60.0) -> Received:
    """One request on a connection of its own that asks to be closed after the answer."""
    with dial(port) as sock:
        send(sock, body, path, "connection: close\r\n")
        return receive(sock, for_s)


def dechunk(body: bytes) -> tuple[bytes, bool]:
    """The content of a chunked body, and whether its last chunk arrived."""
    content = bytearray()
    while body:
        line, found, rest = body.partition(b"\r\n")
        if not found:
            break
        size = int(line, 16)
        if size == 0:
            return bytes(content), True
        content += rest[:size]
        body = rest[size + 2 :]
    return bytes(content), False


def events(body: bytes) -> list[Any]:
    """The events of a chunked SSE body: parsed JSON, or the text where it is not JSON ([DONE], comments)."""
    return [_event(block) for block in dechunk(body)[0].decode().split("\n\n") if block]


def _event(block: str) -> Any:
    try:
        return json.loads(block.removeprefix("data: "))
    except ValueError:
        return block.removeprefix("data: ")
