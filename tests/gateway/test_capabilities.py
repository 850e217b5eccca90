"""One truth about engines: which checkpoint which engine can serve, asked before anything starts; the docs' tables."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.backends.capabilities import Shape
from gateway.backends.checkpoint import CheckpointError, read_facts
from gateway.backends.constraint import ConstraintKind
from gateway.backends.fit import can_serve
from gateway.backends.registry import backend_class, engine_kinds
from gateway.backends.table import updated
from gateway.core.call import Endpoint
from gateway.core.openai import FIELD_TYPES

ROOT = Path(__file__).parents[2]
STARTER = ROOT / "model_repo/checkpoints/starter"
LLAMA = {"architectures": ["LlamaForCausalLM"], "hidden_size": 256, "num_attention_heads": 4}
ENGINES = ("vllm", "sglang", "trtllm", "lightllm", "openvino")
SPARSE_24 = {"quant_method": "compressed-tensors", "format": "sparse-24-bitmask"}


def checkpoint(folder: Path, config: dict[str, Any], manifest: dict[str, Any] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA | config))
    if manifest is not None:
        (folder / "penstock.json").write_text(json.dumps(manifest))
    return folder


def reason(folder: Path, kind: str) -> str | None:
    return can_serve(read_facts(folder), backend_class(kind).capabilities)


@pytest.mark.parametrize("kind", engine_kinds())
def test_every_engine_serves_the_starter(kind: str) -> None:
    assert reason(STARTER, kind) is None


@pytest.mark.parametrize(
    ("config", "manifest", "refusing", "word"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, {}, {"openvino"}, "gptq"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, {}, {"openvino", "trtllm"}, "compressed"),
        ({"quantization_config": SPARSE_24}, {}, {"vllm", "sglang", "trtllm", "lightllm", "openvino"}, ""),
        ({"architectures": ["MambaForCausalLM"]}, {}, {"openvino"}, "Llama"),
        ({"intermediate_size": [512, 384]}, {}, set(ENGINES), "sizes that differ by layer"),
        ({}, {"method": "SliceGPT"}, set(ENGINES), "sliced"),
        ({}, {"scheme": "SpQR"}, set(ENGINES), "spqr"),
        ({}, {"scheme": "FP6"}, set(ENGINES), "fp6"),
        ({}, {"scheme": "FP6", "recipe": {"export": {"format": "dense"}}}, set(), ""),  # decoded, in 16 bits each
        ({}, {"scheme": "SpQR", "recipe": []}, set(ENGINES), "spqr"),
        ({}, {"structure": ["low-rank factors"]}, set(ENGINES), "low-rank"),
        ({}, {"method": "p-tuning-v2"}, set(ENGINES), "prefix"),
        ({"num_attention_heads": 3}, {}, set(ENGINES), "head_dim"),
        ({"num_attention_heads": 3, "head_dim": 64}, {"method": "llm-pruner"}, set(), ""),  # alike in every layer
        ({}, {"method": "wanda", "sparsity": 0.5}, set(), ""),  # zeros, stored densely
        ({"architectures": ["Gemma3nForCausalLM"], "intermediate_size": [1, 2]}, {}, {"openvino"}, "Gemma3n"),
    ],
)
def test_who_can_serve_what(
    tmp_path: Path, config: dict[str, Any], manifest: dict[str, Any], refusing: set[str], word: str
) -> None:
    folder = checkpoint(tmp_path / "c", config, manifest)
    reasons = {kind: reason(folder, kind) for kind in ENGINES}
    assert {kind for kind, why in reasons.items() if why} == refusing
    assert all(word in why for why in reasons.values() if why)


def test_a_24_checkpoint_stored_in_its_own_format_is_named_as_what_it_is(tmp_path: Path) -> None:
    """vLLM 0.19.1 and later: "Sparse24 models are no longer supported"."""
    folder = checkpoint(tmp_path / "c", {"quantization_config": SPARSE_24})
    assert "2:4 compressed" in str(reason(folder, "vllm"))
    able = replace(backend_class("vllm").capabilities, shapes=frozenset({Shape.SPARSE_24}))
    assert can_serve(read_facts(folder), able) is None


def test_an_engine_that_serves_a_conversion_is_not_judged_by_the_original(tmp_path: Path) -> None:
    assert reason(checkpoint(tmp_path / "c", {}, {"method": "slicegpt"}), "mnn") is None


@pytest.mark.parametrize(
    ("files", "word"),
    [
        ({}, "no config.json"),
        ({"config.json": "{"}, "cannot be read"),
        ({"config.json": "[]"}, "not a JSON object"),
        ({"config.json": "[" * 100_000}, "cannot be read"),
        ({"config.json": " " * (16 * 2**20 + 1)}, "larger than 16 MiB"),
        ({"config.json": '{"quantization_config": "gptq"}'}, "quantization_config is not a JSON object"),
        ({"config.json": '{"quantization_config": {"sparsity_config": 5}}'}, "sparsity_config is not a JSON object"),
        ({"config.json": '{"text_config": [1]}'}, "text_config is not a JSON object"),
        ({"adapter_config.json": "{}"}, "LoRA adapter"),
    ],
)
def test_what_is_no_checkpoint_is_said_to_be_none(tmp_path: Path, files: dict[str, str], word: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=word):
        read_facts(tmp_path)


def test_a_name_that_no_folder_can_have_is_no_checkpoint() -> None:
    with pytest.raises(CheckpointError, match="too long"):
        read_facts(Path("x" * 5000))


@pytest.mark.parametrize(
    ("config", "manifest"),
    [
        ({"architectures": "LlamaForCausalLM"}, {}),  # one, not in a list
        ({"quantization_config": {"format": ["a"]}}, {}),
        ({"hidden_size": "wide", "num_attention_heads": 0}, {}),
        ({}, {"structure": [{}, 5], "method": [], "scheme": {}}),
    ],
)
def test_what_has_an_unlikely_type_is_nothing_known(
    tmp_path: Path, config: dict[str, Any], manifest: dict[str, Any]
) -> None:
    folder = checkpoint(tmp_path / "c", config, manifest)
    assert {reason(folder, kind) for kind in ENGINES} == {None}


def test_bitsandbytes_is_known_by_its_old_way_of_writing(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c", {"quantization_config": {"load_in_4bit": True}})
    assert reason(folder, "vllm") is None
    assert "quantized as bitsandbytes" in str(reason(folder, "openvino"))


@pytest.mark.parametrize("command", [["check"], ["serve", "--config"]])
def test_a_wrong_match_ends_check_and_serve_before_anything_starts(tmp_path: Path, command: list[str]) -> None:
    folder = checkpoint(tmp_path / "sliced", {}, {"method": "slicegpt"})
    replicas = {"a": {"url": "http://127.0.0.1:9"}}
    deployments = {
        "bad": {"engine": "vllm", "checkpoint": str(folder), "replicas": replicas},
        "odd": {"engine": "mnn", "warm_up": "embeddings", "replicas": {"a": {"url": "grpc://127.0.0.1:9"}}},
    }
    file = tmp_path / "gateway.yaml"
    file.write_text(yaml.safe_dump({"server": {"port": 0}, "models": {"m": {"deployments": deployments}}}))
    ran = subprocess.run(
        [sys.executable, "-m", "gateway", *command, str(file)], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 2
    lines = ran.stderr.splitlines()
    assert f"{file}: models.m.deployments.bad.checkpoint: {folder} cannot be served by vllm, because " in lines[1]
    assert "models.m.deployments.odd.warm_up: mnn does not offer embeddings" in lines[2]
    assert "models.m.deployments.odd.replicas.a.url: mnn is spoken to over http" in lines[3]


@pytest.mark.parametrize("kind", ["mnn", "triton"])
def test_check_misses_a_tokenizer_where_the_gateway_needs_it(tmp_path: Path, kind: str) -> None:
    folder = checkpoint(tmp_path / "bare", {})
    url = {"mnn": "http://127.0.0.1:9", "triton": "grpc://127.0.0.1:9"}[kind]
    deployment = {"engine": kind, "checkpoint": str(folder), "replicas": {"a": {"url": url}}}
    file = tmp_path / "gateway.yaml"
    file.write_text(yaml.safe_dump({"models": {"m": {"deployments": {"main": deployment}}}}))
    ran = subprocess.run(
        [sys.executable, "-m", "gateway", "check", str(file)], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 2
    assert f"models.m.deployments.main.checkpoint: {folder / 'tokenizer.json'} cannot be read" in ran.stderr


@pytest.mark.parametrize("kind", engine_kinds())
def test_capabilities_and_request_fields_agree(kind: str) -> None:
    engine = backend_class(kind)
    able, chat = engine.capabilities, engine.fields.get(Endpoint.CHAT, frozenset())
    for endpoint, names in engine.fields.items():
        assert names <= FIELD_TYPES[endpoint].keys(), "a field the gateway would refuse before the engine is asked"
    assert ("tools" in chat) is able.tools
    assert ("logprobs" in chat) is able.logprobs
    assert ("response_format" in chat) is bool(able.constraints)
    if able.constraints & {ConstraintKind.REGEX, ConstraintKind.CHOICE, ConstraintKind.GRAMMAR}:
        assert "structured_outputs" in chat
    assert able.logprobs or not able.top_logprobs


def test_the_tables_of_the_docs_are_those_of_the_code() -> None:
    page = (ROOT / "docs/engines.md").read_text("utf-8")
    is_true = updated(page, [backend_class(kind) for kind in engine_kinds()]) == page
    assert is_true, "run `penstock gateway engines --update docs/engines.md` and commit the page"


def test_the_command_prints_what_the_docs_hold() -> None:
    command = [sys.executable, "-m", "gateway", "engines", "--format"]
    markdown, text = (
        subprocess.run([*command, form], capture_output=True, text=True, timeout=60, check=True).stdout
        for form in ("markdown", "text")
    )
    assert markdown in (ROOT / "docs/engines.md").read_text("utf-8")
    assert all(re.search(rf"^{kind} .*(real|contract)", text, re.MULTILINE) for kind in engine_kinds())
