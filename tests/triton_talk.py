"""The official tritonclient as a program: a conversation as a line of JSON on stdin, what comes back as JSON lines on
stdout, in the order it came, and {"done": ...} when it is over: null, or what went wrong in this program.

A process of its own because tritonclient and the gateway register the same protobuf package, `inference`, and one
process can hold only one of them.

    {"url": "127.0.0.1:8001", "calls": [{"model": "ensemble", "inputs": {...}, "id": "a", "leave_after": 3},
      {"model": "tensorrt_llm", "inputs": {...}, "after": 0}]}

All calls begin at once, each on a stream of its own. Inputs get the datatype and rank that the model's metadata says.
`leave_after`: cancel the stream after so many responses; `after`: begin when that call has had its first response.
"all" for either: when all calls without `after` have had theirs; who leaves tells whether its end had come already.
Given file names instead, it prints each config.pbtxt as JSON.
"""

import contextlib
import json
import queue
import sys
import threading
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import triton_to_np_dtype

PATIENCE_S = 60


class Talk:
    """Calls that run at once and write to one stdout."""

    def __init__(self, url: str, calls: list[dict[str, Any]]) -> None:
        self._url = url
        self._calls = calls
        self._lock = threading.Lock()
        self._failure: str | None = None
        self._answered = [threading.Event() for _ in calls]
        self._together = threading.Barrier(sum("after" not in call for call in calls))

    def run(self) -> None:
        threads = [threading.Thread(target=self._guarded, args=(index,)) for index in range(len(self._calls))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        say(done=self._failure)

    def _guarded(self, index: int) -> None:
        try:
            self._call(index)
        except Exception:  # noqa: BLE001 (told to whoever asked)
            self._failure = traceback.format_exc()

    def _call(self, index: int) -> None:
        call = self._calls[index]
        if "after" in call:
            self._wait(call["after"])
        with grpcclient.InferenceServerClient(self._url) as client:
            try:
                inputs = tensors(client, call["model"], call["inputs"])
            except grpcclient.InferenceServerException as error:
                self._together.abort()
                self._say(index, error=error.message())
                return
            arrived: queue.Queue[tuple[Any, Any]] = queue.Queue()
            client.start_stream(partial(lambda q, result, error: q.put((result, error)), arrived))
            if "after" not in call:
                with contextlib.suppress(threading.BrokenBarrierError):
                    self._together.wait(PATIENCE_S)
            client.async_stream_infer(
                call["model"], inputs, request_id=call.get("id", ""), enable_empty_final_response=True
            )
            left = True  # also when nothing comes: the client would wait for the server as long as it lives
            try:
                left = self._listen(index, arrived, call.get("leave_after"))
                if left:
                    self._say(index, left=True, ended=any(_is_final(result) for result, _ in _drained(arrived)))
            finally:
                client.stop_stream(cancel_requests=left)

    def _wait(self, for_: int | str) -> None:
        """Until that call, or all, have had a response."""
        first = [index for index, call in enumerate(self._calls) if "after" not in call] if for_ == "all" else [for_]
        if not all(self._answered[int(index)].wait(PATIENCE_S) for index in first):
            raise TimeoutError(f"not all of {first} had a response")

    def _listen(self, index: int, arrived: "queue.Queue[tuple[Any, Any]]", leave_after: int | str | None) -> bool:
        """Until the final response or an error; True when it is to be left before."""
        count = 0
        while True:
            result, error = arrived.get(timeout=PATIENCE_S)
            self._answered[index].set()
            if error is not None:
                self._say(index, error=error.message())
                return False
            response, final = result.get_response(), _is_final(result)
            outputs = {tensor.name: plain(result.as_numpy(tensor.name)) for tensor in response.outputs}
            self._say(index, outputs=outputs, final=final)
            count += 1
            if final:
                return False
            if leave_after == "all":
                self._wait("all")
                return True
            if leave_after is not None and count >= int(leave_after):
                return True

    def _say(self, index: int, **event: Any) -> None:
        with self._lock:
            say(call=index, **event)


def _is_final(result: Any) -> bool:
    return result is None or bool(result.get_response().parameters["triton_final_response"].bool_param)


def _drained(arrived: "queue.Queue[tuple[Any, Any]]") -> Iterator[tuple[Any, Any]]:
    while not arrived.empty():
        yield arrived.get()


def say(**line: Any) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def tensors(client: Any, model: str, values: dict[str, Any]) -> list[Any]:
    """InferInputs; dimensions are filled up on the left to the rank in the metadata."""
    specs = {spec.name: spec for spec in client.get_model_metadata(model).inputs}
    made = []
    for name, value in values.items():
        datatype, rank = (specs[name].datatype, len(specs[name].shape)) if name in specs else ("INT32", 2)
        listed = value if isinstance(value, list) else [value]
        array = np.array([item.encode() if isinstance(item, str) else item for item in listed], dtype=object)
        array = array.astype(triton_to_np_dtype(datatype))
        array = array.reshape((1,) * (rank - array.ndim) + array.shape)
        made.append(grpcclient.InferInput(name, list(array.shape), datatype))
        made[-1].set_data_from_numpy(array)
    return made


def plain(array: Any) -> Any:
    return [item.decode() for item in array.reshape(-1)] if array.dtype == object else array.tolist()


def config(path: str) -> dict[str, Any]:
    """A config.pbtxt, parsed against Triton's own message definition."""
    message = text_format.Parse(Path(path).read_text("utf-8"), model_config_pb2.ModelConfig())
    parsed: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return parsed


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps([config(path) for path in sys.argv[1:]]))
    else:
        for line in sys.stdin:
            asked = json.loads(line)
            Talk(asked["url"], asked["calls"]).run()
