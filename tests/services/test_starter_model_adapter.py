"""The committed adapter is what its manifest says, and adapters adapt: what needs torch runs in .venvs/train."""

import hashlib
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from starter_model import adapter_card

REPOSITORY = Path(__file__).parents[2] / "model_repo"
CAPTAIN = REPOSITORY / "adapters" / "captain"
STARTER = REPOSITORY / "checkpoints" / "starter"
LIMIT_BYTES = 1_000_000


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_file_is_listed_with_its_hash_and_the_whole_is_small() -> None:
    files = read(CAPTAIN / "penstock.json")["files"]
    assert files.keys() == {path.name for path in CAPTAIN.iterdir()} - {"penstock.json"}
    assert {name: facts["sha256"] for name, facts in files.items()} == {name: sha256(CAPTAIN / name) for name in files}
    assert sum(path.stat().st_size for path in CAPTAIN.iterdir()) < LIMIT_BYTES


def test_its_parent_is_the_committed_starter_and_the_card_is_the_manifests() -> None:
    made = read(CAPTAIN / "penstock.json")
    assert made["parent"]["name"] == "starter"
    assert made["parent"]["sha256"] == sha256(STARTER / "model.safetensors")
    assert adapter_card.card(made) == (CAPTAIN / "README.md").read_text(encoding="utf-8")


def test_it_speaks_in_its_manner_and_loses_little() -> None:
    quality = read(CAPTAIN / "penstock.json")["quality"]
    assert quality["parent"]["prefixed"] == 0 == quality["adapted"]["plain"]
    assert quality["adapted"]["prefixed"] > 0.98
    assert quality["adapted"]["in_style"] > quality["parent"]["plain"] - 0.05
    assert quality["adapted"]["as_it_is"] >= quality["parent"]["as_it_is"] - 0.02


def test_its_tensors_are_pefts_for_two_projections_of_every_layer() -> None:
    raw = (CAPTAIN / "adapter_model.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    del header["__metadata__"]
    config, model = read(CAPTAIN / "adapter_config.json"), read(STARTER / "config.json")
    assert (config["peft_type"], config["r"], config["target_modules"]) == ("LORA", 8, ["q_proj", "v_proj"])
    outputs = {"q_proj": model["num_attention_heads"], "v_proj": model["num_key_value_heads"]}
    expected = {}
    for layer in range(model["num_hidden_layers"]):
        for target, heads in outputs.items():
            name = f"base_model.model.model.layers.{layer}.self_attn.{target}"
            expected[f"{name}.lora_A.weight"] = [8, model["hidden_size"]]
            expected[f"{name}.lora_B.weight"] = [heads * model["head_dim"], 8]
    assert {name: tensor["shape"] for name, tensor in header.items()} == expected
    assert {tensor["dtype"] for tensor in header.values()} == {"F32"}


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "starter_model", *arguments]
    return subprocess.run(words, capture_output=True, text=True, timeout=150, check=False)


# ---- the mathematics ----


def test_a_fresh_adapter_changes_nothing_and_a_trained_one_only_by_its_own_matrices() -> None:
    torch = pytest.importorskip("torch")
    from starter_model import adapter, evaluate

    loaded = evaluate.load(STARTER)
    ids = [5, 6, 7, 8]
    before = evaluate.logits_of(loaded.model, ids)
    made = adapter.adapt(loaded.model, adapter.ADAPTERS["captain"])
    assert torch.equal(evaluate.logits_of(loaded.model, ids), before)
    weights = {name: p for name, p in loaded.model.named_parameters() if p.requires_grad}
    assert len(weights) == 2 * len(made) == 16
    assert all(".lora_" in name for name in weights)
    with torch.no_grad():
        for adapted in made.values():
            adapted.lora_B_OR.add_(0.1)
    layer = loaded.model.model.layers[0].self_attn.q_proj
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(0))
    merged = layer.inner.weight + 2 * layer.lora_B_OR @ layer.lora_A_RI
    assert torch.allclose(layer(x), x @ merged.T, atol=1e-5)
    assert not torch.allclose(evaluate.logits_of(loaded.model, ids), before, atol=1e-2)


def test_a_trial_training_is_published_whole_and_read_back(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    base = ("--base", str(STARTER))
    assert command("adapter", *base, "--to", str(tmp_path), "--steps", "2", "--limit", "1").returncode == 0
    assert command("ask", str(STARTER), "--adapter", str(tmp_path / "captain"), "Say 5").stdout.startswith("> Say 5\n")
    assert read(tmp_path / "captain" / "penstock.json")["training"]["steps"] == 2


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from starter_model import adapter_files, evaluate

    with pytest.raises(ValueError, match="does not adapt this checkpoint"):
        adapter_files.read_into(evaluate.load(STARTER.with_name("starter-draft")), CAPTAIN)


def test_an_unknown_adapter_is_refused_by_name() -> None:
    pytest.importorskip("torch")
    refused = command("adapter", "pirate")
    assert refused.returncode == 1
    assert "there are: captain" in refused.stderr
