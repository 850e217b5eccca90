"""The access log: one JSON line a request; never prompts, answers, keys or headers.

Lines are encoded on the request path and written by a thread, so that a slow or full disk, or a pipe
nobody reads, holds up no request: what cannot be written is counted and dropped.
"""

import json
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO

BUFFER_LINES = 100_000


class AccessLog:
    """Writes lines to `path`, or to standard output when it is None. `on_lost(lines)` counts losses."""

    def __init__(self, path: str | None, on_lost: Callable[[int], None]) -> None:
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._on_lost = on_lost
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640) if path else sys.stdout.fileno()
        self._owns_fd = path is not None
        self._thread = threading.Thread(target=self._write_all, name="access-log", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        """Queue one line (without its newline)."""
        if self._lines.qsize() < BUFFER_LINES:
            self._lines.put(line)
        else:
            self._on_lost(1)

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what is queued, then stop."""
        self._lines.put(None)
        self._thread.join(timeout_s)
        if self._owns_fd and not self._thread.is_alive():
            os.close(self._fd)

    def _write_all(self) -> None:
        while True:
            line = self._lines.get()
            batch = []
            while line is not None:
                batch.append(line)
                if len(batch) >= 512 or self._lines.empty():
                    break
                line = self._lines.get()
            self._write_batch(batch)
            if line is None:
                return

    def _write_batch(self, batch: list[bytes]) -> None:
        data = b"".join(line + b"\n" for line in batch)
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:  # a full disk, a closed pipe: the requests go on
            self._on_lost(len(batch))


class JsonFormatter(logging.Formatter):
    """The gateway's own messages in the same shape as its access lines."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def set_up_logging(level: str, stream: TextIO = sys.stderr) -> None:
    """Send the gateway's and uvicorn's messages to `stream` as JSON lines."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("uvicorn.error").setLevel("WARNING")
    logging.raiseExceptions = False  # a full disk under stderr must not print tracebacks into it
