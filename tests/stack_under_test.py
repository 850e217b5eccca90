"""Starts a real `penstock up` in a folder of its own and watches every process of it, for the test_stack_*.py files.

Every process is marked by an environment variable, which it cannot shed by forking, by a session of its own or by
losing its parent: what still carries the mark, or lives in a session of one that did, was left behind.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MARK = "PENSTOCK_TEST_MARK"
PATIENCE_S = 60.0


class RunningStack:
    """One `penstock up ARGS` (or any `command`), its output so far, and its marked processes."""

    def __init__(
        self, folder: Path, *args: str, command: list[str] | None = None, env: dict[str, str] | None = None
    ) -> None:
        self.mark = uuid.uuid4().hex
        self.run_dir = folder / "run"
        self.base_url = self.rpc = ""
        self._lines: list[str] = []
        self._sessions: set[int] = set()
        command = command or [sys.executable, "-m", "stack", *args, "--run-dir", str(self.run_dir)]
        self.process = subprocess.Popen(
            command, cwd=folder, env=os.environ | {"PYTHONUNBUFFERED": "1", MARK: self.mark} | (env or {}),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        return "\n".join(self._lines)

    def wait_for(self, text: str, times: int = 1, patience_s: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + patience_s
        while self.output.count(text) < times:
            assert time.monotonic() < deadline, f"no {text!r} in:\n{self.output}"
            assert self.process.poll() is None or self._reader.is_alive(), f"ended without {text!r}:\n{self.output}"
            time.sleep(0.02)

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def signal_group(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def exit_code(self) -> int:
        self.marked()
        code = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        assert not self._tracebacks(), self.output
        return code

    def _tracebacks(self) -> list[str]:
        """Of our own programs: an engine's last words, while it is stopped, are its own affair."""
        speakers = {line: line.partition(" | ")[0].strip() if " | " in line else "" for line in self._lines}
        return [line for line in self._lines if "Traceback" in line and speakers[line] in ("", "gateway")]

    def marked(self) -> dict[int, str]:
        """Command lines, by pid, of every living process that this stack brought about."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                session = int((entry / "stat").read_bytes().rpartition(b")")[2].split()[3])
                if f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    self._sessions.add(session)
                # A process that sets its title (vLLM's) overwrites the mark, but stays in its guard's session.
                if session in self._sessions:
                    found[int(entry.name)] = (
                        (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    )
        return {pid: line for pid, line in found.items() if line}  # a zombie has none

    def pids(self, part: str) -> list[int]:
        return [pid for pid, command in self.marked().items() if part in command and "guard.py" not in command]

    def assert_nothing_stays(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while left := self.marked():
            assert time.monotonic() < deadline, f"left behind: {left}\n{self.output}"
            time.sleep(0.05)

    def log(self, name: str) -> bytes:
        return (self.run_dir / "logs" / f"{name}.log").read_bytes()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line.decode(errors="replace").rstrip("\n"))


@contextlib.contextmanager
def stack_of(
    folder: Path, *args: str, command: list[str] | None = None, env: dict[str, str] | None = None
) -> Iterator[RunningStack]:
    """A running stack; whatever happens, nothing of it is left after the block."""
    stack = RunningStack(folder, *args, command=command, env=env)
    try:
        yield stack
    finally:
        for pid in [stack.process.pid, *stack.marked()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        stack.process.wait(PATIENCE_S)
        assert stack.process.stdout is not None
        stack._reader.join(PATIENCE_S)
        stack.process.stdout.close()


def write_stack(
    folder: Path, port: int, *, shell: str = "", engine: str = "", gateway: str = "", restart: str = ""
) -> Path:
    """A stack of one fake engine. `shell` runs first in the engine's process, $1 is its folder, $2 its port."""
    (folder / "checkpoint").mkdir(exist_ok=True)
    (folder / "checkpoint" / "config.json").write_text("{}")
    serve = 'exec "$3" -m fake_engine --host 127.0.0.1 --port "$2" --model fake'
    (folder / "script.sh").write_text(f"{shell}\n{serve}\n")
    (folder / "profile.yaml").write_text(
        "engine: vllm\ndescription: for tests\n"
        f'command: ["sh", "{folder}/script.sh", "{{checkpoint}}", "{{port}}", "{{python}}"]\n'
        "ready: {path: /health, timeout_s: 30}\nstop: {signal: SIGTERM, grace_s: 5}\n"
    )
    path = folder / "stack.yaml"
    path.write_text(
        f"gateway: {{server: {{port: {port}}}{', ' + gateway if gateway else ''}}}\n"
        "engines:\n"
        f"  fake: {{profile: ./profile.yaml, checkpoint: checkpoint, model: fake{', ' + engine if engine else ''}}}\n"
        f"restart: {{backoff_s: 0.1{', ' + restart if restart else ''}}}\n"
    )
    return path


def ask(port: int, prompt: str = "hello", key: str | None = None) -> bytes:
    """The body of one chat completion; raises urllib.error.HTTPError for anything but 200."""
    import json

    body = json.dumps({"model": "fake", "messages": [{"role": "user", "content": prompt}]}).encode()
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", body, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        data: bytes = answer.read()
        return data
