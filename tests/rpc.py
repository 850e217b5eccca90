"""Clients of the gateway's gRPC door: generated stubs in this process, tritonclient in one of its own.

with start_gateway(config(fake.url, rpc={"port": 0})) as gateway, TritonPeer(rpc_address(gateway)) as triton:
    triton.infer("m", text_input="hello", max_tokens=5)
"""

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RequestInfo, RetryInfo
from grpc_status import rpc_status

from gateway.protos.penstock.v1.chat_pb2_grpc import ChatServiceStub
from gateways import GatewayHandle

LISTENING = "gateway listening for gRPC on "
PATIENCE_S = 60.0
_TYPES = {str: "BYTES", bool: "BOOL", float: "FP32", int: "INT32"}
_DETAILS: tuple[type[Any], ...] = (ErrorInfo, BadRequest, RequestInfo, RetryInfo)


def rpc_address(gateway: GatewayHandle) -> str:
    deadline_s = time.monotonic() + PATIENCE_S
    while LISTENING not in gateway.log():
        assert time.monotonic() < deadline_s, gateway.log()
        time.sleep(0.01)
    return gateway.log().partition(LISTENING)[2].split()[0]


@contextmanager
def channel_to(gateway: GatewayHandle, *options: tuple[str, int]) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(rpc_address(gateway), options=list(options)) as channel:
        yield channel


@contextmanager
def chat_stub(gateway: GatewayHandle) -> Iterator[ChatServiceStub]:
    with channel_to(gateway) as channel:
        yield ChatServiceStub(channel)


def details(error: Any) -> dict[str, Message]:
    """The google.rpc details of an RpcError, by the names of their types."""
    found: dict[str, Message] = {}
    status = rpc_status.from_call(error)
    assert status is not None, "an error without details"
    for packed in status.details:
        for kind in _DETAILS:
            message = kind()
            if packed.Unpack(message):
                found[kind.DESCRIPTOR.name] = message
    return found


def reason(error: Any) -> str:
    info: Any = details(error)["ErrorInfo"]
    assert info.domain == "penstock"
    return str(info.reason)


class Refused(Exception):
    """What tritonclient raised. `status` is the name of a gRPC code."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["message"])
        self.message = str(error["message"])
        self.status = str(error["status"] or "").removeprefix("StatusCode.")


class TritonPeer:
    """A tritonclient connected to `address`. `events` is what its stream has brought and nobody took yet."""

    def __init__(self, address: str) -> None:
        command = [sys.executable, str(Path(__file__).with_name("triton_peer.py")), address]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.events: queue.Queue[dict[str, Any]] = queue.Queue()
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def do(self, method: str, **arguments: Any) -> Any:
        """Call the client's `method`. Raises Refused."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": method} | arguments) + "\n")
        self.process.stdin.flush()
        said = self._answers.get(timeout=PATIENCE_S)
        if "error" in said:
            raise Refused(said["error"])
        return said["answer"]

    def infer(self, model: str, *, shape: list[int] | None = None, options: dict[str, Any] | None = None, **inputs: Any
              ) -> dict[str, Any]:  # fmt: skip
        """The outputs by name; `shape`: of every single value ([1] or [1, 1]); `options`: of the client's infer."""
        answer: dict[str, Any] = self.do("infer", model_name=model, inputs=tensors(inputs, shape), **(options or {}))
        outputs: dict[str, Any] = answer["outputs"]
        return outputs

    def ask(self, model: str, request_id: str, **inputs: Any) -> None:
        """A request on the open stream, that always gets an empty final response."""
        self.do("async_stream_infer", model_name=model, inputs=tensors(inputs), request_id=request_id,
                enable_empty_final_response=True)  # fmt: skip

    def next(self) -> dict[str, Any]:
        return self.events.get(timeout=PATIENCE_S)

    def until_final(self) -> list[dict[str, Any]]:
        """Events up to and with the first that is final, or an error."""
        found = [self.next()]
        while "message" not in found[-1] and not found[-1]["final"]:
            found.append(self.next())
        return found

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said = json.loads(line)
            if "event" in said:
                self.events.put(said["event"])
            else:
                self._answers.put(said)

    def __enter__(self) -> "TritonPeer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(PATIENCE_S)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def tensors(inputs: dict[str, Any], shape: list[int] | None = None) -> list[list[Any]]:
    """Of Python values; a (datatype, shape, values) tuple as it is."""
    made = []
    for name, value in inputs.items():
        if isinstance(value, tuple):
            made.append([name, *value])
        elif isinstance(value, list):
            made.append([name, _TYPES[type(value[0])], [len(value)], value])
        else:
            datatype = "UINT64" if name == "seed" else _TYPES[type(value)]
            made.append([name, datatype, shape or [1], [value]])
    return made
