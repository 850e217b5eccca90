"""A client on a bare socket that keeps its connection: sends bytes as told, reads one answer at a time.

Apart from tests/wire.py, which reads a connection to its end: here the claims are about what comes after.
"""

import json
import socket
import time
from types import TracebackType
from typing import Any, NamedTuple

CHAT = "/v1/chat/completions"


class Answer(NamedTuple):
    """`headers` by lower-case name; `is_whole`: it ended as its framing says."""

    status: int
    headers: dict[str, str]
    body: bytes
    is_whole: bool

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error of the answer or of its last event; AssertionError when it is not in OpenAI's shape."""
        found = self.json if self.body.startswith(b"{") else self.events[-2]
        error: dict[str, Any] = found["error"]
        assert found.keys() == {"error"}
        assert error.keys() == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str)
        assert isinstance(error["type"], str)
        return error

    @property
    def events(self) -> list[Any]:
        """Parsed events of a stream; `[DONE]` stays text. AssertionError when the last one is incomplete."""
        assert self.body.endswith(b"\n\n"), f"half an event was relayed: {self.body[-200:]!r}"
        blocks = [block.removeprefix("data: ") for block in self.body.decode().split("\n\n")[:-1]]
        return [json.loads(block) if block.startswith("{") else block for block in blocks]

    @property
    def text(self) -> str:
        """The content of a chat answer, streamed or not."""
        if self.body.startswith(b"{"):
            return str(self.json["choices"][0]["message"]["content"])
        chunks = [event for event in self.events if isinstance(event, dict) and event.get("choices")]
        return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


class Peer:
    """One connection. `receive_bytes`: a small receive buffer, so that who does not read soon blocks the sender."""

    def __init__(self, port: int, *, receive_bytes: int | None = None) -> None:
        self.sock = socket.socket()
        if receive_bytes is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.sock.settimeout(60)
        try:
            self.sock.connect(("127.0.0.1", port))
        except OSError:
            self.sock.close()
            raise
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._data = b""

    def send(self, data: bytes) -> "Peer":
        self.sock.sendall(data)
        return self

    def chat(self, fake: dict[str, Any] | None = None, *, headers: str = "", **fields: Any) -> "Peer":
        return self.send(chat_request(fake, headers=headers, **fields))

    def wait_for(self, text: bytes, timeout_s: float = 60.0) -> None:
        """Until `text` has arrived; AssertionError when the connection ends before."""
        end_s = time.monotonic() + timeout_s
        while text not in self._data:
            assert self._more(end_s), f"the connection ended with {self._data[-300:]!r}"

    def answer(self, timeout_s: float = 60.0, *, to: str = "POST") -> Answer:
        """The next answer. AssertionError when none came."""
        end_s = time.monotonic() + timeout_s
        while b"\r\n\r\n" not in self._data:
            assert self._more(end_s), f"no answer: {self._data[:300]!r}"
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        status = int(first.split()[1])
        assert first.startswith("HTTP/1.1 ")
        if status < 200 or to == "HEAD":
            return Answer(status, headers, b"", True)
        if "chunked" in headers.get("transfer-encoding", ""):
            return Answer(status, headers, *self._chunked(end_s))
        if "content-length" not in headers:
            while self._more(end_s):
                pass
            body, self._data = self._data, b""
            return Answer(status, headers, body, True)
        size = int(headers["content-length"])
        while len(self._data) < size and self._more(end_s):
            pass
        body, self._data = self._data[:size], self._data[size:]
        return Answer(status, headers, body, len(body) == size)

    def ending(self, timeout_s: float = 60.0) -> str:
        """How the connection ends: closed, reset, or open when it does not within `timeout_s`. Nothing may come."""
        self.sock.settimeout(timeout_s)
        try:
            data = self._data or self.sock.recv(65_536)
        except TimeoutError:
            return "open"
        except ConnectionError:
            return "reset"
        assert not data, f"unasked: {data[:300]!r}"
        return "closed"

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _chunked(self, end_s: float) -> tuple[bytes, bool]:
        body = bytearray()
        while True:
            while b"\r\n" not in self._data:
                if not self._more(end_s):
                    return bytes(body), False
            line, _, self._data = self._data.partition(b"\r\n")
            size = int(line, 16)
            while len(self._data) < size + 2:
                if not self._more(end_s):
                    return bytes(body + self._data[:size]), False
            body += self._data[:size]
            assert self._data[size : size + 2] == b"\r\n"
            self._data = self._data[size + 2 :]
            if size == 0:
                return bytes(body), True

    def _more(self, end_s: float) -> bool:
        left_s = end_s - time.monotonic()
        if left_s <= 0:  # also when there is always more to read
            raise TimeoutError("more was to come than the time allowed")
        self.sock.settimeout(left_s)
        try:
            data = self.sock.recv(262_144)
        except ConnectionError:
            return False
        self._data += data
        return bool(data)


def chat_body(fake: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """A chat body; `fake` scripts the fake engine through the prompt."""
    prompt = "hello" if fake is None else json.dumps({"fake": fake}) + " hello"
    return {"model": "m", "messages": [{"role": "user", "content": prompt}], **fields}


def chat_request(fake: dict[str, Any] | None = None, *, headers: str = "", **fields: Any) -> bytes:
    return post(json.dumps(chat_body(fake, **fields)).encode(), headers=headers)


def post(body: bytes, path: str = CHAT, *, headers: str = "", version: str = "1.1") -> bytes:
    head = f"POST {path} HTTP/{version}\r\nhost: t\r\n{headers}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def get(path: str, *, method: str = "GET", headers: str = "") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nhost: t\r\n{headers}\r\n".encode()
