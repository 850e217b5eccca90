"""The skeleton on another family than the starter's, and on files that do not fit their architecture."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.checkpoint.source import Source
from compressor.errors import BadCheckpointError
from compressor.families import family_of
from compressor.passes import Rows
from compressor.skeleton import Skeleton
from starter import STARTER


def opt(folder: Path) -> Any:
    """A tiny random OPT, saved."""
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=96,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    model = OPTForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model


def test_an_opt_with_learned_positions_gives_the_logits_of_the_whole_model(tmp_path: Path) -> None:
    model = opt(tmp_path)
    source = Source(tmp_path)
    skeleton = Skeleton(source, family_of(source.config), torch.device("cpu"))
    ids = torch.randint(4, 96, (2, 20))
    (batch,) = skeleton.embed([Rows(ids, torch.ones_like(ids, dtype=torch.bool))])
    hidden = batch.hidden_BTD
    with torch.no_grad():
        for index in range(skeleton.count):
            hidden = skeleton.block(index)(hidden, **batch.kwargs)
        expected = model(ids).logits
    torch.testing.assert_close(skeleton.logits(hidden), expected, rtol=1e-4, atol=1e-4)


def broken(folder: Path, change: Any) -> Source:
    shutil.copytree(STARTER, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return Source(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop("model.layers.0.mlp.up_proj.weight"), "has no tensor model.layers.0.mlp.up_proj"),
        (
            lambda tensors: tensors.update({"model.layers.0.mlp.up_proj.weight": torch.zeros(8, 256)}),
            r"has shape \[8, 256\], and config.json asks for \[512, 256\]",
        ),
        (
            lambda tensors: tensors.update({"model.layers.0.mlp.up_proj.bias": torch.zeros(512)}),
            "is not one that config.json's architecture has",
        ),
        (
            lambda tensors: tensors["model.layers.0.mlp.up_proj.weight"].view(-1)[7:8].fill_(float("nan")),
            "holds NaN or infinite values",
        ),
    ],
    ids=["missing", "shape", "unknown", "nan"],
)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, change: Any, words: str) -> None:
    source = broken(tmp_path / "model", change)
    skeleton = Skeleton(source, family_of(source.config), torch.device("cpu"))
    with pytest.raises(BadCheckpointError, match=words):
        skeleton.block(0)


def test_an_architecture_that_is_not_known_is_refused_with_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(BadCheckpointError, match="'mamba', which the compressor does not know; it knows llama"):
        family_of(Source(tmp_path).config)
