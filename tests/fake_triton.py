"""A Triton server that behaves as its gRPC contract says and fails as it is told: a program of its own, no model.

python fake_triton.py --contract core --checkpoint FOLDER        ready line, then one JSON command a line on stdin:
{"script": {...}}  play it for every request from now on         (Script below)
{"stats": true}    what was asked and how it ended

The process under test is another one: this imports gateway.protos, which cannot live beside tritonclient.
"""

import argparse
import asyncio
import json
import os
import struct
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from tokenizers import Tokenizer

from fake_triton_models import MODELS
from gateway.protos import inference_pb2 as pb
from gateway.protos import inference_pb2_grpc as rpc

CODES = {"BOOL": "?", "INT32": "i", "UINT32": "I", "UINT64": "Q", "FP32": "f"}


@dataclass
class Script:
    """`answer` is said token by token, `itl_s` apart; `pieces` instead of it: the texts of text responses as they are,
    `repeat` times over.

    After `after` responses `fault` happens: error (with `code`, else as error_message), silence, break (the stream ends
    as if all were well), die (the process). `final`: empty response or flag on the last one. `ready`: loaded or not.
    """

    answer: str = " one two three"
    ids: list[int] | None = None
    pieces: list[str] | None = None
    itl_s: float = 0.0
    fault: str | None = None
    after: int = 0
    message: str = "it went wrong"
    code: str | None = None
    final: str = "empty"
    ready: bool = True
    batch: int = 1
    padding: int = 0
    repeat: int = 1


@dataclass
class Stats:
    """`asked`: the inputs of each request, decoded, with `id` and `parameters` of the request."""

    asked: list[dict[str, Any]] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    active: int = 0
    finished: int = 0
    cancelled: int = 0
    described: int = 0


class Service(rpc.GRPCInferenceServiceServicer):
    def __init__(self, contract: str, tokenizer: Tokenizer) -> None:
        self.contract = contract
        self.tokenizer = tokenizer
        self.script = Script()
        self.stats = Stats()

    async def ServerReady(self, request: Any, context: Any) -> Any:
        return pb.ServerReadyResponse(ready=True)

    async def ModelReady(self, request: Any, context: Any) -> Any:
        return pb.ModelReadyResponse(ready=self.script.ready and request.name == "model")

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:
        entry = pb.RepositoryIndexResponse.ModelIndex(
            name="model", version="1", state="UNAVAILABLE", reason="no engine in engine_dir"
        )
        return pb.RepositoryIndexResponse(models=[entry])

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        self.stats.described += 1
        inputs, outputs, _ = MODELS[self.contract]
        tensor = pb.ModelMetadataResponse.TensorMetadata
        return pb.ModelMetadataResponse(
            name=request.name,
            inputs=[tensor(name=name, datatype=kind, shape=shape) for name, (kind, shape) in inputs.items()],
            outputs=[tensor(name=name, datatype=kind, shape=shape) for name, (kind, shape) in outputs.items()],
        )

    async def ModelConfig(self, request: Any, context: Any) -> Any:
        config = pb.ModelConfig(name=request.name)
        config.model_transaction_policy.decoupled = True
        for name, value in MODELS[self.contract][2].items():
            config.parameters[name].string_value = value
        return pb.ModelConfigResponse(config=config)

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        self.stats.metadata.append(dict(context.invocation_metadata()))
        async for request in requests:
            self.stats.active += 1
            try:
                async for response in self._answer(request, context):
                    yield response
                self.stats.finished += 1
            except (asyncio.CancelledError, GeneratorExit):
                self.stats.cancelled += 1
                raise
            finally:
                self.stats.active -= 1
            if self.script.fault == "break":
                return

    async def _answer(self, request: Any, context: Any) -> AsyncIterator[Any]:
        script, asked = self.script, _inputs(request)
        self.stats.asked.append(asked)
        steps = self._steps(asked, script)
        for place, outputs in enumerate(steps):
            if script.fault is not None and place == script.after:
                async for response in self._fault(script, context):
                    yield response
                return
            if script.itl_s:
                await asyncio.sleep(script.itl_s)
            yield _response(request, outputs, final=script.final == "flag" and place == len(steps) - 1)
        if script.fault is not None:
            async for response in self._fault(script, context):
                yield response
        elif script.final == "empty":
            yield _response(request, {}, final=True)

    async def _fault(self, script: Script, context: Any) -> AsyncIterator[Any]:
        if script.fault == "silence":
            await asyncio.sleep(3600)
        elif script.fault == "die":
            os._exit(1)
        elif script.fault == "error" and script.code:
            await context.abort(grpc.StatusCode[script.code], script.message)
        elif script.fault == "error":
            yield pb.ModelStreamInferResponse(error_message=script.message)

    def _steps(self, asked: dict[str, Any], script: Script) -> list[dict[str, tuple[str, list[int], list[Any]]]]:
        """The outputs of each response, as the contract has them."""
        if script.pieces is not None:
            counts = {"num_output_tokens": ("INT32", [1, 1], [1])}
            return [{"text_output": ("BYTES", [1, 1], [piece]), **counts} for piece in script.pieces * script.repeat]
        ids = script.ids or self.tokenizer.encode(script.answer, add_special_tokens=False).ids
        most = asked.get("request_output_len") or asked.get("max_tokens") or asked.get("sampling_param_max_tokens")
        if "sampling_parameters" in asked:
            most = [json.loads(asked["sampling_parameters"][0])["max_tokens"]]
        ids = ids[: most[0]] if most else ids
        streams = (asked.get("streaming") or asked.get("stream") or [True])[0]
        groups = [ids[begin : begin + script.batch] for begin in range(0, len(ids), script.batch)] if streams else [ids]
        if self.contract == "core":
            return [_core(group, asked) for group in groups]
        if self.contract == "fastertransformer":
            prompt = asked["input_ids"]
            ends = [sum(map(len, groups[: place + 1])) for place in range(len(groups))]
            return [_fastertransformer(prompt + ids[:end], script.padding) for end in ends]
        return self._texts(groups, ended=len(ids) < (most[0] if most else 10**9))

    def _texts(self, groups: list[list[int]], *, ended: bool) -> list[dict[str, tuple[str, list[int], list[Any]]]]:
        gathers = self.contract in ("bls", "llmapi")
        steps, so_far = [], []
        for place, group in enumerate(groups):
            so_far += group
            text = self.tokenizer.decode(so_far if gathers else group, skip_special_tokens=True)
            outputs: dict[str, tuple[str, list[int], list[Any]]] = {"text_output": ("BYTES", [1, 1], [text])}
            if self.contract in ("bls", "ensemble"):
                outputs["num_output_tokens"] = ("INT32", [1, 1], [len(group)])
            else:
                last = place == len(groups) - 1
                if self.contract == "vllm":  # counts the end token, unlike the others
                    outputs["num_output_tokens"] = ("UINT32", [1], [len(group) + (last and ended)])
                outputs["finish_reason"] = ("BYTES", [1], [("stop" if ended else "length") if last else "None"])
            steps.append(outputs)
        return steps


def _core(ids: list[int], asked: dict[str, Any]) -> dict[str, tuple[str, list[int], list[Any]]]:
    outputs: dict[str, tuple[str, list[int], list[Any]]] = {
        "output_ids": ("INT32", [1, 1, len(ids)], ids),
        "sequence_length": ("INT32", [1, 1], [len(ids)]),
    }
    if asked.get("return_log_probs"):
        outputs["output_log_probs"] = ("FP32", [1, 1, len(ids)], [-0.25] * len(ids))
    return outputs


def _fastertransformer(ids: list[int], padding: int) -> dict[str, tuple[str, list[int], list[Any]]]:
    return {
        "output_ids": ("UINT32", [1, 1, len(ids) + padding], ids + [2039] * padding),
        "sequence_length": ("UINT32", [1, 1], [len(ids)]),
    }


def _inputs(request: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"id": request.id, "shapes": {}}
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        values["shapes"][tensor.name] = list(tensor.shape)
        values[tensor.name] = _decode(tensor.datatype, raw)
    values["wants_final"] = request.parameters["triton_enable_empty_final_response"].bool_param
    values["outputs"] = [output.name for output in request.outputs]
    return values


def _decode(datatype: str, raw: bytes) -> list[Any]:
    if datatype != "BYTES":
        code = CODES[datatype]
        return list(struct.unpack(f"<{len(raw) // struct.calcsize('<' + code)}{code}", raw))
    values, at = [], 0
    while at < len(raw):
        (length,) = struct.unpack_from("<I", raw, at)
        values.append(raw[at + 4 : at + 4 + length].decode())
        at += 4 + length
    return values


def _response(request: Any, outputs: dict[str, tuple[str, list[int], list[Any]]], *, final: bool) -> Any:
    tensor = pb.ModelInferResponse.InferOutputTensor
    response = pb.ModelInferResponse(
        model_name=request.model_name,
        id=request.id,
        outputs=[tensor(name=name, datatype=kind, shape=shape) for name, (kind, shape, _) in outputs.items()],
        raw_output_contents=[_encode(kind, values) for kind, _, values in outputs.values()],
    )
    response.parameters["triton_final_response"].bool_param = final
    return pb.ModelStreamInferResponse(infer_response=response)


def _encode(datatype: str, values: list[Any]) -> bytes:
    if datatype != "BYTES":
        return struct.pack(f"<{len(values)}{CODES[datatype]}", *values)
    return b"".join(struct.pack("<I", len(value.encode())) + value.encode() for value in values)


async def serve(args: argparse.Namespace) -> None:
    service = Service(args.contract, Tokenizer.from_file(str(Path(args.checkpoint) / "tokenizer.json")))
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    rpc.add_GRPCInferenceServiceServicer_to_server(service, server)
    port = server.add_insecure_port(f"127.0.0.1:{args.port}")
    await server.start()
    print(f"fake triton ready on {port}", flush=True)
    reader = asyncio.StreamReader(limit=2**24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        command = json.loads(line)
        if "script" in command:
            service.script = Script(**command["script"])
        if "contract" in command:
            service.contract = command["contract"]
        if command.get("forget"):
            service.stats = Stats(active=service.stats.active)
        print(json.dumps(vars(service.stats)), flush=True)
    await server.stop(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contract", choices=sorted(MODELS), default="core")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--port", type=int, default=0)
    asyncio.run(serve(parser.parse_args()))
