"""Runs one command and sees to it that nothing of it stays: `python -I -S guard.py COMMAND ...`, its orders on stdin.

Apart from the stack and standard library only, because it must outlive it: when the stack is killed -9, the pipe on
stdin ends and the guard clears up. It is a child subreaper (prctl(2)), so every descendant, also one that forked twice
or made a session of its own, stays below it; "no children left" means "nothing left".

Orders, one a line: `stop SIGNAL_NUMBER GRACE_S` asks the command politely, kills after the grace; `kill` kills now.
Exit code: the command's own, 128 + n for signal n.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
ORPHANED_GRACE_S = 3.0  # for an engine whose stack has died
STRAY_GRACE_S = 2.0  # for descendants that outlive the command itself
TICK_S = 0.05
FOREVER_S = 3600.0


class Guard:
    def __init__(self, command: list[str]) -> None:
        self._wake_r, wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(wake_w, False)
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        # Handlers and not SIG_IGN: an ignored signal would stay ignored in the command.
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _nothing)
        self._orders = b""
        self._orders_open = True
        self._kill_at: float | None = None
        self._told: set[int] = set()
        self._status: int | None = None
        self._pid = _spawn(command)

    def run(self) -> int:
        while self._reap():
            if self._status is not None:
                self._clear_strays()
            if self._kill_at is not None and time.monotonic() >= self._kill_at:
                self._signal_children(signal.SIGKILL)
            self._wait()
        return os.waitstatus_to_exitcode(self._status or 0)

    def _reap(self) -> bool:
        """Collect the dead; False once no child is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._pid:
                self._status = status

    def _clear_strays(self) -> None:
        if self._kill_at is None:
            self._kill_at = time.monotonic() + STRAY_GRACE_S
        self._kill_at = min(self._kill_at, time.monotonic() + STRAY_GRACE_S)
        for pid in set(_children()) - self._told:
            self._told.add(pid)
            _kill(pid, signal.SIGTERM)

    def _signal_children(self, number: int) -> None:
        # Grandchildren become children when their parent dies, and get theirs on the next turn.
        for pid in _children():
            _kill(pid, number)

    def _wait(self) -> None:
        busy = self._kill_at is not None
        sources = [self._wake_r, 0] if self._orders_open else [self._wake_r]
        ready, _, _ = select.select(sources, [], [], TICK_S if busy else FOREVER_S)
        if self._wake_r in ready:
            os.read(self._wake_r, 4096)
        if 0 in ready:
            self._take_orders()

    def _take_orders(self) -> None:
        data = os.read(0, 4096)
        if not data:
            self._orders_open = False
            self._stop(signal.SIGTERM, ORPHANED_GRACE_S)
            return
        *lines, self._orders = (self._orders + data).split(b"\n")
        for line in lines:
            word, *args = line.split()
            if word == b"kill":
                self._kill_at = time.monotonic()
            elif word == b"stop":
                self._stop(int(args[0]), float(args[1]))

    def _stop(self, number: int, grace_s: float) -> None:
        deadline = time.monotonic() + grace_s
        self._kill_at = deadline if self._kill_at is None else min(self._kill_at, deadline)
        if self._status is None:
            _kill(self._pid, number)


def _spawn(command: list[str]) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    guard = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # should the guard itself be killed
        if os.getppid() != guard:
            os._exit(125)
        signal.set_wakeup_fd(-1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execvp(command[0], command)  # noqa: S606  (what a guard is for)
    except OSError as error:
        sys.stderr.write(f"cannot run {command[0]}: {error.strerror}\n")
        sys.stderr.flush()
    finally:
        os._exit(127)


def _children() -> list[int]:
    """Direct children of this process, by the parent field of /proc/PID/stat (proc(5))."""
    me, found = os.getpid(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == me:
                found.append(int(entry.name))
    return found


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _nothing(*_: object) -> None:
    """Only wakes select()."""


if __name__ == "__main__":
    code = Guard(sys.argv[1:]).run()
    sys.exit(code if code >= 0 else 128 - code)
