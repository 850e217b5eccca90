"""Start a real gateway as a process of its own on a free port, and be sure that it is gone afterwards.

with start_gateway(config(fake.url)) as gateway:
    httpx.post(f"{gateway.url}/v1/chat/completions", json={...})
"""

import json
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

LISTENING = "gateway listening on "
MODEL = "m"
KEY = "sk-test-key"
KEY_SHA256 = "0d62f396c1317066f55a96086517047c737087c61eb2bf016b72e6298927b15b"


def config(*urls: str, model: str = MODEL, deployment: dict[str, Any] | None = None, **sections: Any) -> dict[str, Any]:
    """One model, one deployment, a replica per URL; engine vllm, quick probes. `sections` are laid on top."""
    replicas = {f"r{index}": {"url": url} for index, url in enumerate(urls)}
    main = {"engine": "vllm", "probe_interval_s": 0.2, "replicas": replicas, **(deployment or {})}
    return {"server": {"port": 0}, "models": {model: {"deployments": {"main": main}}}, **sections}


class GatewayHandle:
    """A running gateway; `log()` is what it has written to its two streams so far."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, out: Path) -> None:
        self.process = process
        self.url = url
        self.port = int(url.rpartition(":")[2])
        self._out = out

    def log(self) -> str:
        return self._out.read_text(errors="replace")

    def access_lines(self) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [line for line in lines if "request_id" in line]

    def get(self, path: str) -> tuple[int, Any]:
        """Status and parsed (or raw) body."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=60) as answer:
                status, body = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                status, body = error.code, error.read()
        try:
            return status, json.loads(body)
        except ValueError:
            return status, body.decode()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of `name` that carry `labels`."""
        from prometheus_client.parser import text_string_to_metric_families

        total = 0.0
        for family in text_string_to_metric_families(self.get("/metrics")[1]):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    total += sample.value
        return total

    def wait_ready(self, timeout_s: float = 60.0) -> "GatewayHandle":
        deadline_s = time.monotonic() + timeout_s
        while (answer := self.get("/ready"))[0] != 200:
            assert time.monotonic() < deadline_s, f"never ready: {answer}\n{self.log()}"
            time.sleep(0.02)
        return self

    def stop(self, timeout_s: float = 60.0) -> int:
        """SIGTERM; the exit code. AssertionError when it does not go by itself."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the gateway ignored SIGTERM\n{self.log()}") from None

    def __enter__(self) -> "GatewayHandle":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def start_gateway(settings: dict[str, Any], *, ready: bool = True, stdout: Any = None) -> GatewayHandle:
    """Start `gateway serve` on `settings`. RuntimeError with its words when it does not come up."""
    folder = Path(tempfile.mkdtemp(prefix="penstock-test-"))
    (folder / "gateway.yaml").write_text(yaml.safe_dump(settings))
    out = folder / "log"
    command = [sys.executable, "-m", "gateway", "serve", "--config", str(folder / "gateway.yaml")]
    with out.open("ab") as stream:
        process = subprocess.Popen(command, stdout=stdout or stream, stderr=stream)
    deadline_s = time.monotonic() + 60
    while LISTENING not in out.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > deadline_s:
            process.kill()
            process.wait()
            raise RuntimeError(f"the gateway did not start:\n{out.read_text(errors='replace')}")
        time.sleep(0.02)
    url = out.read_text(errors="replace").partition(LISTENING)[2].split()[0]
    handle = GatewayHandle(process, url, out)
    try:
        return handle.wait_ready() if ready else handle
    except AssertionError:
        handle.__exit__(None, None, None)
        raise
