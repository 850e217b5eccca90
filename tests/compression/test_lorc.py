"""LoRC: factors beside a quantized weight, computed with as an engine computes with a LoRA."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from compressor.block import Block
from compressor.blockwise import BlockPass
from compressor.checkpoint import adapter
from compressor.checkpoint.sink import Sink
from compressor.checkpoint.source import Source
from compressor.errors import BadCheckpointError
from compressor.families import family_of
from compressor.formats.lookup import format_named
from compressor.methods.lorc import LoRC, beside
from compressor.methods.low_rank import decompose
from compressor.methods.registry import build
from compressor.numbers.grids import IntegerGrid
from compressor.numbers.integer import encode
from compressor.passes import Rows
from compressor.recipe import Step
from compressor.screen import Screen
from compressor.skeleton import Skeleton
from starter import STARTER

RTN2 = {"method": "rtn", "params": {"scheme": "W2A16"}}
RTN3 = {"method": "rtn", "params": {"scheme": "W3A16"}}
GPTQ3 = {"method": "gptq", "params": {"scheme": "W3A16"}}


def a_block(index: int = 0, seed: int = 1, dtype: str = "float32") -> Block:
    """A block of the starter with what reaches it; `dtype`: what its config says that weights are stored in."""
    source = Source(STARTER)
    skeleton = Skeleton(source, family_of(source.config), torch.device("cpu"))
    ids = torch.randint(4, 2000, (4, 64), generator=torch.Generator().manual_seed(seed))
    batches = skeleton.embed([Rows(ids, torch.ones_like(ids, dtype=torch.bool))])
    config = source.config | {"torch_dtype": dtype}
    name, family = skeleton.family.block(index), skeleton.family
    return Block(index, skeleton.count, name, skeleton.block(index), family, config, batches)


def lorc(block: Block, **params: Any) -> LoRC:
    method = LoRC(LoRC.Params(**params))
    method.apply(block)
    return method


def alone(block: Block, step: dict[str, Any]) -> None:
    (method,) = build([Step(**step)], "test")
    method.apply(block)


# ---------------------------------------------------------------- the mathematics
def test_what_is_left_of_the_error_is_the_oracles() -> None:
    """48×32, four bits with a zero point for each row, rank 0, 4, 8, 32 (numpy's generator, seed 8)."""
    w = np.random.default_rng(8).normal(size=(48, 32)) @ np.diag(np.arange(1, 33) ** -0.3)
    w_OI = torch.from_numpy(w)
    e_OI = w_OI - encode(w_OI, IntegerGrid(4, 32, symmetric=False, scale="float32")).dense().double()
    cut = decompose(e_OI)
    for rank, golden in ((0, 1.8327), (4, 1.4673), (8, 1.1911), (32, 0.0)):
        a_RI, b_OR = cut.factors(rank)
        left = float((e_OI - b_OR @ a_RI).norm())
        assert left == pytest.approx(golden, abs=6e-5)
        assert left == pytest.approx(cut.lost(rank), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_error_of_a_blocks_output_falls_with_the_rank(seed: int) -> None:
    errors = []
    for rank in (0, 8, 32, 96):
        block = a_block(seed=seed)
        (batch,) = block.batches
        before = block.forward(batch)
        lorc(block, base=RTN3, rank=rank)
        errors.append(float((block.forward(batch) - before).norm() / before.norm()))
    assert errors[1] < 0.97 * errors[0]
    assert errors[2] < 0.95 * errors[1]
    assert errors[3] < 0.9 * errors[2]


@pytest.mark.parametrize("seed", range(3))
def test_cutting_by_outputs_keeps_more_of_them_than_cutting_by_size(seed: int) -> None:
    plain, aware = a_block(seed=seed), a_block(seed=seed)
    lorc(plain, base=RTN3, rank=16, whitened=False)
    lorc(aware, base=RTN3, rank=16, whitened=True)
    for name in plain.linears():
        assert (
            aware.facts[name]["error"] < 0.95 * plain.facts[name]["error"] < plain.facts[name]["error_without_adapter"]
        )


def test_quantizing_again_what_the_factors_leave_loses_less_of_the_weight() -> None:
    original = a_block()
    left = []
    for iterations in (1, 5):
        block = a_block()
        lorc(block, base=RTN2, rank=32, whitened=False, iterations=iterations)
        left.append([float((original.weight(name) - block.weight(name)).norm()) for name in block.linears()])
    assert all(five < one for one, five in zip(*left, strict=True))
    assert sum(left[1]) < 0.97 * sum(left[0])


def test_starting_with_the_largest_part_of_the_weight_leaves_less_to_lose_at_two_bits() -> None:
    original = a_block()
    left = {}
    for start in ("quantized", "low-rank"):
        block = a_block()
        lorc(block, base=RTN2, rank=32, whitened=False, start=start)
        left[start] = sum(
            float((original.weight(name) - block.weight(name)).square().sum()) for name in block.linears()
        )
    assert left["low-rank"] < 0.98 * left["quantized"]


# ---------------------------------------------------------------- the same as a LoRA
def test_a_block_with_the_factors_beside_it_computes_what_folded_weights_compute() -> None:
    block = a_block()
    lorc(block, base=GPTQ3, rank=24)
    (batch,) = block.batches
    folded = block.forward(batch)
    for name, weight in block.encoded.items():
        block.linear(name).weight.data.copy_(weight.dense())
    without = block.forward(batch)
    with beside(block, block.adapters):
        torch.testing.assert_close(block.forward(batch), folded, rtol=0, atol=1e-5 * float(folded.abs().max()))
    assert (without - folded).abs().max() > 1e-3
    torch.testing.assert_close(block.forward(batch), without)


def test_while_the_base_works_inputs_are_those_of_the_whole_weight() -> None:
    """Starting from low rank, what is left of q, k and v would give o_proj other inputs: the factors stand beside."""
    block = a_block()
    (batch,) = block.batches
    expected = block.forward(batch)
    factors = {name: decompose(block.weight(name)).factors(16) for name in block.linears()}
    for name, (a_RI, b_OR) in factors.items():
        block.replace(name, block.weight(name) - b_OR @ a_RI)
    with beside(block, factors):
        torch.testing.assert_close(block.forward(batch), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_rank_nothing_is_the_base_alone() -> None:
    block, expected = a_block(), a_block()
    lorc(block, base=GPTQ3, rank=0)
    alone(expected, GPTQ3)
    assert not block.adapters
    for name in block.linears():
        assert torch.equal(block.encoded[name].codes_OI, expected.encoded[name].codes_OI)
        assert torch.equal(block.weight(name), expected.weight(name))


def test_the_base_chooses_the_codes_that_it_chooses_alone() -> None:
    block, expected = a_block(), a_block()
    method = lorc(block, base=GPTQ3, rank=8)
    alone(expected, GPTQ3)
    assert method.scheme is not None
    assert method.scheme.name == "W3A16"
    for name in block.linears():
        assert torch.equal(block.encoded[name].codes_OI, expected.encoded[name].codes_OI)
        a_RI, b_OR = block.adapters[name]
        torch.testing.assert_close(block.weight(name), expected.weight(name) + b_OR @ a_RI)


def test_what_later_blocks_see_are_the_factors_as_stored() -> None:
    block = a_block(dtype="bfloat16")
    lorc(block, base=RTN3, rank=8)
    for name, (a_RI, b_OR) in block.adapters.items():
        assert a_RI.dtype is b_OR.dtype is torch.bfloat16
        expected = block.encoded[name].dense() + b_OR.float() @ a_RI.float()
        torch.testing.assert_close(block.weight(name), expected)
        outs, ins = expected.shape
        assert block.facts[name]["adapter_bits"] == 16 * 8 * (outs + ins)


def test_scales_of_the_layout_reach_the_base() -> None:
    method = LoRC(LoRC.Params(base=RTN3))
    method.scales = "float16"
    block = a_block()
    method.apply(block)
    assert {weight.grid.scale for weight in block.encoded.values()} == {"float16"}


@pytest.mark.parametrize(
    ("base", "told"),
    [
        ({"method": "smoothquant"}, "smoothquant cannot be the base; these can: rtn, gptq"),
        ({"method": "rtn", "params": {"scheme": "W5"}}, "no scheme 'W5'"),
        ({"method": "rtn", "params": {"shrinks": True}}, "did you mean shrink"),
    ],
)
def test_a_base_that_cannot_be_one_is_refused(base: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        LoRC.Params(base=base)


def test_a_run_that_is_taken_up_goes_on_behind_the_factors(tmp_path: Path) -> None:
    """The second block must see what the first computes with its factors, also when the first comes from the disk."""
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    run_blocks(whole)
    with pytest.raises(KeyboardInterrupt):
        run_blocks(halves, stop_after=2)
    run_blocks(halves)
    for name in ("piece-00003", "piece-00004", "adapter-pieces/piece-00002", "adapter-pieces/piece-00003"):
        found, expected = (load_file(folder / f"{name}.safetensors") for folder in (halves, whole))
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


def run_blocks(folder: Path, stop_after: int | None = None) -> None:
    source = Source(STARTER)
    skeleton = Skeleton(source, family_of(source.config), torch.device("cpu"))
    ids = torch.randint(4, 2000, (2, 32), generator=torch.Generator().manual_seed(1))
    method = LoRC(LoRC.Params(base=GPTQ3, rank=32))
    work, done = method.apply, iter(range(100 if stop_after is None else stop_after))

    def interrupted(block: Block) -> None:
        if next(done, None) is None:
            raise KeyboardInterrupt
        work(block)

    method.apply = interrupted  # type: ignore[method-assign]
    assert method.scheme is not None
    layout = format_named("compressed-tensors", method.scheme)
    runs = BlockPass(skeleton, [method], layout, Sink(folder), Screen(is_quiet=True))
    runs.run(skeleton.embed([Rows(ids, torch.ones_like(ids, dtype=torch.bool))]))


# ---------------------------------------------------------------- the adapter's folder
def pieces(folder: Path, factors: dict[str, tuple[Tensor, Tensor]]) -> Sink:
    """As the block pass leaves them: a piece a block."""
    sink = Sink(folder)
    for number, (name, pair) in enumerate(factors.items()):
        sink.write(f"{number:05}", {f"{name}.lora_{side}.weight": part for side, part in zip("AB", pair, strict=True)})
    return sink


def some_factors() -> dict[str, tuple[Tensor, Tensor]]:
    torch.manual_seed(3)
    return {
        "model.layers.0.self_attn.q_proj": (torch.randn(4, 256), torch.randn(256, 4)),
        "model.layers.0.mlp.down_proj": (torch.randn(4, 512), torch.randn(256, 4)),
        "model.layers.3.self_attn.k_proj": (torch.randn(2, 256), torch.randn(128, 2)),
    }


def test_factors_come_back_from_pefts_layout(tmp_path: Path) -> None:
    factors = some_factors()
    adapter.write(tmp_path / "adapter", pieces(tmp_path / "pieces", factors), base="starter-lorc")
    found = adapter.read(tmp_path / "adapter")
    assert set(found) == set(factors)
    for name, (a_RI, b_OR) in factors.items():
        assert found[name][0].shape[0] == found[name][1].shape[1] == 4, "one rank for all"
        torch.testing.assert_close(found[name][1] @ found[name][0], b_OR @ a_RI)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 4, "starter-lorc")
    assert config["target_modules"] == ["down_proj", "k_proj", "q_proj"]
    captain = json.loads((STARTER.parents[1] / "adapters" / "captain" / "adapter_config.json").read_text())
    assert set(config) == set(captain), "the layout of the adapter that engines are known to load"
    names = set(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in names


def test_an_adapter_that_was_trained_is_read_with_its_scale() -> None:
    folder = STARTER.parents[1] / "adapters" / "captain"
    raw = load_file(folder / "adapter_model.safetensors")
    found = adapter.read(folder)
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    a_RI, b_OR = found["model.layers.0.self_attn.q_proj"]
    torch.testing.assert_close(a_RI, raw[f"{prefix}.lora_A.weight"])
    torch.testing.assert_close(b_OR, raw[f"{prefix}.lora_B.weight"] * 16 / 8)


def test_the_starter_with_the_factors_as_a_lora_has_the_logits_of_the_folded_one(tmp_path: Path) -> None:
    """Both as other programs would do it, from the files: hooks beside the linears, and weights added up."""
    from transformers import AutoModelForCausalLM

    factors = {}
    for index in range(2):
        block = a_block(index)
        lorc(block, base=RTN3, rank=16)
        factors |= {f"{block.name}.{name}": pair for name, pair in block.adapters.items()}
    adapter.write(tmp_path / "adapter", pieces(tmp_path / "pieces", factors), base="starter")
    model = AutoModelForCausalLM.from_pretrained(STARTER, dtype=torch.float32).eval()
    ids = torch.randint(4, 2000, (2, 24), generator=torch.Generator().manual_seed(3))
    found = adapter.read(tmp_path / "adapter")
    with torch.no_grad():
        plain = model(ids).logits
        with as_lora(model, found):
            served = model(ids).logits
        for name, (a_RI, b_OR) in found.items():
            model.get_submodule(name).weight.add_(b_OR @ a_RI)
        folded = model(ids).logits
    torch.testing.assert_close(served, folded, rtol=0, atol=1e-4)
    assert (served - plain).abs().max() > 0.1


@contextmanager
def as_lora(model: nn.Module, factors: dict[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
    def hook(pair: tuple[Tensor, Tensor]) -> Any:
        return lambda _, args, out: out + (args[0] @ pair[0].T) @ pair[1].T

    hooks = [model.get_submodule(name).register_forward_hook(hook(pair)) for name, pair in factors.items()]
    yield
    for handle in hooks:
        handle.remove()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "IA3"}, "no LoRA"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
    ],
)
def test_an_adapter_that_is_more_than_factors_is_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    adapter.write(tmp_path / "adapter", pieces(tmp_path / "pieces", some_factors()), base="starter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BadCheckpointError, match=told):
        adapter.read(tmp_path / "adapter")


def test_a_broken_adapter_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    with pytest.raises(BadCheckpointError, match=r"adapter_config\.json cannot be read"):
        adapter.read(folder)
    adapter.write(folder, pieces(tmp_path / "pieces", some_factors()), base="starter")
    weights = load_file(folder / "adapter_model.safetensors")
    del weights["base_model.model.model.layers.0.mlp.down_proj.lora_B.weight"]
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(BadCheckpointError, match=r"down_proj\.lora_B"):
        adapter.read(folder)
    (folder / "adapter_model.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(BadCheckpointError, match="cannot be read"):
        adapter.read(folder)
