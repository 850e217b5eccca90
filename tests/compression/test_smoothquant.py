"""SmoothQuant: nothing changes before rounding, and rounding loses less; on two families, with shared value heads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compressor.errors import BadRecipeError
from compressor.methods.rtn import RoundToNearest
from compressor.methods.smoothquant import Peaks, SmoothQuant, factors
from compressor.numbers.activations import fake_quantize
from small_blocks import first_block, llama, opt, weights

FAMILIES = [
    pytest.param(lambda: llama(), id="llama, 2 value heads for 4 query heads"),
    pytest.param(lambda: llama(num_key_value_heads=4), id="llama, a value head each"),
    pytest.param(lambda: opt(), id="opt"),
]


def smooth(**params: Any) -> SmoothQuant:
    return SmoothQuant(SmoothQuant.Params(**params))


@pytest.mark.parametrize("model", FAMILIES)
@pytest.mark.parametrize("strength", [0.0, 0.5, 0.9])
def test_before_rounding_the_block_computes_what_it_did(model: Any, strength: float, tmp_path: Path) -> None:
    block = first_block(model(), tmp_path)
    before, weights_before = block.forward(block.batches[0]), block.weight(block.linears()[0]).clone()
    smooth(strength=strength).apply(block)
    after = block.forward(block.batches[0])
    assert float((after - before).abs().max()) <= 1e-5 * float(before.abs().max())
    assert not torch.allclose(block.weight(block.linears()[0]), weights_before)
    assert not [name for name in block.facts if "smoothing" in block.facts[name]]


@pytest.mark.parametrize("model", FAMILIES)
def test_inputs_and_weights_get_peaks_of_the_same_size(model: Any, tmp_path: Path) -> None:
    block = first_block(model(), tmp_path)
    smooth(through_linears=False).apply(block)
    for group in block.groups():
        if group.source.endswith("norm"):
            peak = Peaks()
            block.observe({group.linears[0]: peak.add})
            weight_I = torch.stack([block.weight(name).abs().amax(0) for name in group.linears]).amax(0)
            torch.testing.assert_close(peak.value_I, weight_I, rtol=1e-3, atol=1e-6)


def test_a_norm_rounded_to_bfloat16_costs_nothing(tmp_path: Path) -> None:
    """The linears take up what the rounding of the norm's weight changed."""
    block = first_block(llama(), tmp_path)
    block.config["torch_dtype"] = "bfloat16"
    before = block.forward(block.batches[0])
    smooth(through_linears=False).apply(block)
    norm = block.module.get_submodule("input_layernorm").weight
    assert torch.equal(norm, norm.to(torch.bfloat16).float())
    after = block.forward(block.batches[0])
    assert float((after - before).abs().max()) <= 1e-5 * float(before.abs().max())


def test_factors_are_those_of_equation_four_and_one_where_nothing_passes() -> None:
    found = factors(torch.tensor([16.0, 4.0, 0.0, 9.0]), torch.tensor([1.0, 4.0, 2.0, 0.0]), 0.5)
    assert found.tolist() == [4.0, 1.0, 1.0, 1.0]
    quarter = factors(torch.tensor([16.0]), torch.tensor([81.0]), 0.25)
    assert float(quarter) == pytest.approx(2 / 27)


def test_smoothing_loses_what_methods_md_says() -> None:
    """Two inputs 40 times larger; weights a row, inputs all together in 8 bits."""
    x_TI, w_OI = _outliers()

    def rounded(value: Tensor, dim: tuple[int, ...]) -> Tensor:
        scale = value.abs().amax(dim, keepdim=True) / 127
        return (value / scale).round() * scale

    def error(by_I: Tensor) -> float:
        exact = x_TI @ w_OI.T
        served = rounded(x_TI / by_I, (0, 1)) @ rounded(w_OI * by_I, (1,)).T
        return float((served - exact).square().mean() / exact.square().mean())

    by_I = factors(x_TI.abs().amax(0), w_OI.abs().amax(0), 0.5)
    torch.testing.assert_close((x_TI / by_I) @ (w_OI * by_I).T, x_TI @ w_OI.T)
    assert error(torch.ones(32, dtype=torch.float64)) == pytest.approx(6.04e-4, rel=0.01)
    assert error(by_I) == pytest.approx(8.8e-5, rel=0.01)


def _outliers() -> tuple[Tensor, Tensor]:
    import numpy as np

    random = np.random.default_rng(5)
    x_TI, w_OI = (torch.from_numpy(random.normal(size=size)) for size in ((256, 32), (16, 32)))
    x_TI[:, [3, 17]] *= 40
    return x_TI, w_OI


@pytest.mark.parametrize("model", FAMILIES)
def test_eight_bit_inputs_lose_less_after_smoothing(model: Any, tmp_path: Path) -> None:
    def lost(methods: list[Any], folder: Path) -> float:
        block = first_block(model(), folder)
        exact = block.forward(block.batches[0])
        for method in methods:
            method.apply(block)
        for name in block.linears():
            block.linear(name).register_forward_pre_hook(
                lambda _module, args: (fake_quantize(args[0], "int8-token"), *args[1:])
            )
        return float((block.forward(block.batches[0]) - exact).square().sum())

    torch.manual_seed(0)
    plain = lost([RoundToNearest(RoundToNearest.Params(scheme="W8A8"))], tmp_path / "plain")
    torch.manual_seed(0)
    smoothed = lost([smooth(), RoundToNearest(RoundToNearest.Params(scheme="W8A8"))], tmp_path / "smoothed")
    assert smoothed < 0.8 * plain


def test_peaks_are_those_of_all_batches() -> None:
    peak, x_TI = Peaks(), weights(outputs=50)
    for part in x_TI.split([7, 0, 43]):
        peak.add(part)
    assert torch.equal(peak.value_I, x_TI.abs().amax(0))


def test_a_factor_that_an_ignored_linear_shares_is_not_moved(tmp_path: Path) -> None:
    block = first_block(llama(), tmp_path, ignore=frozenset({"self_attn.k_proj", "mlp.up_proj"}))
    before = {name: block.weight(name).clone() for name in block.family.linears}
    output = block.forward(block.batches[0])
    smooth().apply(block)
    assert float((block.forward(block.batches[0]) - output).abs().max()) <= 1e-5 * float(output.abs().max())
    untouched = {"self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
    assert {name for name in before if torch.equal(before[name], block.weight(name))} == untouched
    assert "ignore list" in block.facts["self_attn.q_proj"]["smoothing"]


def test_nothing_passes_an_activation_function_that_is_not_homogeneous(tmp_path: Path) -> None:
    block = first_block(opt(activation_function="gelu"), tmp_path)
    before = block.forward(block.batches[0])
    smooth().apply(block)
    assert float((block.forward(block.batches[0]) - before).abs().max()) <= 1e-5 * float(before.abs().max())
    assert "activation function" in block.facts["fc2"]["smoothing"]


def test_heads_that_do_not_fit_are_left_alone_and_said_so(tmp_path: Path) -> None:
    block = first_block(llama(), tmp_path)
    block.config["num_key_value_heads"] = 3
    smooth().apply(block)
    assert "32 inputs are not the 16 outputs" in block.facts["self_attn.o_proj"]["smoothing"]


def test_smoothing_what_is_encoded_already_is_refused(tmp_path: Path) -> None:
    block = first_block(llama(), tmp_path)
    RoundToNearest(RoundToNearest.Params(group_size=16)).apply(block)
    with pytest.raises(BadRecipeError, match="put it before the step that encodes"):
        smooth().apply(block)
