"""The official tritonclient as a program: one command a line on stdin, JSON, answered by a line on stdout.

A process of its own because tritonclient and the gateway register the same protobuf package, `inference`. Other than
triton_talk.py, which plays whole conversations, it is told step by step: so one stream can carry many requests, and a
test can look elsewhere in between. What a stream brings is written as it comes, as {"event": ...}.

    {"do": "infer", "model_name": "m", "inputs": [["text_input", "BYTES", [1], ["hello"]]], "request_id": "a"}

Every other key is an argument of the client's method `do`.
"""

import json
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
from google.protobuf.json_format import MessageToDict
from tritonclient.utils import InferenceServerException, triton_to_np_dtype


def main() -> None:
    client = grpcclient.InferenceServerClient(sys.argv[1])
    for line in sys.stdin:
        command = json.loads(line)
        try:
            say(answer=perform(client, command.pop("do"), command))
        except InferenceServerException as error:
            say(error=failure(error))
        except TypeError as error:
            say(error={"status": None, "message": str(error)})
    client.close()


def perform(client: Any, method: str, arguments: dict[str, Any]) -> Any:
    if "inputs" in arguments:
        arguments["inputs"] = [tensor(*given) for given in arguments["inputs"]]
    if "outputs" in arguments:
        arguments["outputs"] = [grpcclient.InferRequestedOutput(name) for name in arguments["outputs"]]
    if method == "start_stream":
        arguments["callback"] = lambda result, error: say(event=failure(error) if error else response(result))
    result = getattr(client, method)(**arguments)
    if isinstance(result, grpcclient.InferResult):
        return response(result)
    if result is None or isinstance(result, bool):
        return result
    return MessageToDict(result, preserving_proto_field_name=True)


def tensor(name: str, datatype: str, shape: list[int], values: list[Any]) -> Any:
    array = np.array(values, dtype=triton_to_np_dtype(datatype)).reshape(shape)
    made = grpcclient.InferInput(name, shape, datatype)
    made.set_data_from_numpy(array)
    return made


def response(result: Any) -> dict[str, Any]:
    message = result.get_response()
    return {
        "id": message.id,
        "outputs": {output.name: plain(result.as_numpy(output.name)) for output in message.outputs},
        "shapes": {output.name: list(output.shape) for output in message.outputs},
        "final": message.parameters["triton_final_response"].bool_param,
    }


def plain(array: Any) -> Any:
    """The values, without their shape; one by itself."""
    values = [value.decode() if isinstance(value, bytes) else value for value in array.reshape(-1).tolist()]
    return values[0] if len(values) == 1 else values


def failure(error: Any) -> dict[str, Any]:
    return {"status": error.status(), "message": error.message()}


def say(**line: Any) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
