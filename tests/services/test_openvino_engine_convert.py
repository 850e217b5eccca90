"""The converter, judged by numbers: the engine on converted weights equals a numpy forward of the original ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import openvino_genai
import pytest

import openvino
from openvino_engine.checkpoint import library_tokenizer, load_checkpoint
from openvino_engine.convert import ConversionError, SafetensorsError, content_hash, convert, convert_cached
from openvino_engine.gguf_tokenizer import TokenizerError
from openvino_engine.pipeline import PipelineOptions, pipeline_opener
from reference_forward import Reference
from tiny_checkpoints import write_checkpoint

PROMPT = list(range(60, 100))
TOKENS = 32


def generate(model_path: Path, options: PipelineOptions, prompt: list[int]) -> tuple[list[int], list[float]]:
    pipeline = pipeline_opener(model_path, library_tokenizer(model_path), options)()
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.logprobs = TOKENS, True, 1
    handle = pipeline.add_request(1, openvino.Tensor(np.array([prompt], dtype=np.int64)), config)
    tokens: list[int] = []
    logprobs: list[float] = []
    while pipeline.has_non_finished_requests():
        pipeline.step()
        while handle.can_read():
            for output in handle.read().values():
                tokens += output.generated_ids
                logprobs += output.generated_log_probs
    return tokens, logprobs


@pytest.mark.engine
@pytest.mark.parametrize(
    "shape",
    [
        {"architecture": "llama"},
        {"architecture": "llama", "tied": False, "shards": 3, "heads": 2, "kv_heads": 1},
        {"architecture": "llama", "dtype": "F16", "kv_heads": 4},
        {"architecture": "qwen3"},
        {"architecture": "qwen3", "tied": False, "dtype": "F32", "hidden": 192},
    ],
    ids=["llama", "llama-untied-sharded-mqa", "llama-f16-mha", "qwen3", "qwen3-untied-f32-odd-width"],
)
def test_greedy_tokens_and_logprobs_equal_the_numpy_reference(tmp_path: Path, shape: dict[str, Any]) -> None:
    folder = write_checkpoint(tmp_path / "model", **shape)
    tokens, logprobs = generate(convert_cached(folder, tmp_path / "cache"), PipelineOptions(), PROMPT)
    reference = Reference(folder)
    assert tokens == reference.greedy(PROMPT, TOKENS)
    rows = reference.logprobs(PROMPT + tokens)[len(PROMPT) - 1 : -1]
    # f16 storage of f32 weights rounds; everything else only differs by f32 arithmetic.
    tolerance = 2e-2 if shape.get("dtype") == "F32" else 1e-3
    np.testing.assert_allclose(logprobs, rows[np.arange(TOKENS), tokens], atol=tolerance)


@pytest.mark.engine
def test_a_prompt_that_is_cut_into_steps_gives_the_same_tokens(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", architecture="qwen3")
    gguf_path = convert_cached(folder, tmp_path / "cache")
    prompt = [int(i) for i in np.random.default_rng(3).integers(0, 350, 200)]
    whole, _ = generate(gguf_path, PipelineOptions(), prompt)
    cut, _ = generate(gguf_path, PipelineOptions(max_num_seqs=16, max_batched_tokens=48), prompt)
    assert whole == cut == Reference(folder).greedy(prompt, TOKENS)


def test_the_cache_is_keyed_by_content_and_not_written_twice(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    first = convert_cached(folder, tmp_path / "cache")
    stamp = first.stat().st_mtime_ns
    assert convert_cached(folder, tmp_path / "cache") == first
    assert first.stat().st_mtime_ns == stamp
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 500.0}))
    assert convert_cached(folder, tmp_path / "cache") != first
    assert sorted(tmp_path.joinpath("cache").iterdir()) == sorted({first, convert_cached(folder, tmp_path / "cache")})


def test_one_changed_weight_changes_the_hash(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    before = content_hash(folder)
    raw = bytearray((folder / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (folder / "model.safetensors").write_bytes(raw)
    assert content_hash(folder) != before


def test_a_failed_conversion_leaves_no_file(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is missing"):
        convert(folder, tmp_path / "out" / "model.gguf")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architecture 'GPT2LMHeadModel' is not converted"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling 'llama3'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_scaling 'yarn'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"use_sliding_window": True}, "sliding-window"),
        ({"num_hidden_layers": 3}, r"missing \['model\.layers\.2"),
        ({"num_hidden_layers": 1}, r"unknown \['model\.layers\.1"),
    ],
)
def test_what_the_reader_cannot_run_is_refused_by_name(tmp_path: Path, extra: dict[str, Any], message: str) -> None:
    folder = write_checkpoint(tmp_path / "model", extra=extra)
    with pytest.raises(ConversionError, match=message):
        convert(folder, tmp_path / "model.gguf")


def test_a_cut_safetensors_file_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(SafetensorsError, match="does not fit its byte range"):
        convert(folder, tmp_path / "model.gguf")


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(SafetensorsError, match="not a safetensors file"):
        convert(folder, tmp_path / "model.gguf")


def test_a_missing_shard_is_noticed(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(SafetensorsError, match="tensors of the index are missing"):
        convert(folder, tmp_path / "model.gguf")


def test_a_bare_gguf_file_carries_tokenizer_template_and_end_tokens(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", architecture="qwen3")
    convert(folder, tmp_path / "alone" / "model.gguf")
    original = load_checkpoint(folder, tmp_path / "cache")
    bare = load_checkpoint(tmp_path / "alone" / "model.gguf", tmp_path / "cache")
    text = "hello wörld 你好 <|im_start|>user\n  def main(): 123"
    encode = {"add_special_tokens": False}
    assert bare.tokenizer.encode(text, **encode) == original.tokenizer.encode(text, **encode)
    assert bare.tokenizer.pieces == original.tokenizer.pieces
    assert (bare.eos_ids, bare.context, bare.chat_template) == (original.eos_ids, 2048, original.chat_template)


def test_a_folder_that_is_no_model_says_what_a_model_is(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="is not a model: give a"):
        load_checkpoint(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", "cannot read"),
        ("config.json", "[]", "is not a JSON object"),
        ("config.json", '{"architectures": ["LlamaForCausalLM"]}', "lacks hidden_size"),
        ("tokenizer.json", "not json", r"tokenizer\.json is not JSON"),
        ("tokenizer.json", '{"model": {"type": "WordPiece"}}', "is not byte-level BPE"),
        ("tokenizer_config.json", "{", r"tokenizer_config\.json is not JSON"),
        ("generation_config.json", "{", r"generation_config\.json is not JSON"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / name).write_text(content)
    with pytest.raises((ConversionError, TokenizerError), match=message):
        load_checkpoint(folder, tmp_path / "cache")


def test_a_broken_gguf_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF nonsense")
    with pytest.raises(ConversionError, match="is not a readable GGUF file"):
        load_checkpoint(path, tmp_path)
