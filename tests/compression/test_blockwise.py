"""The sequential driver on the starter model: what it promises whatever the method is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compressor.block import Block
from compressor.blockwise import BlockPass
from compressor.checkpoint.sink import Sink
from compressor.checkpoint.source import Source
from compressor.families import family_of
from compressor.passes import Rows
from compressor.screen import Screen
from compressor.skeleton import Skeleton
from simple_methods import Halve, Nothing, Plain
from starter import STARTER


def some_rows(count: int = 2, length: int = 24) -> list[Rows]:
    ids = torch.randint(0, 2000, (count, length), generator=torch.Generator().manual_seed(1))
    return [Rows(ids, torch.ones_like(ids, dtype=torch.bool))]


def run(method: Any, folder: Path, rows: list[Rows], stop_after: int | None = None) -> BlockPass:
    source = Source(STARTER)
    skeleton = Skeleton(source, family_of(source.config), torch.device("cpu"))
    sink = Sink(folder)
    driver = BlockPass(skeleton, [method], Plain(), sink, Screen(is_quiet=True))
    if stop_after is not None:
        work, done = method.apply, iter(range(stop_after))

        def interrupted(block: Block) -> None:
            if next(done, None) is None:
                raise KeyboardInterrupt
            work(block)

        method.apply = interrupted
    driver.run(skeleton.embed(rows))
    sink.config = source.config
    sink.finish()
    return driver


def reference_model() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(STARTER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def reference() -> Any:
    return reference_model()


def test_a_method_that_changes_nothing_leaves_the_file_bit_for_bit(tmp_path: Path) -> None:
    driver = run(Nothing(), tmp_path, some_rows())
    parent, child = Source(STARTER), Source(tmp_path)
    assert sorted(child.entries) == sorted(parent.entries)
    assert all(torch.equal(child.read(name), parent.read(name)) for name in parent.entries)
    assert driver.layers["model.layers.0"]["output_error"] == 0


def test_the_blocks_give_the_logits_of_the_whole_model(reference: Any) -> None:
    source, rows = Source(STARTER), some_rows()
    skeleton = Skeleton(source, family_of(source.config), torch.device("cpu"))
    (batch,) = skeleton.embed(rows)
    hidden = batch.hidden_BTD
    with torch.no_grad():
        for index in range(skeleton.count):
            hidden = skeleton.block(index)(hidden, **batch.kwargs)
        expected = reference(rows[0].ids_BT).logits
    torch.testing.assert_close(skeleton.logits(hidden), expected, rtol=1e-4, atol=1e-4)


def test_a_block_sees_what_the_compressed_blocks_before_it_produce(tmp_path: Path) -> None:
    method, model, rows = Halve(), reference_model(), some_rows()
    run(method, tmp_path, rows)
    inputs: dict[str, Tensor] = {}
    with torch.no_grad():
        for module in model.model.layers[0].modules():
            if isinstance(module, torch.nn.Linear):
                module.weight /= 2
        layer = model.model.layers[1].self_attn.q_proj
        layer.register_forward_hook(lambda _, args, __: inputs.update(q=args[0].reshape(-1, 256)))
        model(rows[0].ids_BT)
    torch.testing.assert_close(method.seen["model.layers.1.self_attn.q_proj"], inputs["q"], rtol=1e-4, atol=1e-4)


def test_padding_reaches_no_observer(tmp_path: Path) -> None:
    ids = torch.arange(24).reshape(2, 12)
    real = torch.ones_like(ids, dtype=torch.bool)
    real[1, 7:] = False
    method = Halve()
    run(method, tmp_path, [Rows(ids, real)])
    assert method.seen["model.layers.0.self_attn.q_proj"].shape == (19, 256)


def test_an_interrupted_run_goes_on_and_makes_the_same_bytes(tmp_path: Path) -> None:
    rows = some_rows()
    run(Halve(), tmp_path / "whole", rows)
    with pytest.raises(KeyboardInterrupt):
        run(Halve(), tmp_path / "cut", rows, stop_after=2)
    assert not (tmp_path / "cut" / "config.json").exists()
    method = Halve()
    driver = run(method, tmp_path / "cut", rows)
    assert "model.layers.0.self_attn.q_proj" not in method.seen
    assert "model.layers.0.self_attn.q_proj" in driver.layers
    whole, cut = (tmp_path / name / "model.safetensors" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()
