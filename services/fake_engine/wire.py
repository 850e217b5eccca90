"""HTTP/1.1 as bytes: heads, framings, and scripted nonsense that no server should send."""

from dataclasses import dataclass
from http import HTTPStatus

from fake_engine.script import Junk

HUGE_HEADER_BYTES = 2**20
_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\nserver: fake-engine\r\n".encode()
    for status in HTTPStatus
}
EARLY_HINTS = b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def status_line(status: int) -> bytes:
    return _LINES.get(status) or b"HTTP/1.1 %d Unknown\r\nserver: fake-engine\r\n" % status


def header_lines(headers: dict[str, str]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class Framing:
    """One answer's head, how its parts are wrapped, and its end."""

    head: bytes
    is_chunked: bool
    ends_by_closing: bool
    end: bytes

    def wrap(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if self.is_chunked and data else data


def framing(kind: str, length_bytes: int | None, headers: dict[str, str], *, closes: bool, hints: bool) -> Framing:
    """`kind` chunked, length or close; the close kind needs the connection to be closed at the end."""
    fields = dict(headers)
    if kind == "length":
        fields["content-length"] = str(length_bytes)
    elif kind == "chunked":
        fields["transfer-encoding"] = "chunked"
    if closes or kind == "close":
        fields["connection"] = "close"
    head = (EARLY_HINTS if hints else b"") + status_line(200) + header_lines(fields) + b"\r\n"
    return Framing(head, kind == "chunked", kind == "close", b"0\r\n\r\n" if kind == "chunked" else b"")


def reply(status: int, body: bytes, content_type: str, headers: dict[str, str], *, closes: bool) -> bytes:
    """A whole plain answer."""
    fields = {"content-type": content_type, "content-length": str(len(body)), **headers}
    if closes:
        fields["connection"] = "close"
    return status_line(status) + header_lines(fields) + b"\r\n" + body


_JSON = "content-type: application/json\r\n"


def junk(kind: Junk, body: bytes) -> tuple[bytes, bool]:
    """Bytes of a broken answer around a good `body`, and whether the connection closes after them."""
    ok, size = status_line(200) + _JSON.encode(), len(body)
    if kind == "not_http":
        return b"\x16\x03\x01\x02\x00\x01this is not HTTP\r\n\r\n", True
    if kind == "bad_status_line":
        return b"HTTP/1.1 two hundred OK\r\ncontent-length: 2\r\n\r\n{}", True
    if kind == "length_too_long":
        return ok + b"content-length: %d\r\n\r\n%b" % (size + 100, body), True
    if kind == "length_too_short":
        return ok + b"content-length: %d\r\n\r\n%b" % (max(0, size - 10), body), False
    if kind == "two_lengths":
        return ok + b"content-length: %d\r\ncontent-length: %d\r\n\r\n%b" % (size, size + 1, body), True
    if kind == "both_lengths":
        chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (size, body)
        return ok + b"content-length: %d\r\ntransfer-encoding: chunked\r\n\r\n%b" % (size, chunked), True
    if kind == "huge_headers":
        return ok + b"x-huge: %b\r\ncontent-length: %d\r\n\r\n%b" % (b"h" * HUGE_HEADER_BYTES, size, body), False
    if kind == "bad_chunk":
        return ok + b"transfer-encoding: chunked\r\n\r\nzz\r\n%b\r\n0\r\n\r\n" % body, True
    broken = {"not_json": b'{"choices": [', "bad_utf8": b'{"choices": "\xff\xfe\x80"}', "empty": b""}[kind]
    return ok + b"content-length: %d\r\n\r\n%b" % (len(broken), broken), False
