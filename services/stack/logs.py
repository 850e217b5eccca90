"""What a process writes: cut into lines, kept on disk, the last ones kept in memory.

Apart from process.py because it must survive everything an engine can print (binary junk, lines without an end) and
everything a disk can do, and is tested without a process.
"""

import re
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

MAX_LINE_BYTES = 8192
MAX_FILE_BYTES = 16 * 1024 * 1024
TAIL_LINES = 20
RETRY_S = 30.0

_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


class LineSplitter:
    """Bytes in, printable lines out, empty ones left out; never holds more than MAX_LINE_BYTES."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        # A carriage return redraws a progress bar in place: each state is a line of its own.
        *whole, rest = (self._rest + data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")).split(b"\n")
        while len(rest) > MAX_LINE_BYTES:
            whole.append(rest[:MAX_LINE_BYTES])
            rest = rest[MAX_LINE_BYTES:]
        self._rest = rest
        pieces = (line[i : i + MAX_LINE_BYTES] for line in whole for i in range(0, len(line), MAX_LINE_BYTES))
        return [printable(piece) for piece in pieces]

    def flush(self) -> list[str]:
        rest, self._rest = self._rest, b""
        return [printable(rest)] if rest else []


def printable(line: bytes) -> str:
    """Text that cannot move the cursor, ring the bell or recolour a terminal."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", _ESCAPES.sub("", line.decode(errors="replace"))).rstrip()


class LogFile:
    """Appends to one file, turns it over at MAX_FILE_BYTES (one older kept), and outlives a disk that is full.

    `complain` is told once when writing stops working and once when it works again.
    """

    def __init__(self, path: Path, complain: Callable[[str], None], now: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._complain = complain
        self._now = now
        self._file: BinaryIO | None = None
        self._retry_at: float | None = None
        self._lost_bytes = 0

    def write(self, data: bytes) -> None:
        if self._retry_at is not None and self._now() < self._retry_at:
            self._lost_bytes += len(data)
            return
        try:
            file = self._file or self._open()
            if file.write(data) != len(data):
                raise OSError(None, "No space left on device")
            if file.tell() >= MAX_FILE_BYTES:
                self._turn_over()
        except OSError as error:
            self._fail(error, len(data))
        else:
            self._recovered()

    def close(self) -> None:
        if self._file:
            self._file.close()
            self._file = None

    def _open(self) -> BinaryIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab", buffering=0)
        assert self._file is not None
        return self._file

    def _turn_over(self) -> None:
        self.close()
        if self.path.is_file():
            self.path.replace(self.path.with_suffix(".log.1"))

    def _fail(self, error: OSError, size_bytes: int) -> None:
        self.close()
        self._lost_bytes += size_bytes
        if self._retry_at is None:
            self._complain(
                f"cannot write {self.path}: {error.strerror}; logs go on without it, retry every {RETRY_S:.0f} s"
            )
        self._retry_at = self._now() + RETRY_S

    def _recovered(self) -> None:
        if self._retry_at is not None:
            self._complain(f"writing {self.path} works again; {self._lost_bytes} bytes were not kept")
            self._retry_at, self._lost_bytes = None, 0


class ProcessLog:
    """One process's output on its way: the file gets the bytes, `forward` the lines, `tail` keeps the last ones."""

    def __init__(self, file: LogFile, forward: Callable[[list[str]], None]) -> None:
        self.file = file
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._forward = forward
        self._splitter = LineSplitter()

    def feed(self, data: bytes) -> None:
        self.file.write(data)
        self._emit(self._splitter.feed(data))

    def end(self) -> None:
        self._emit(self._splitter.flush())

    def mark(self, text: str) -> None:
        """A line of the stack's own, so that the file tells restarts apart."""
        self.file.write(f"--- penstock: {text}\n".encode())

    def _emit(self, lines: list[str]) -> None:
        self.tail.extend(lines)
        if lines:
            self._forward(lines)
