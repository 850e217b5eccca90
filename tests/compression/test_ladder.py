"""The ladder of published figures: the script on a tiny random OPT every day, on real weights where a user has them.

WEIGHTS=/path/to/opt-125m WIKITEXT=/path/to/wiki.test.raw pytest tests/compression/test_ladder.py -m weights
"""

import importlib.util
import json
import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from compressor.quality.load import load_dense
from compressor.screen import Screen
from starter import STARTER

SCRIPT = Path(__file__).parents[2] / "compression" / "bench" / "ladder.py"
WEIGHTS, WIKITEXT = os.environ.get("WEIGHTS"), os.environ.get("WIKITEXT")
QUIET = Screen(is_quiet=True)


@pytest.fixture(scope="module")
def ladder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ladder", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["ladder"] = module  # its dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tiny_opt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random OPT with the starter's tokens, and no chat template, as the real one."""
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 2048, "hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 128, "num_hidden_layers": 2}
    config = OPTConfig(**sizes, num_attention_heads=4, max_position_embeddings=128, init_std=0.2)
    folder = tmp_path_factory.mktemp("opt") / "tiny-opt"
    OPTForCausalLM(config).save_pretrained(folder)
    shutil.copy(STARTER / "tokenizer.json", folder)
    told = json.loads((STARTER / "tokenizer_config.json").read_text("utf-8"))
    told.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return folder


def test_rows_of_the_raw_file_are_joined_as_the_data_sets_readers_join_them(ladder: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "wiki.test.raw"
    path.write_text(" \n = Title = \n \n Words of a line . \n", "utf-8")
    rows = ["", " = Title = \n", "", " Words of a line . \n"]
    assert ladder.wikitext(path) == "\n\n".join(rows)


def test_every_rung_is_made_measured_and_put_beside_what_was_published(
    ladder: ModuleType, tiny_opt: Path, tmp_path: Path
) -> None:
    text = tmp_path / "wiki.test.raw"
    text.write_text("".join(f" The value {number} is returned , or None . \n" for number in range(60)), "utf-8")
    results: list[dict[str, Any]] = ladder.climb(tiny_opt, text, tmp_path / "out", QUIET, ctx=64, samples=4)
    assert [row["rung"] for row in results] == [rung.name for rung in ladder.RUNGS]
    assert all(row["perplexity"] > 1 for row in results)
    assert {row["protocol"]["text_sha256"] for row in results} == {results[0]["protocol"]["text_sha256"]}
    assert results[-1]["parameters"] not in (None, results[1]["parameters"])
    shown = ladder.table(results)
    assert "| gptq-4 |" in shown
    assert "31.13" in shown
    with torch.no_grad():
        pruned = load_dense(tmp_path / "out" / "sparsegpt-24")[0].model.decoder.layers[0].fc1.weight
    assert int((pruned.view(-1, 4) == 0).sum(1).min()) >= 2
    again = ladder.climb(tiny_opt, text, tmp_path / "out", QUIET, ctx=64, samples=4)
    assert again == results


@pytest.mark.weights
@pytest.mark.timeout(7200)
@pytest.mark.skipif(not (WEIGHTS and WIKITEXT), reason="WEIGHTS=/path/to/opt-125m WIKITEXT=/path/to/wiki.test.raw")
def test_the_published_figures_are_met_on_real_weights(ladder: ModuleType, tmp_path: Path) -> None:
    assert WEIGHTS is not None
    assert WIKITEXT is not None
    text = Path(WIKITEXT)
    train = text.with_name(text.name.replace("test", "train"))
    results = ladder.climb(
        Path(WEIGHTS), text, tmp_path / "out", Screen(), train=train if train.is_file() and train != text else None
    )
    print(ladder.table(results))
    found = {row["rung"]: row["perplexity"] for row in results}
    assert found["dense"] == pytest.approx(27.66, rel=0.005)
    assert found["dense"] < found["gptq-4"] < found["rtn-4"]
    assert found["sparsegpt-50"] < found["magnitude-50"]
    assert found["sparsegpt-50"] < found["sparsegpt-24"]
    for rung in ladder.RUNGS:
        if rung.name != "magnitude-50":
            assert found[rung.name] == pytest.approx(rung.published, rel=0.25), rung.name
    assert {row["rung"]: row["parameters"] for row in results}["slicegpt-20"] == 147_250_880
