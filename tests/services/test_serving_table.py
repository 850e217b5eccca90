"""The compressor's table of engines is the gateway's: two programs share a file, and here it is held to its source."""

import json
import subprocess
import sys

import pytest

from compressor.errors import BadRecipeError
from compressor.serving_table import FILE, projection, who_can_serve, why_not

RENEW = (
    "penstock gateway engines --format json | python -m compressor.serving_table > compression/compressor/engines.json"
)


def test_the_compressors_file_says_what_the_gateway_prints() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "gateway", "engines", "--format", "json"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert json.loads(FILE.read_text("utf-8")) == projection(json.loads(ran.stdout)), f"renew it: {RENEW}"


@pytest.mark.parametrize(
    ("scheme", "layout", "structure", "can", "cannot"),
    [
        ("W4A16", "compressed-tensors", None, {"vllm", "sglang"}, {"openvino", "trtllm", "mnn"}),
        ("W4A16", "gptq", None, {"vllm", "sglang", "trtllm"}, {"openvino"}),
        ("BF16", "dense", None, {"vllm", "sglang", "openvino", "trtllm"}, {"openai"}),
        ("FP6", "dense", None, {"vllm", "openvino"}, {"openai"}),
        ("BF16", "dense", "sliced (SliceGPT)", set(), {"vllm", "sglang", "openvino", "trtllm", "lightllm"}),
        ("BF16", "dense", "sizes that differ by layer", set(), {"vllm", "sglang", "openvino"}),
        ("GGUF_Q4_0", "gguf", None, {"openvino"}, {"vllm", "sglang", "trtllm"}),
        ("IR_INT4", "openvino", None, {"openvino"}, {"vllm"}),
    ],
)
def test_who_can_serve_what(scheme: str, layout: str, structure: str | None, can: set[str], cannot: set[str]) -> None:
    served = who_can_serve(scheme, layout, structure).keys()
    assert can <= served
    assert served.isdisjoint(cannot)
    assert all(why_not(engine, scheme, layout, structure) is None for engine in served)
    assert all(why_not(engine, scheme, layout, structure) for engine in cannot)


def test_a_refusal_says_why_and_who_can() -> None:
    reason = str(why_not("openvino", "W4A16", "compressed-tensors"))
    assert "stored as compressed-tensors" in reason
    assert "vllm" in reason.partition("these can: ")[2]
    assert "no engine can" in str(why_not("vllm", "BF16", "dense", "sliced (SliceGPT)"))


def test_rounded_weights_in_16_bits_are_said_to_be_no_smaller() -> None:
    assert "no smaller and no faster" in who_can_serve("FP6", "dense")["vllm"]


def test_an_unknown_engine_is_named_with_the_nearest() -> None:
    with pytest.raises(BadRecipeError, match="did you mean vllm"):
        why_not("vlm", "W4A16", "gptq")
