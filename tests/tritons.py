"""Start a fake Triton as a process of its own, and a gateway in front of it.

with start_triton("core") as triton, start_gateway(triton.config()) as gateway:
    triton.script(answer=" hello", fault="error", after=1)
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from gateways import GatewayHandle, config

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "model_repo/checkpoints/starter"
HELLO = [{"role": "user", "content": "hello"}]
READY = "fake triton ready on "


class FakeTriton:
    def __init__(self, contract: str, port: int = 0) -> None:
        self.contract = contract
        command = [sys.executable, str(ROOT / "tests/fake_triton.py"), "--contract", contract, "--port", str(port),
                   "--checkpoint", str(CHECKPOINT)]  # fmt: skip
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith(READY):
            self.__exit__(None, None, None)
            raise RuntimeError(f"the fake Triton did not start: {line!r}")
        self.port = int(line.removeprefix(READY))
        self.url = f"grpc://127.0.0.1:{self.port}"

    def config(self, **deployment: Any) -> dict[str, Any]:
        """A gateway's configuration with this as the only replica of model `m`."""
        own = {"engine": "triton", "model": "model", "checkpoint": str(CHECKPOINT)}
        return config(self.url, deployment=own | deployment)

    def script(self, **fields: Any) -> None:
        """Play this from now on; what was counted is forgotten."""
        self._tell({"script": fields, "forget": True})

    def become(self, contract: str) -> None:
        self._tell({"contract": contract})

    def stats(self) -> dict[str, Any]:
        return self._tell({"stats": True})

    def wait(self, condition: Callable[[dict[str, Any]], bool], timeout_s: float = 60.0) -> dict[str, Any]:
        """The first stats that meet `condition`."""
        deadline_s = time.monotonic() + timeout_s
        while not condition(stats := self.stats()):
            assert time.monotonic() < deadline_s, f"the fake Triton never got there: {stats}"
            time.sleep(0.01)
        return stats

    @property
    def asked(self) -> dict[str, Any]:
        """The inputs of the last request."""
        last: dict[str, Any] = self.stats()["asked"][-1]
        return last

    def _tell(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> "FakeTriton":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def start_triton(contract: str = "core", port: int = 0) -> FakeTriton:
    """RuntimeError when it does not start. `port`: a fixed one, to come back after a death."""
    return FakeTriton(contract, port)


# ---- asking through the gateway ----


def post(gateway: GatewayHandle, path: str = "chat/completions", **fields: Any) -> httpx.Response:
    given = {"model": "m", "temperature": 0} | ({"messages": HELLO} if path.startswith("chat") else {})
    return httpx.post(f"{gateway.url}/v1/{path}", json=given | fields, timeout=60)


def chat(gateway: GatewayHandle, **fields: Any) -> dict[str, Any]:
    answer = post(gateway, **fields)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def events(gateway: GatewayHandle, path: str = "chat/completions", **fields: Any) -> list[dict[str, Any]]:
    answer = post(gateway, path, **{"stream": True, "stream_options": {"include_usage": True}} | fields)
    assert answer.status_code == 200, answer.text
    blocks = answer.text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


def refusal(answer: httpx.Response) -> tuple[int, str | None, str | None]:
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return answer.status_code, error["param"], error["code"]


def content(events: list[dict[str, Any]]) -> str:
    return "".join(event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"])
