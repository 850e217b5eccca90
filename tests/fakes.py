"""Start a fake engine as a process of its own, on a free port, and be sure that it is gone afterwards.

with start_fake("--itl", "0.01") as fake:
    fake.script({"error": {"status": 503}, "times": 1})
    ...                                        # talk to fake.url
    assert fake.stats()["requests"] == 2
"""

import contextlib
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from types import TracebackType
from typing import Any

READY = "fake engine ready on "


class FakeHandle:
    """A running fake engine. Its control methods block: they take a millisecond, also inside async tests."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url
        self.port = int(url.rpartition(":")[2])

    def script(self, fields: dict[str, Any] | list[dict[str, Any]]) -> None:
        """Script all requests, or the next `times`; a list is played in order. AssertionError if it is refused."""
        self._call("POST", "script", fields)

    def reset_script(self) -> None:
        self._call("DELETE", "script")

    def stats(self) -> dict[str, Any]:
        answer: dict[str, Any] = self._call("GET", "stats")
        return answer

    def reset_stats(self) -> None:
        self._call("DELETE", "stats")

    def health(self, status: int) -> None:
        self._call("POST", "health", {"status": status})

    def adapters(self, **statuses: int) -> None:
        """What the routes of adapters answer: `load_status`, `unload_status`; nothing given: what is right."""
        self._call("POST", "adapters", statuses)

    def wait(self, condition: Callable[[dict[str, Any]], bool], timeout_s: float = 60.0) -> dict[str, Any]:
        """The first stats that meet `condition`; AssertionError with the last ones when none do in time.

        It blocks: in an async test whose own tasks must go on meanwhile, run it by `asyncio.to_thread`.
        """
        deadline_s = time.monotonic() + timeout_s
        while not condition(stats := self.stats()):
            assert time.monotonic() < deadline_s, f"the fake engine never got there: {stats}"
            time.sleep(0.01)
        return stats

    def stop(self) -> int:
        """SIGTERM, and SIGKILL if that does not help; the exit code."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
        self._close_pipe()
        return self.process.returncode

    def kill(self) -> None:
        """SIGKILL: the machine went away."""
        self.process.kill()
        self.process.wait()
        self._close_pipe()

    def __enter__(self) -> "FakeHandle":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def _close_pipe(self) -> None:
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _call(self, method: str, name: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/_fake/{name}", data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"/_fake/{name}: {error.read().decode()}") from None


def start_fake(*args: str, port: int = 0, wait: bool = True) -> FakeHandle:
    """Start `fake_engine` with `args`. `port`: a fixed one, to come back after a death.

    `wait=False` with a fixed port returns at once (for --startup-delay-s). RuntimeError when it does not start.
    """
    command = [sys.executable, "-m", "fake_engine", "--port", str(port), *args]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if not wait:
        assert port, "without waiting there is no line to read the port from: give one"
        return FakeHandle(process, f"http://127.0.0.1:{port}")
    line = ""
    with contextlib.suppress(KeyboardInterrupt):
        line = process.stdout.readline()
    if not line.startswith(READY):
        process.kill()
        process.wait()
        process.stdout.close()
        raise RuntimeError(f"the fake engine did not start: {' '.join(command)}: {line!r}")
    return FakeHandle(process, line.removeprefix(READY).strip())
