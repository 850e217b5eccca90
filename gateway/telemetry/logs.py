"""The access log: one JSON line a request; never prompts, answers, keys or headers.

Lines gather on the event loop and go to a thread a few times a second, so that a slow or full disk, or a
pipe nobody reads, holds up no request: what cannot be written is counted and dropped.
"""

import asyncio
import json
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO

FLUSH_S = 0.1
BATCHES_LIMIT = 600
"""A minute of batches may wait for a disk that hangs."""


class AccessLog:
    """Writes lines to `path`, or to standard output when it is None. `on_lost(lines)` counts losses.

    Raises OSError when the file cannot be opened.
    """

    def __init__(self, path: str | None, on_lost: Callable[[int], None]) -> None:
        self._lines: list[bytes] = []
        self._batches: queue.SimpleQueue[list[bytes] | None] = queue.SimpleQueue()
        self._on_lost = on_lost
        self._fd = _open(path) if path else sys.stdout.fileno() if sys.stdout else -1  # started without: all is lost
        self._owns_fd = path is not None
        self._thread = threading.Thread(target=self._write_batches, name="access-log", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        """Queue one line (without its newline). Called on the event loop."""
        if not self._lines:
            asyncio.get_running_loop().call_later(FLUSH_S, self._hand_over)
        self._lines.append(line)

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what is queued, then stop."""
        self._hand_over()
        self._batches.put(None)
        self._thread.join(timeout_s)
        if self._owns_fd and not self._thread.is_alive():
            os.close(self._fd)

    def _hand_over(self) -> None:
        lines, self._lines = self._lines, []
        if self._batches.qsize() < BATCHES_LIMIT:
            self._batches.put(lines)
        else:
            self._on_lost(len(lines))

    def _write_batches(self) -> None:
        while (lines := self._batches.get()) is not None:
            data = b"".join([line + b"\n" for line in lines])
            try:
                while data:
                    data = data[os.write(self._fd, data) :]
            except OSError:  # a full disk, a closed pipe: the requests go on
                self._on_lost(len(lines))


def _open(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)


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
