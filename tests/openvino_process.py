"""Starts the real embedded engine as a process on a free port, and stops it."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import httpx
import pytest

from ports import free_port
from tiny_checkpoints import write_checkpoint

ROOT = Path(__file__).resolve().parents[1]
STARTER = ROOT / "model_repo/checkpoints/starter"
NAME = "penstock-starter"


class RunningEngine:
    """An engine that is ready. ``url`` has no trailing slash; ``client`` speaks to it."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def chat(self, content: str = "hello", **fields: Any) -> httpx.Response:
        """One chat request."""
        body = {"model": NAME, "messages": [{"role": "user", "content": content}]} | fields
        return self.client.post("/v1/chat/completions", json=body)

    def complete(self, prompt: Any = "hello", **fields: Any) -> httpx.Response:
        """One completion request."""
        return self.client.post("/v1/completions", json={"model": NAME, "prompt": prompt} | fields)

    def metric(self, name: str, **labels: str) -> float:
        """A sample of /metrics, 0 when it is not there."""
        wanted = "".join(f',{key}="{value}"' for key, value in labels.items())
        line = f'penstock_engine_{name}{{model_name="{NAME}"{wanted}}} '
        text = self.client.get("/metrics").text
        return next((float(row.removeprefix(line)) for row in text.splitlines() if row.startswith(line)), 0.0)

    def wait_for(self, name: str, value: float, timeout_s: float = 60.0, **labels: str) -> None:
        """Wait until a sample of /metrics has the value."""
        deadline_s = time.monotonic() + timeout_s
        while (found := self.metric(name, **labels)) != value:
            assert time.monotonic() < deadline_s, f"{name} is {found}, not {value}"
            time.sleep(0.02)


@contextmanager
def running_engine(model: Path, cache: Path, *args: str, argv: list[str] | None = None) -> Iterator[RunningEngine]:
    """Start the engine (or ``argv`` in its place, which gets the same flags); wait until it is healthy."""
    port = free_port()
    command = argv or [sys.executable, "-m", "openvino_engine"]
    flags = ["--model", str(model), "--served-model-name", NAME, "--port", str(port), "--cache-dir", str(cache)]
    cache.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile("w+", dir=cache.parent) as log:
        process = subprocess.Popen(
            [*command, "serve", *flags, *args],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        engine = RunningEngine(process, port)
        try:
            _wait_until_ready(engine, log)
            yield engine
        finally:
            engine.client.close()
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()


def _wait_until_ready(engine: RunningEngine, log: IO[str]) -> None:
    deadline_s = time.monotonic() + 120
    while True:
        try:
            if engine.client.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        if engine.process.poll() is not None or time.monotonic() > deadline_s:
            log.seek(0)
            pytest.fail(f"the engine did not become ready:\n{log.read()}")
        time.sleep(0.05)


def model_for_tests(folder: Path) -> Path:
    """The trained starter where it exists, else a random checkpoint."""
    return STARTER if (STARTER / "model.safetensors").exists() else write_checkpoint(folder, architecture="qwen3")


def needs_starter() -> None:
    """Skip a test whose claim needs a model that was trained."""
    if not (STARTER / "model.safetensors").exists():
        pytest.skip("the trained starter model is not in model_repo/checkpoints/starter")
