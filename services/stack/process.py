"""One process under its guard: start it, read what it writes, ask it to stop, wait for its end.

Apart from supervisor.py, which decides; here nothing is decided. The process lives in a session of its own, so the
terminal's Ctrl-C reaches only the stack, which stops things in order.
"""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from dataclasses import dataclass, field
from pathlib import Path

from stack.logs import ProcessLog

GUARD = Path(__file__).with_name("guard.py")
_KILL_PATIENCE_S = 10.0
_GUARD_POLL_S = 0.2


@dataclass(frozen=True)
class Spec:
    """Everything needed to run one process and to know when it is up."""

    name: str
    command: tuple[str, ...]
    env: dict[str, str] = field(repr=False)
    cwd: Path
    host: str = ""
    port: int = 0
    ready_port: int | None = None  # where ready_path is asked for, when not on `port`
    ready_path: str = "/health"
    ready_timeout_s: float = 300.0
    stop_signal: int = signal.SIGTERM
    grace_s: float = 15.0


class Child:
    def __init__(self, spec: Spec, log: ProcessLog) -> None:
        self.spec = spec
        self._log = log
        self._process: Process | None = None
        self._ended: asyncio.Task[int] | None = None

    async def start(self) -> int:
        """Returns the pid of the guard, which is also the session of everything below it."""
        guard = (sys.executable, "-I", "-S", str(GUARD))
        self._process = await asyncio.create_subprocess_exec(
            *guard, *self.spec.command, env=self.spec.env, cwd=self.spec.cwd,
            stdin=PIPE, stdout=PIPE, stderr=STDOUT, start_new_session=True,
        )  # fmt: skip
        self._log.mark(f"start {' '.join(self.spec.command)}")
        self._ended = asyncio.create_task(self._follow(self._process), name=f"{self.spec.name} output")
        return self._process.pid

    async def wait(self) -> int:
        """The exit code (128 + n for signal n), once the process and all its descendants are gone."""
        assert self._ended is not None
        return await asyncio.shield(self._ended)

    async def stop(self) -> None:
        """Ask, wait for the grace, kill. Returns when nothing is left. Safe to call at any time, more than once."""
        if self._ended is None:
            return
        self._order(f"stop {int(self.spec.stop_signal)} {self.spec.grace_s}")
        done, _ = await asyncio.wait({self._ended}, timeout=self.spec.grace_s + _KILL_PATIENCE_S)
        if not done:
            self.kill_session()
            await self._ended

    def kill(self) -> None:
        """Kill now, no grace."""
        self._order("kill")

    def kill_session(self) -> None:
        """The last resort: the guard itself is killed, and with it the session that it leads."""
        if self._process is not None:
            kill_session(self._process.pid)

    def _order(self, text: str) -> None:
        stdin = self._process.stdin if self._process else None
        if stdin is not None and not stdin.is_closing():
            stdin.write(text.encode() + b"\n")

    async def _follow(self, process: Process) -> int:
        assert process.stdout is not None
        watch = asyncio.create_task(_clear_up_after_a_killed_guard(process))
        while data := await process.stdout.read(65536):
            self._log.feed(data)
        self._log.end()
        code = await process.wait()
        await watch
        if process.stdin is not None:
            process.stdin.close()
        code = code if code >= 0 else 128 - code
        self._log.mark(f"end, {describe_exit(code)}")
        return code


async def _clear_up_after_a_killed_guard(process: Process) -> None:
    """What outlives a guard keeps the output pipe open, so the end of the output would never come."""
    while process.returncode is None:  # noqa: ASYNC110  (when wait() returns differs between Python versions)
        await asyncio.sleep(_GUARD_POLL_S)
    if process.returncode < 0:
        kill_session(process.pid)


def kill_session(session: int) -> None:
    """SIGKILL to every process of a session, by the session field of /proc/PID/stat (proc(5))."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
                if int(fields[3]) == session:
                    os.kill(int(entry.name), signal.SIGKILL)
            except OSError:
                continue


def describe_exit(code: int) -> str:
    if code == 127:
        return "exit code 127 (the program was not found)"
    if code <= 128:
        return f"exit code {code}"
    try:
        name = signal.Signals(code - 128).name
    except ValueError:
        return f"exit code {code}"
    hint = "; out of memory?" if name == "SIGKILL" else ""
    return f"killed by {name}{hint}"
