"""Number formats: which engine has kernels for them, on which hardware; and what /v1/models says of a checkpoint."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from fakes import start_fake
from gateway.api.model_facts import facts_of
from gateway.backends.capabilities import SCHEMES
from gateway.backends.checkpoint import read_facts
from gateway.backends.fit import can_serve
from gateway.backends.registry import backend_class, engine_kinds
from gateways import config, start_gateway

ENGINES = ("vllm", "sglang", "trtllm", "openvino")
CONFIG = {"architectures": ["Qwen3ForCausalLM"], "hidden_size": 256, "num_attention_heads": 4}


def group(weights: dict[str, Any], inputs: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}}
    return {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": groups, **more}}


INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
FP8 = {"num_bits": 8, "type": "float", "strategy": "channel"}
FP4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
DYNAMIC = {"num_bits": 8, "dynamic": True}


def checkpoint(folder: Path, config: dict[str, Any], manifest: dict[str, Any] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    if manifest is not None:
        (folder / "penstock.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize(
    ("settings", "manifest", "schemes"),
    [
        (group(INT4), {}, {"W4A16"}),
        (group(INT4 | {"symmetric": False}), {}, {"W4A16_ASYM"}),
        (group(INT4 | {"num_bits": 3}), {"scheme": "W4A16"}, {"W3A16"}),  # the engine reads config.json
        (group(INT4 | {"num_bits": 8}, DYNAMIC | {"type": "int"}), {}, {"W8A8"}),
        (group(FP8, DYNAMIC | {"type": "float"}), {}, {"FP8_DYNAMIC"}),
        (group(FP8, {"num_bits": 8, "type": "float", "dynamic": False}), {}, {"FP8"}),
        (group(FP8 | {"strategy": "block"}, DYNAMIC | {"type": "float"}), {}, {"FP8_BLOCK"}),
        (group(FP4), {}, {"NVFP4A16"}),
        (group(FP4, {"num_bits": 4, "type": "float", "dynamic": "local"}), {}, {"NVFP4"}),
        (group(FP4 | {"group_size": 32}, {"num_bits": 4, "type": "float"}), {}, {"MXFP4"}),
        (group(INT4, kv_cache_scheme={"num_bits": 8, "type": "float"}), {}, {"W4A16", "KV_FP8"}),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4, "sym": True}}, {}, {"W4A16"}),
        ({"quantization_config": {"quant_method": "gptq", "bits": 3, "sym": False}}, {}, {"W3A16_ASYM"}),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, {}, {"W4A16_ASYM"}),
        ({}, {"scheme": "BF16"}, {"DENSE"}),
        ({}, {"scheme": "fp6"}, {"FP6"}),
        ({}, {}, set()),
        ({}, {"scheme": ["W4A16"]}, set()),
        ({"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"a": 5}}}, {}, set()),
    ],
)
def test_a_checkpoint_says_its_number_format(
    tmp_path: Path, settings: dict[str, Any], manifest: dict[str, Any], schemes: set[str]
) -> None:
    assert read_facts(checkpoint(tmp_path / "c", settings, manifest)).schemes == schemes


@pytest.mark.parametrize(
    ("settings", "hardware", "refusing"),
    [
        (group(INT4), None, {"trtllm", "openvino"}),
        (group(INT4), "cpu", {"sglang", "trtllm", "openvino"}),
        (group(INT4 | {"num_bits": 3}), None, {"vllm", "sglang", "trtllm", "openvino"}),
        (group(FP4), None, {"trtllm", "openvino"}),
        (group(FP4), "cpu", {"vllm", "sglang", "trtllm", "openvino"}),
        (group(FP4), "gpu", {"trtllm", "openvino"}),
        ({"quantization_config": {"quant_method": "gptq", "bits": 8}}, "cpu", {"vllm", "sglang", "trtllm", "openvino"}),
        ({}, "cpu", {"trtllm"}),
    ],
)
def test_an_engine_without_kernels_refuses(
    tmp_path: Path, settings: dict[str, Any], hardware: str | None, refusing: set[str]
) -> None:
    facts = read_facts(checkpoint(tmp_path / "c", settings, {"scheme": "BF16"}))
    reasons = {kind: can_serve(facts, backend_class(kind).capabilities, hardware) for kind in ENGINES}
    assert {kind for kind, why in reasons.items() if why} == refusing, reasons


def test_the_refusal_names_what_the_engine_has(tmp_path: Path) -> None:
    able = backend_class("vllm").capabilities
    three = read_facts(checkpoint(tmp_path / "c", group(INT4 | {"num_bits": 3})))
    assert "no kernels for W3A16; it has them for" in str(can_serve(three, able))
    assert "W4A16" in str(can_serve(three, able))
    four = read_facts(checkpoint(tmp_path / "c", group(FP4)))
    assert "NVFP4A16 run on GPU only; here it runs" in str(can_serve(four, able, "cpu"))
    assert "NVFP4" not in str(can_serve(four, able, "cpu")).partition("here it runs")[2]


def test_a_folder_of_gguf_is_for_the_embedded_engine_only(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c", {"architectures": ["Qwen2ForCausalLM"]}, {"scheme": "GGUF_Q4_0"})
    (folder / "model.gguf").touch()
    reasons = {kind: can_serve(read_facts(folder), backend_class(kind).capabilities) for kind in ENGINES}
    assert {kind for kind, why in reasons.items() if why} == {"vllm", "trtllm", "sglang"}
    assert "quantized as gguf" in str(reasons["vllm"])


@pytest.mark.parametrize("kind", engine_kinds())
def test_the_tables_hold_only_formats_that_have_a_name(kind: str) -> None:
    able = backend_class(kind).capabilities.schemes or {}
    assert set(able) <= set(SCHEMES)
    assert all("CPU" in where or "GPU" in where for where in able.values())


def test_programs_read_where_the_kernels_run() -> None:
    command = [sys.executable, "-m", "gateway", "engines", "--format", "json"]
    table = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout)
    assert table["vllm"]["schemes"]["W4A16"] == "CPU and GPU"
    assert table["openvino"]["schemes"]["GGUF_Q8_0"] == "CPU"
    assert table["openai"]["schemes"] is None


def test_the_check_names_the_format_before_anything_starts(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "fp4", group(FP4))
    main = {
        "engine": "vllm",
        "hardware": "cpu",
        "checkpoint": str(folder),
        "replicas": {"a": {"url": "http://127.0.0.1:9"}},
    }
    file = tmp_path / "gateway.yaml"
    file.write_text(yaml.safe_dump({"models": {"m": {"deployments": {"main": main}}}}))
    ran = subprocess.run(
        [sys.executable, "-m", "gateway", "check", str(file)], capture_output=True, text=True, timeout=30
    )
    assert ran.returncode == 2
    assert "models.m.deployments.main.checkpoint" in ran.stderr
    assert "NVFP4A16" in ran.stderr


MANIFEST = {
    "penstock_manifest": 1,
    "name": "small",
    "method": "gptq",
    "recipe": {"name": "gptq-w4a16", "steps": [{"method": "gptq"}]},
    "scheme": "W4A16",
    "bits_per_weight": 5.1,
    "sparsity": 0.0,
    "size_bytes": 2_280_000,
    "parent": {"name": "starter", "sha256": "0" * 64},
    "layers": {"model.layers.0.mlp.up_proj": {"error": 0.1}},
    "quality": {
        "perplexity": {"value": 17.9, "dataset": "prose"},
        "accuracy": {"mean": 0.7, "families": {"add": 0.9}},
        "mean_accuracy": 0.73,
    },
    "gate": {"metric": "perplexity", "passed": True, "trail": []},
    "files": {"config.json": {"sha256": "1"}},
}


def two_models(url: str, folder: Path) -> dict[str, Any]:
    settings = config(url, deployment={"checkpoint": str(folder), "model": "fake"})
    return settings | {
        "models": settings["models"] | config(url, model="plain", deployment={"model": "fake"})["models"]
    }


def test_models_of_every_engine_show_how_their_checkpoint_was_made(tmp_path: Path) -> None:
    """The engine itself says nothing of it: the gateway reads the manifest in the deployment's folder."""
    folder = checkpoint(tmp_path / "c", group(INT4), MANIFEST)
    with start_fake() as fake, start_gateway(two_models(fake.url, folder)) as gateway:
        listed = {card["id"]: card for card in httpx.get(f"{gateway.url}/v1/models").json()["data"]}
        whole = httpx.get(f"{gateway.url}/v1/models/m").json()
    assert "penstock" not in listed["plain"]
    short, long = listed["m"]["penstock"], whole["penstock"]
    for facts in (short, long):
        assert (facts["recipe"], facts["scheme"], facts["bits_per_weight"]) == ("gptq-w4a16", "W4A16", 5.1)
        assert (facts["sparsity"], facts["size_bytes"]) == (0.0, 2_280_000)
        assert not {"layers", "files"} & facts.keys()
    assert short["quality"] == {"perplexity": 17.9, "accuracy": 0.7, "mean_accuracy": 0.73}
    assert long["quality"]["perplexity"] == {"value": 17.9, "dataset": "prose"}
    assert long["quality"]["accuracy"] == {"mean": 0.7}
    assert (long["parent"]["name"], long["gate"]) == ("starter", {"metric": "perplexity", "passed": True})


@pytest.mark.parametrize(
    "manifest", [None, [], {}, {"recipe": [], "quality": 5}, {"recipe": {"name": 1}, "quality": {"a": [1]}}]
)
def test_an_unlikely_manifest_is_left_out(manifest: Any) -> None:
    assert facts_of(manifest, is_whole=True).get("recipe") is None
