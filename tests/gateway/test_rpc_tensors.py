"""What tritonclient never sends: typed contents, and raw ones that do not add up, through generated stubs."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from fakes import FakeHandle
from gateway.protos import inference_pb2 as pb
from gateway.protos.inference_pb2_grpc import GRPCInferenceServiceStub
from gateways import GatewayHandle, config, start_gateway
from rpc import channel_to, details

Input = pb.ModelInferRequest.InferInputTensor


@pytest.fixture(scope="module")
def door(fakes: tuple[FakeHandle, FakeHandle]) -> Iterator[GatewayHandle]:
    with start_gateway(config(fakes[0].url, rpc={"port": 0})) as handle:
        yield handle


@pytest.fixture(scope="module")
def stub(door: GatewayHandle) -> Iterator[GRPCInferenceServiceStub]:
    with channel_to(door) as channel:
        yield GRPCInferenceServiceStub(channel)


def typed(name: str, datatype: str, field: str, *values: Any) -> Any:
    contents = pb.InferTensorContents(**{field: values})
    return Input(name=name, datatype=datatype, shape=[len(values)], contents=contents)


def raw(name: str, datatype: str = "BYTES") -> Any:
    return Input(name=name, datatype=datatype, shape=[1])


TEXT = typed("text_input", "BYTES", "bytes_contents", b"hello")
HI = b"\x02\x00\x00\x00hi"


def refusal(stub: GRPCInferenceServiceStub, request: pb.ModelInferRequest) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request, timeout=60)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details(caught.value)["BadRequest"]
    return str(caught.value.details())


def test_typed_contents_of_every_type_reach_the_engine(stub: GRPCInferenceServiceStub, fake: FakeHandle) -> None:
    fake.script({"tokens": ["one"]})
    inputs = [
        TEXT,
        typed("max_tokens", "INT32", "int_contents", 7),
        typed("seed", "UINT64", "uint64_contents", 9),
        typed("temperature", "FP32", "fp32_contents", 0.1),
        typed("exclude_input_in_output", "BOOL", "bool_contents", True),
        typed("stop_words", "BYTES", "bytes_contents", b"a", "ü".encode()),
    ]
    response = stub.ModelInfer(pb.ModelInferRequest(model_name="m", id="7", inputs=inputs), timeout=60)
    assert (response.id, response.model_name, response.model_version) == ("7", "m", "1")
    assert [output.name for output in response.outputs] == ["text_output", "finish_reason"]
    assert list(response.raw_output_contents) == [b"\x03\x00\x00\x00one", b"\x04\x00\x00\x00stop"]
    assert fake.stats()["last_requests"][-1]["body"] == {
        "model": "m", "prompt": "hello", "max_tokens": 7, "seed": 9, "temperature": 0.1, "stop": ["a", "ü"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("inputs", "contents", "words"),
    [
        ([TEXT, TEXT], [], "'text_input' is given twice"),
        ([TEXT, raw("max_tokens", "INT32")], [b"x"], "There are 2 inputs, but 1 raw_input_contents"),
        ([TEXT], [HI], "typed contents beside raw_input_contents"),
        ([typed("text_input", "BYTES", "int_contents", 1)], [], "must have its values in bytes_contents"),
        ([typed("text_input", "BYTES", "bytes_contents", b"\xff")], [], "not valid UTF-8"),
        ([raw("text_input")], [b"\x05\x00\x00\x00hi"], "end in the middle of an element"),
        ([raw("text_input")], [b"\x05\x00"], "end in the middle of an element"),
        ([raw("text_input")], [HI + HI], "must have the shape"),
        ([raw("text_input"), raw("max_tokens", "INT32")], [HI, b"\x01\x02\x03"], "must be a multiple of 4 bytes"),
        ([raw("text_input"), raw("max_tokens", "FP16")], [HI, b"\x01\x02"], "datatype INT32, not 'FP16'"),
        ([raw("text_input"), raw("max_tokens", "INT32")], [HI, b""], "for 0 values"),
    ],
)
def test_contents_that_do_not_add_up_are_refused(
    stub: GRPCInferenceServiceStub, fake: FakeHandle, inputs: list[Any], contents: list[bytes], words: str
) -> None:
    assert words in refusal(stub, pb.ModelInferRequest(model_name="m", inputs=inputs, raw_input_contents=contents))
    assert fake.stats()["requests"] == 0


def test_an_error_on_a_stream_carries_the_requests_id_and_its_reason(stub: GRPCInferenceServiceStub) -> None:
    wrong = pb.ModelInferRequest(model_name="m", id="w", inputs=[raw("txt")], raw_input_contents=[HI])
    [response] = list(stub.ModelStreamInfer(iter([wrong]), timeout=60))
    assert "Unexpected input 'txt'" in response.error_message
    answer = response.infer_response
    assert (answer.id, answer.model_name) == ("w", "m")
    assert answer.parameters["error_code"].string_param == "unknown_parameter"
    assert answer.parameters["request_id"].string_param
    assert answer.parameters["triton_final_response"].bool_param


def test_what_only_tritons_own_models_have_is_unimplemented(stub: GRPCInferenceServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="m"))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
