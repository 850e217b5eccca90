"""Starts the real tritonserver as `penstock triton serve` does, on free ports, and talks to it.

gRPC goes through tritonclient in a process of its own (triton_talk.py says why), HTTP through httpx.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import httpx
import pytest

from openvino_process import STARTER
from ports import free_ports

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venvs/triton"
REPOSITORIES = ROOT / "services/triton/repositories"
INSTALLED = [sys.executable, str(ROOT / "services/triton/install.py"), "--venv", str(VENV), "--check"]
Event = dict[str, Any]


def marks() -> list[Any]:
    """For a module whose tests start tritonserver."""
    missing = subprocess.run(INSTALLED, capture_output=True, check=False).returncode != 0
    reason = "the real tritonserver is not installed; `make triton` does it"
    return [pytest.mark.triton, pytest.mark.skipif(missing, reason=reason), pytest.mark.timeout(300)]


class RunningTriton:
    """A tritonserver that is ready."""

    def __init__(self, process: "subprocess.Popen[bytes]", ports: list[int]) -> None:
        self.process = process
        self.grpc_url = f"127.0.0.1:{ports[0]}"
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{ports[1]}", timeout=60)
        self._metrics_url = f"http://127.0.0.1:{ports[2]}/metrics"
        command = [sys.executable, str(ROOT / "tests/triton_talk.py")]
        self._talker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def close(self) -> None:
        """Only our side."""
        self.client.close()
        self._talker.kill()
        self._talker.communicate()

    def talk(self, *calls: Event) -> list[Event]:
        """Everything that came back, over all calls, in the order it came."""
        assert self._talker.stdin is not None
        assert self._talker.stdout is not None
        self._talker.stdin.write(json.dumps({"url": self.grpc_url, "calls": calls}) + "\n")
        self._talker.stdin.flush()
        events = []
        while "done" not in (said := json.loads(self._talker.stdout.readline())):
            events.append(said)
        assert said["done"] is None, said["done"]
        return events

    def ask(self, model: str, **inputs: Any) -> list[Event]:
        """One call."""
        return self.talk({"model": model, "inputs": inputs})

    def refusal(self, model: str, **inputs: Any) -> str:
        """The error of a call that is refused."""
        [event] = [event for event in self.ask(model, **inputs) if not _is_empty_end(event)]
        return str(event["error"])

    def text(self, model: str, **inputs: Any) -> str:
        """text_output of a whole answer."""
        return str(self.whole(model, **inputs)["text_output"][0])

    def whole(self, model: str, **inputs: Any) -> dict[str, Any]:
        """The outputs of the only response that carries any."""
        [event] = [event for event in self.ask(model, **inputs) if not _is_empty_end(event)]
        assert "outputs" in event, event
        return dict(event["outputs"])

    def generate(self, model: str, **body: Any) -> httpx.Response:
        return self.client.post(f"/v2/models/{model}/generate", json=body)

    def generate_stream(self, model: str, **body: Any) -> list[Event]:
        with self.client.stream("POST", f"/v2/models/{model}/generate_stream", json=body) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            return [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line]

    def requests(self, kind: str) -> float:
        """TensorRT-LLM's gauge of requests in the engine: active, scheduled, waiting, max."""
        wanted = ("nv_trt_llm_request_metrics{", f'request_type="{kind}"')
        lines = self.client.get(self._metrics_url).text.splitlines()
        [line] = [line for line in lines if all(part in line for part in wanted)]
        return float(line.rpartition(" ")[2])

    def wait_until_idle(self) -> None:
        deadline_s = time.monotonic() + 60
        while self.requests("active"):
            assert time.monotonic() < deadline_s, "the engine still works"
            time.sleep(0.05)


def _is_empty_end(event: Event) -> bool:
    return event.get("outputs") == {} and event["final"]


@contextlib.contextmanager
def running_triton(repository: str, folder: Path, *args: str) -> Iterator[RunningTriton]:
    """`repository` is a file of services/triton/repositories, or a path; whatever happens, nothing stays behind."""
    path = Path(repository) if "/" in repository else REPOSITORIES / repository
    ports = free_ports(3)
    flags = [f"--{name}-port={port}" for name, port in zip(("grpc", "http", "metrics"), ports, strict=True)]
    command = [sys.executable, "-m", "triton_launcher", "serve", str(path), f"--venv={VENV}"]
    command += [f"--checkpoint={STARTER}", f"--cache-dir={folder / 'cache'}", "--grace-s=5", *flags, *args]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        triton = RunningTriton(process, ports)
        try:
            _wait_until_ready(triton, log)
            yield triton
        finally:
            triton.close()
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_ready(triton: RunningTriton, log: IO[str]) -> None:
    deadline_s = time.monotonic() + 120
    while True:
        with contextlib.suppress(httpx.TransportError):
            if triton.client.get("/v2/health/ready").status_code == 200:
                return
        if triton.process.poll() is not None or time.monotonic() > deadline_s:
            log.seek(0)
            pytest.fail(f"tritonserver did not become ready:\n{log.read()[-6000:]}")
        time.sleep(0.05)
