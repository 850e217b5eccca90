"""The real engines the conformance suite runs against, one line each in ENGINES, and how they are started.

Apart from the suite so that other end-to-end tests start the same engines in the same way.
"""

import contextlib
import functools
import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from ports import free_port
from stack_under_test import ROOT, RunningStack, stack_of

CHECKPOINT = Path(os.environ.get("PENSTOCK_TEST_CHECKPOINT", ROOT / "model_repo/checkpoints/starter"))
MODEL = "penstock-starter"


@dataclass(frozen=True)
class EngineUnderTest:
    """`profile` as `penstock up --engine` takes it; `kind`: the gateway's word; `installs`: the folder of services/
    whose install.py knows whether it is there; `running`: the series of the engine's own gauge of running requests, on
    the port that `metrics_flag` of its command line names (None: the engine's only port); `lacks`: request fields
    of the kind's capabilities that this way of running it has not, and must refuse by name."""

    profile: str
    kind: str
    running: str
    installs: str | None = None
    metrics_flag: str | None = None
    lacks: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return self.profile.replace("/", "-")

    def param(self) -> Any:
        mark = getattr(pytest.mark, self.installs or "engine")
        return pytest.param(self, id=self.name, marks=[mark, *self._skip()])

    def _skip(self) -> list[Any]:
        if self.installs is None:
            return []
        script, venv = ROOT / "services" / self.installs / "install.py", ROOT / ".venvs" / self.installs
        command = [sys.executable, str(script), "--venv", str(venv), "--check"]
        missing = subprocess.run(command, capture_output=True, check=False).returncode != 0
        reason = f"the real {self.installs} is not installed; `make {self.installs}` does it"
        return [pytest.mark.skipif(missing, reason=reason)]


TRITON = EngineUnderTest(
    "triton/cpu",
    "triton",
    'nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active"',
    installs="triton",
    metrics_flag="--metrics-port",
)
EMBEDDED = EngineUnderTest("openvino", "openvino", "penstock_engine_num_requests_running")
VLLM = EngineUnderTest("vllm", "vllm", "vllm:num_requests_running", installs="vllm")
ENGINES = [
    EMBEDDED,
    VLLM,
    TRITON,
    replace(TRITON, profile="triton/bls", lacks=frozenset({"logprobs"})),
    replace(
        TRITON,
        profile="triton/llmapi",
        lacks=frozenset({"logprobs", "response_format", "structured_outputs", "tool_choice", "ignore_eos"}),
    ),
    EngineUnderTest("sglang", "sglang", "sglang:num_running_reqs", installs="sglang", lacks=frozenset({"seed"})),
]


@contextlib.contextmanager
def served_by(engine: EngineUnderTest, folder: Path, *args: str) -> Iterator[RunningStack]:
    """The starter on `engine`, as `make serve` starts it; `base_url` is the gateway's, `rpc` its gRPC door's."""
    port, rpc = free_port(), free_port()
    flags = ["--engine", engine.profile, "--model", str(CHECKPOINT), "--name", MODEL, "--port", str(port)]
    with stack_of(folder, *flags, "--grpc-port", str(rpc), *args) as running:
        running.wait_for("ready at", patience_s=600)
        running.base_url, running.rpc = f"http://127.0.0.1:{port}/v1", f"127.0.0.1:{rpc}"
        yield running


def deployment_of(stack: RunningStack) -> dict[str, Any]:
    """The one deployment in the configuration the stack wrote for its gateway."""
    config = yaml.safe_load((stack.run_dir / "gateway.yaml").read_text())
    (deployment,) = config["models"][MODEL]["deployments"].values()
    return dict(deployment)


@functools.cache
def capabilities() -> dict[str, dict[str, Any]]:
    """The capability table the gateway itself goes by, by engine kind."""
    command = [sys.executable, "-m", "gateway", "engines", "--format", "json"]
    table: dict[str, dict[str, Any]] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return table


def running_requests(engine: EngineUnderTest, stack: RunningStack) -> float:
    """The engine's own gauge, asked of the engine itself."""
    (replica,) = deployment_of(stack)["replicas"].values()
    page = f"{replica['url']}/metrics"
    if engine.metrics_flag:
        ports = {
            found[1]
            for line in stack.marked().values()
            if (found := re.search(f"{engine.metrics_flag}[= ](\\d+)", line))
        }
        page = f"http://127.0.0.1:{ports.pop()}/metrics"
    with urllib.request.urlopen(page, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    found = [line for line in lines if line.startswith(engine.running) and "_by_" not in line]
    assert found, f"no {engine.running} at {page}"
    return sum(float(line.rpartition(" ")[2]) for line in found)
