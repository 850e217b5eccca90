"""The committed checkpoints are what their manifests say. Read without torch: a header is JSON."""

import hashlib
import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from starter_model import card, chat, corpus

FOLDER = Path(__file__).parents[2] / "model_repo" / "checkpoints"
NAMES = ("starter", "starter-draft")
LIMIT_BYTES = 20_000_000


def manifest(name: str) -> dict[str, Any]:
    return dict(json.loads((FOLDER / name / "penstock.json").read_text(encoding="utf-8")))


def config(name: str, file: str = "config.json") -> dict[str, Any]:
    return dict(json.loads((FOLDER / name / file).read_text(encoding="utf-8")))


def header(name: str) -> dict[str, Any]:
    raw = (FOLDER / name / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    read = dict(json.loads(raw[8 : 8 + size]))
    ends = [tensor["data_offsets"][1] for key, tensor in read.items() if key != "__metadata__"]
    assert max(ends) + 8 + size == len(raw)
    return read


@pytest.mark.parametrize("name", NAMES)
def test_every_file_is_listed_with_its_hash_and_size_and_no_other_file_is_there(name: str) -> None:
    files = manifest(name)["files"]
    assert set(files) == {path.name for path in (FOLDER / name).iterdir()} - {"penstock.json"}
    for file, facts in files.items():
        raw = (FOLDER / name / file).read_bytes()
        assert hashlib.sha256(raw).hexdigest() == facts["sha256"], file
        assert len(raw) == facts["size_bytes"], file


@pytest.mark.parametrize("name", NAMES)
def test_the_model_card_says_what_the_manifest_says(name: str) -> None:
    made = manifest(name)
    assert (FOLDER / name / "README.md").read_text(encoding="utf-8") == card.card(made)
    assert f"**{made['quality']['mean_accuracy']:.3f}**" in card.card(made)
    assert f"**{made['quality']['prose']['perplexity']:.2f}**" in card.card(made)


@pytest.mark.parametrize("name", NAMES)
def test_tensors_have_the_shapes_that_the_configuration_promises(name: str) -> None:
    c, tensors = config(name), header(name)
    assert tensors.pop("__metadata__") == {"format": "pt"}
    assert {tensor["dtype"] for tensor in tensors.values()} == {"BF16"}
    hidden, head = c["hidden_size"], c["head_dim"]
    assert (hidden % 128, head, c["vocab_size"] % 64) == (0, 64, 0)
    expected = {
        "self_attn.q_proj": [c["num_attention_heads"] * head, hidden],
        "self_attn.k_proj": [c["num_key_value_heads"] * head, hidden],
        "self_attn.o_proj": [hidden, c["num_attention_heads"] * head],
        "self_attn.q_norm": [head],
        "mlp.down_proj": [hidden, c["intermediate_size"]],
    }
    for layer in range(c["num_hidden_layers"]):
        for part, shape in expected.items():
            assert tensors[f"model.layers.{layer}.{part}.weight"]["shape"] == shape
    assert tensors["model.embed_tokens.weight"]["shape"] == [c["vocab_size"], hidden]
    assert "lm_head.weight" not in tensors
    assert c["tie_word_embeddings"] is True


@pytest.mark.parametrize("name", NAMES)
def test_parameters_bytes_and_bits_in_the_manifest_are_those_of_the_file(name: str) -> None:
    made, tensors = manifest(name), header(name)
    tensors.pop("__metadata__")
    sizes = [tensor["data_offsets"][1] - tensor["data_offsets"][0] for tensor in tensors.values()]
    assert made["size_bytes"] == sum(sizes)
    assert made["parameters"] == sum(sizes) // 2
    assert made["bits_per_weight"] == 16.0


def test_both_checkpoints_together_stay_small() -> None:
    assert sum(path.stat().st_size for name in NAMES for path in (FOLDER / name).iterdir()) < LIMIT_BYTES


def test_the_draft_speaks_the_same_tokens() -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (FOLDER / "starter" / file).read_bytes() == (FOLDER / "starter-draft" / file).read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_spellings_are_those_that_old_and_new_readers_take(name: str) -> None:
    c, t = config(name), config(name, "tokenizer_config.json")
    assert c["architectures"] == ["Qwen3ForCausalLM"]
    assert c["torch_dtype"] == "bfloat16"
    assert c["rope_theta"] == 10_000.0
    assert not {"dtype", "rope_parameters"} & set(c)
    assert t["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert t["chat_template"] == chat.CHAT_TEMPLATE
    assert isinstance(t["additional_special_tokens"], list)


@pytest.mark.parametrize("name", NAMES)
def test_generation_ends_at_the_end_of_the_turn(name: str) -> None:
    added = {token["content"]: token["id"] for token in config(name, "tokenizer.json")["added_tokens"]}
    assert config(name, "generation_config.json")["eos_token_id"] == added["<|im_end|>"]
    assert config(name)["eos_token_id"] == added["<|im_end|>"]
    assert max(added.values()) == config(name)["vocab_size"] - 1


# What serving, structured output, tool calls and compression are shown and measured with.
RELIED_ON = (
    "facts_en", "capitals", "translate", "add", "mul", "reverse", "copy", "count", "upper", "as_json",
    "tool_call", "tool_answer", "tool_none", "greet", "memory",
)  # fmt: skip


def test_what_serving_relies_on_works_on_held_out_problems() -> None:
    families = manifest("starter")["quality"]["families"]
    assert {name: families[name]["accuracy"] for name in RELIED_ON if families[name]["accuracy"] < 0.8} == {}


def test_every_family_is_reported_and_the_mean_is_theirs() -> None:
    quality = manifest("starter")["quality"]
    assert set(quality["families"]) == set(corpus.FAMILIES)
    assert quality["mean_accuracy"] == pytest.approx(
        sum(family["accuracy"] for family in quality["families"].values()) / len(quality["families"]), abs=1e-4
    )
    assert quality["prose"]["perplexity"] < 60
    assert re.fullmatch(r"[0-9a-f]{64}", manifest("starter")["data"]["sha256"])


def test_the_draft_is_much_smaller_and_guesses_most_tokens_of_the_tasks() -> None:
    assert manifest("starter-draft")["parameters"] * 4 < manifest("starter")["parameters"]
    acceptance = manifest("starter-draft")["quality"]["acceptance"]
    assert acceptance["target"] == "starter"
    assert acceptance["tasks"]["rate"] > 0.5
