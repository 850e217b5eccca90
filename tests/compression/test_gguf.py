"""GGUF export: blocks of every type against slow loops, names and rotary order against transformers' own reader."""

import math
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from compressor.checkpoint.sink import write_json
from compressor.checkpoint.source import Source
from compressor.errors import BadCheckpointError, BadRecipeError
from compressor.export import exporter_named
from compressor.export.gguf_folder import GGUF, KINDS
from compressor.export.gguf_source import GGUFSource, rotary_order
from compressor.quality.load import load_dense
from compressor.screen import Screen

STARTER = Path(__file__).parents[2] / "model_repo/checkpoints/starter"
QUIET = Screen(is_quiet=True)
SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "vocab_size": 2048, "max_position_embeddings": 64, "eos_token_id": 2039}
CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
BITS = {"F16": 16.0, "Q8_0": 8.5, "Q4_0": 4.5, "Q4_1": 5.0}


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, biases included where the architecture has them; the starter's tokenizer."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(3)
    made = AutoModelForCausalLM.from_config(CONFIGS[request.param](**SMALL, tie_word_embeddings=False))
    for name, parameter in made.named_parameters():
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(parameter, 1.0, 0.3)
        else:
            torch.nn.init.normal_(parameter, 0.0, 0.08)
    made.to(torch.bfloat16).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / file).write_bytes((STARTER / file).read_bytes())
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """The starter in every type, and what the exporter says of it."""
    root = tmp_path_factory.mktemp("gguf")
    return {kind: (root / kind, GGUF().run(STARTER, root / kind, kind, QUIET)) for kind in KINDS}


def slow_block(row: list[float], kind: str) -> list[float]:
    """What 32 values become, by the formulas of `quantize_row_*_ref`, in float32 with scales in float16."""
    f32, f16 = np.float32, np.float16
    if kind == "Q8_0":
        scale = f32(max(map(abs, row)) / f32(127))
        codes = [int(math.copysign(math.floor(abs(f32(v) / scale) + 0.5), v)) if scale else 0 for v in row]
        return [float(f32(f16(scale)) * code) for code in codes]
    if kind == "Q4_0":
        scale = f32(max(row, key=abs)) / f32(-8)
        codes = [min(15, int(f32(v) / scale + f32(8.5))) if scale else 8 for v in row]
        return [float(f32(f16(scale)) * (code - 8)) for code in codes]
    low, high = f32(min(row)), f32(max(row))
    scale = (high - low) / f32(15)
    codes = [min(15, int((f32(v) - low) / scale + f32(0.5))) if scale else 0 for v in row]
    return [float(f32(f16(scale)) * code + f32(f16(low))) for code in codes]


def read_block(raw: bytes, kind: str) -> list[float]:
    """A stored block of 32 by its layout in gguf.md."""
    scale = np.float32(np.frombuffer(raw[:2], np.float16)[0])
    if kind == "Q8_0":
        return [float(scale * code) for code in struct.unpack("32b", raw[2:])]
    least = np.float32(np.frombuffer(raw[2:4], np.float16)[0]) if kind == "Q4_1" else np.float32(-8) * scale
    packed = raw[4:] if kind == "Q4_1" else raw[2:]
    codes = [byte & 15 for byte in packed] + [byte >> 4 for byte in packed]
    return [float(scale * code + least) for code in codes]


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_blocks_are_what_slow_loops_make_of_them(written: dict[str, Any], kind: str) -> None:
    weights = load_file(STARTER / "model.safetensors")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(written[kind][0] / "model.gguf").tensors}
    size = {"Q8_0": 34, "Q4_0": 18, "Q4_1": 20}[kind]
    for name, target in (("self_attn.q_proj", "attn_q"), ("mlp.down_proj", "ffn_down")):
        plain = weights[f"model.layers.2.{name}.weight"].float()
        stored = tensors[f"blk.2.{target}.weight"]
        assert stored.tensor_type.name == kind
        rows = stored.data.reshape(plain.shape[0], -1)
        for row, column in ((0, 0), (7, 3), (100, 7)):
            raw = rows[row, column * size : (column + 1) * size].tobytes()
            values = plain[row, column * 32 : (column + 1) * 32].tolist()
            np.testing.assert_allclose(read_block(raw, kind), slow_block(values, kind), rtol=2e-3, atol=1e-7)


def test_a_block_of_zeros_stays_zero(tmp_path: Path) -> None:
    for kind in ("Q8_0", "Q4_0", "Q4_1"):
        packed = gguf.quantize(np.zeros((1, 32), np.float32), KINDS[kind].linear)
        assert read_block(packed.tobytes(), kind) == [0.0] * 32 == slow_block([0.0] * 32, kind)


def test_f16_holds_every_tensor_of_the_checkpoint_unchanged(written: dict[str, Any]) -> None:
    weights = load_file(STARTER / "model.safetensors")
    source = GGUFSource(written["F16"][0])
    assert source.entries.keys() == weights.keys()
    for name, weight in weights.items():
        assert source.entries[name].shape == tuple(weight.shape)
        stored = weight.half().float() if weight.ndim == 2 else weight.float()
        assert torch.equal(source.read(name), stored)


@pytest.mark.parametrize("kind", KINDS)
def test_bits_are_counted_with_scales_and_without_the_tokenizer(written: dict[str, Any], kind: str) -> None:
    folder, facts = written[kind]
    tensors = gguf.GGUFReader(folder / "model.gguf").tensors
    counted = sum(int(tensor.n_bytes) for tensor in tensors) * 8 / sum(int(tensor.n_elements) for tensor in tensors)
    assert facts["bits_per_weight"] == pytest.approx(counted, abs=1e-3)
    assert facts["bits_per_linear_weight"] == BITS[kind]
    assert GGUF().scheme(kind) == f"GGUF_{kind}"


def test_the_errors_are_ordered_as_the_bits_are(written: dict[str, Any]) -> None:
    plain = Source(STARTER)
    error = dict.fromkeys(KINDS, 0.0)
    for kind in KINDS:
        source = GGUFSource(written[kind][0])
        for name in plain.entries:
            error[kind] += float((source.read(name) - plain.read(name).float()).square().sum())
    assert error["F16"] < 1e-3 * error["Q8_0"]
    assert error["Q8_0"] * 50 < error["Q4_1"] < error["Q4_0"]


@torch.no_grad()
def test_another_reader_computes_the_same_logits(model: Path, tmp_path: Path) -> None:
    """transformers has a GGUF reader of its own, with its own idea of names and of Llama's rotary order."""
    GGUF().run(model, tmp_path / "out", "F16", QUIET)
    ids = torch.arange(40).reshape(2, 20) * 7
    mine, _ = load_dense(tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", gguf_file="model.gguf", config=AutoConfig.from_pretrained(model), dtype=torch.float32
    ).eval()
    original, _ = load_dense(model)
    expected = original(ids).logits
    torch.testing.assert_close(theirs(ids).logits, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(mine(ids).logits, expected, rtol=1e-3, atol=1e-3)
    assert float(expected.std()) > 0.1


def test_rotary_pairs_keep_their_dot_products() -> None:
    """q·k after rotating is the same whether pairs are (i, i + d/2) in plain order or (2i, 2i + 1) in GGUF's."""
    rng = np.random.default_rng(0)
    heads, d = 3, 8
    q, k = rng.normal(size=(2, heads * d))
    order = rotary_order(heads * d, heads)

    def rotated(x: np.ndarray, position: int, *, is_paired: bool) -> np.ndarray:
        out = x.reshape(heads, d).copy()
        for i in range(d // 2):
            angle = position / 10_000 ** (2 * i / d)
            a, b = (2 * i, 2 * i + 1) if is_paired else (i, i + d // 2)
            xa, xb = out[:, a].copy(), out[:, b].copy()
            out[:, a], out[:, b] = xa * np.cos(angle) - xb * np.sin(angle), xa * np.sin(angle) + xb * np.cos(angle)
        return out

    plain = (rotated(q, 5, is_paired=False) * rotated(k, 2, is_paired=False)).sum(1)
    paired = (rotated(q[order], 5, is_paired=True) * rotated(k[order], 2, is_paired=True)).sum(1)
    np.testing.assert_allclose(plain, paired)
    assert not np.allclose(plain, (rotated(q, 5, is_paired=True) * rotated(k, 2, is_paired=True)).sum(1))


def test_the_file_alone_holds_the_tokenizer(written: dict[str, Any]) -> None:
    reader = gguf.GGUFReader(written["Q4_0"][0] / "model.gguf")
    values = {name: field.contents() for name, field in reader.fields.items() if name.startswith("tokenizer.")}
    assert len(values["tokenizer.ggml.tokens"]) == 2048
    assert values["tokenizer.ggml.tokens"][values["tokenizer.ggml.eos_token_id"]] == "<|im_end|>"
    assert values["tokenizer.huggingface.json"] == (STARTER / "tokenizer.json").read_text("utf-8")
    assert "<|assistant|>" in values["tokenizer.chat_template"]
    assert reader.get_field("general.file_type").contents() == gguf.LlamaFileType.MOSTLY_Q4_0


def broken(folder: Path, config: dict[str, Any] | None = None, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    folder.mkdir()
    write_json(folder / "config.json", Source(STARTER).config | (config or {}))
    save_file(load_file(STARTER / "model.safetensors") | (tensors or {}), folder / "model.safetensors")
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / file).write_bytes((STARTER / file).read_bytes())
    return folder


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"architectures": ["OPTForCausalLM"]}, "not for OPTForCausalLM"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "llama3"),
        ({"attention_bias": True}, "biases in its attention"),
        ({"use_sliding_window": True}, "sliding-window"),
        ({"intermediate_size": [512, 384, 512, 512]}, "differ by layer"),
        ({"hidden_size": 250}, "whole blocks of 32"),
    ],
)
def test_what_a_reader_would_get_wrong_is_refused_before_the_work(config: dict[str, Any], word: str) -> None:
    with pytest.raises(BadCheckpointError, match=word):
        GGUF().check(Source(STARTER).config | config, "Q8_0")


def test_values_beyond_float16_are_refused_by_name(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    folder = broken(tmp_path / "m", tensors={name: torch.full((512, 256), 1e6, dtype=torch.bfloat16)})
    with pytest.raises(BadCheckpointError, match=name):
        GGUF().run(folder, tmp_path / "out", "Q8_0", QUIET)


def test_an_unknown_tensor_or_token_is_refused_by_name(tmp_path: Path) -> None:
    odd = broken(tmp_path / "odd", tensors={"model.layers.0.gate.weight": torch.ones(2, 2)})
    with pytest.raises(BadCheckpointError, match=r"model\.layers\.0\.gate\.weight"):
        GGUF().run(odd, tmp_path / "a", "F16", QUIET)
    short = broken(tmp_path / "short", tensors={"model.embed_tokens.weight": torch.ones(1024, 256)})
    with pytest.raises(BadCheckpointError, match="embedding 1024 rows"):
        GGUF().run(short, tmp_path / "b", "F16", QUIET)
    (short / "tokenizer.json").write_text('{"model": {"type": "Unigram"}}')
    with pytest.raises(BadCheckpointError, match="byte-level BPE"):
        GGUF().run(short, tmp_path / "c", "F16", QUIET)


def test_a_type_that_is_none_names_those_there_are() -> None:
    with pytest.raises(BadRecipeError, match="Q8_0, Q4_0"):
        GGUF().scheme("Q5_K")
    with pytest.raises(BadRecipeError, match="gguf"):
        exporter_named("openvino")
    assert exporter_named("compressed-tensors") is None


def test_a_truncated_file_is_named(written: dict[str, Any], tmp_path: Path) -> None:
    whole = written["Q8_0"][0]
    for file in whole.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.gguf").write_bytes((whole / "model.gguf").read_bytes()[:200_000])
    with pytest.raises(BadCheckpointError, match=r"model\.gguf is no whole GGUF file"):
        GGUFSource(tmp_path).read("model.norm.weight")
