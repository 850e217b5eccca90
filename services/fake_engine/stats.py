"""What tests ask afterwards: GET /_fake/stats. Control connections (/_fake/...) are not in these numbers."""

import hashlib
from collections import Counter, deque
from typing import Any

import msgspec

KEPT_REQUESTS = 100
KEPT_BODY_BYTES = 65_536
KEPT_PATHS = 200


class Stats:
    """`requests` = completed + failed + aborted + died + active: each generation request ends in one of them.

    completed: whole answer handed to the socket. failed: answered with an HTTP error. aborted: the client left.
    died: a scripted death. rejected ones (bad body, unknown model) are failed.
    """

    def __init__(self) -> None:
        self.connections_open = 0
        self.active = 0
        self._outcomes: dict[str, int] = {}
        self.reset()

    def reset(self) -> None:
        """Counters start again; what is open or active now stays."""
        self.requests = self.peak_active = self.active
        self._outcomes = dict.fromkeys(("completed", "failed", "aborted", "died"), 0)
        self.connections_total = self.connections_open
        self.bytes_received = self.bytes_sent = self.generated_tokens = 0
        self.paths: Counter[str] = Counter()
        self.weights: Counter[str] = Counter()
        self.last_requests: deque[dict[str, Any]] = deque(maxlen=KEPT_REQUESTS)

    def begin(self) -> None:
        self.requests += 1
        self.active += 1
        self.peak_active = max(self.peak_active, self.active)

    def end(self, outcome: str) -> None:
        self.active -= 1
        self._outcomes[outcome] += 1

    def count_path(self, method: str, path: str) -> None:
        key = f"{method} {path}"
        self.paths[key if key in self.paths or len(self.paths) < KEPT_PATHS else "other"] += 1

    def remember(self, method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> None:
        merged: dict[str, str] = {}
        for name, value in headers:
            merged[name] = f"{merged[name]}, {value}" if name in merged else value
        self.last_requests.append(
            {"method": method, "path": path, "headers": merged, "body": _shortened(body), "bytes": len(body)}
        )

    def to_json(self) -> bytes:
        return msgspec.json.encode(
            {
                "requests": self.requests,
                "active": self.active,
                "peak_active": self.peak_active,
                **self._outcomes,
                "generated_tokens": self.generated_tokens,
                "connections_open": self.connections_open,
                "connections_total": self.connections_total,
                "bytes_received": self.bytes_received,
                "bytes_sent": self.bytes_sent,
                "paths": dict(self.paths),
                "weights": dict(self.weights),
                "last_requests": [{**seen, "body": _for_reading(seen["body"])} for seen in self.last_requests],
            }
        )


def _shortened(body: bytes) -> bytes:
    """A large body's size and hash instead of itself: nobody's memory should be filled by it."""
    if len(body) <= KEPT_BODY_BYTES:
        return body
    return msgspec.json.encode({"size_bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()})


def _for_reading(body: bytes) -> Any:
    """JSON as it came, anything else as text."""
    try:
        msgspec.json.decode(body)
        return msgspec.Raw(body)
    except (msgspec.DecodeError, RecursionError):
        return body.decode("utf-8", "backslashreplace")
