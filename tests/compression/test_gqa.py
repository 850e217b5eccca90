"""Grouped-query conversion: exact where the heads that become one are equal, and a mean of heads where they are not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compressor.checkpoint.sink import Sink
from compressor.checkpoint.source import Source
from compressor.errors import BadCheckpointError, BadRecipeError
from compressor.families import family_of
from compressor.methods.gqa import GQA, GQAParams, kv_bytes_a_token, kv_heads_after, pool
from compressor.passes import ModelPass
from compressor.screen import Screen
from starter import STARTER

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 64,
}
HEAD = {"llama": 4, "qwen3": 16, "qwen2": 4}


def checkpoint(model_type: str, folder: Path, equal: int) -> Path:
    """Random, with every `equal` successive key/value heads the same, biases and norms far from trivial."""
    from transformers import AutoConfig, AutoModelForCausalLM

    own = {"head_dim": 16} if model_type == "qwen3" else {}
    torch.manual_seed(4)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SIZES, **own))
    for name, parameter in model.named_parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.3)
        if "k_proj" in name or "v_proj" in name:
            heads = parameter.data.unflatten(0, (8 // equal, equal, HEAD[model_type]))
            parameter.data = heads[:, :1].expand_as(heads).reshape(parameter.shape).clone()
    model.save_pretrained(folder)
    return folder


def convert(folder: Path, out: Path, **params: Any) -> ModelPass:
    source = Source(folder)
    work = ModelPass(source, Sink(out), family_of(source.config), [], torch.device("cpu"), 0, Screen(is_quiet=True))
    GQA(GQAParams(**params)).run(work)
    work.sink.finish()
    return work


def logits(folder: Path) -> Tensor:
    from transformers import AutoModelForCausalLM

    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return torch.as_tensor(model(input_ids=ids).logits)


@pytest.mark.parametrize("model_type", HEAD)
@pytest.mark.parametrize("how", ["mean", "first"])
@pytest.mark.parametrize(("equal", "kv_heads"), [(2, 4), (4, 2), (8, 1)])
def test_pooling_equal_heads_changes_nothing(
    model_type: str, how: Any, equal: int, kv_heads: int, tmp_path: Path
) -> None:
    parent = checkpoint(model_type, tmp_path / "parent", equal)
    convert(parent, tmp_path / "child", kv_heads=kv_heads, pool=how)
    assert Source(tmp_path / "child").config["num_key_value_heads"] == kv_heads
    before, after = logits(parent), logits(tmp_path / "child")
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()


def test_pooling_heads_that_differ_does_change_it(tmp_path: Path) -> None:
    parent = checkpoint("llama", tmp_path / "parent", 2)
    convert(parent, tmp_path / "child", kv_heads=2)
    assert (logits(tmp_path / "child") - logits(parent)).abs().max() > 0.1


def test_a_pooled_head_is_the_mean_of_successive_heads() -> None:
    rows = torch.randn(6 * 4, 5, dtype=torch.float64)
    pooled = pool(rows, 6, 2)
    for head in range(2):
        for row in range(4):
            slow = sum(rows[(3 * head + member) * 4 + row] for member in range(3)) / 3
            assert torch.allclose(pooled[4 * head + row], torch.as_tensor(slow))
    assert torch.equal(pool(rows, 6, 2, "first"), torch.cat([rows[:4], rows[12:16]]))
    assert torch.equal(pool(rows[:, 0], 6, 2), pooled[:, 0])


def test_a_grouped_model_can_be_grouped_further_in_its_own_dtype(tmp_path: Path) -> None:
    work = convert(STARTER, tmp_path)
    parent, child = Source(STARTER), Source(tmp_path)
    assert child.config["num_key_value_heads"] == 1
    assert {entry.dtype for entry in child.entries.values()} == {"BF16"}
    changed = {name for name in parent.entries if child.entries[name].shape != parent.entries[name].shape}
    assert changed == {f"model.layers.{i}.self_attn.{k}_proj.weight" for i in range(4) for k in "kv"}
    assert all(torch.equal(child.read(name), parent.read(name)) for name in parent.entries if name not in changed)
    assert work.facts["kv_bytes_per_token"] == {"before": 2 * 4 * 2 * 64 * 2, "after": 2 * 4 * 64 * 2}


def test_kv_bytes_a_token_are_those_of_llama_2_7b_and_llama_3_8b() -> None:
    llama_2 = {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096}
    assert kv_bytes_a_token(llama_2) == 524_288
    assert kv_bytes_a_token(llama_2 | {"num_key_value_heads": 8}) == 131_072


@pytest.mark.parametrize(
    ("kv_heads", "told"),
    [(3, "kv_heads may be 1, 2, 4"), (8, "cannot become 8"), (16, "cannot become 16")],
)
def test_a_number_of_heads_that_does_not_divide_is_refused(kv_heads: int, told: str) -> None:
    with pytest.raises(BadRecipeError, match=told):
        kv_heads_after({"model_type": "llama", **SIZES}, kv_heads)


def test_what_cannot_be_grouped_is_refused() -> None:
    with pytest.raises(BadRecipeError, match="1 key/value heads cannot become 0: one is the least"):
        kv_heads_after({"model_type": "llama", **SIZES, "num_key_value_heads": 1}, None)
    with pytest.raises(BadCheckpointError, match="opt has a key/value head for each query head"):
        kv_heads_after({"model_type": "opt", "num_attention_heads": 8}, 4)
