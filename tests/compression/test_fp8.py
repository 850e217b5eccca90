"""FP8: the scales engines read, shared where linears are fused; static inputs from calibration; GPTQ's walk on a float
grid against a slow one, and its identities."""

import pytest
import torch
from pydantic import ValidationError

from compressor.errors import BadCalibrationError
from compressor.methods.floating import Peak, quantize
from compressor.methods.fp8 import FP8
from compressor.numbers.floats import encode, round_to
from compressor.numbers.grids import FloatGrid
from compressor.numbers.hessian import inverse_factor
from compressor.numbers.schemes import SCHEMES
from small_floats import LINEARS, first_block


def method(**params):
    return FP8(FP8.Params(**params))


def inputs_of(block, name):
    seen = []
    block.observe({name: seen.append})
    return torch.cat(seen)


@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "FP8_BLOCK", "FP8"])
def test_every_linear_is_encoded_in_the_scheme_and_computes_with_it(scheme):
    block, made = first_block(), method(scheme=scheme)
    before = {name: block.weight(name).clone() for name in LINEARS}
    made.apply(block)
    assert set(block.encoded) == set(LINEARS)
    for name in LINEARS:
        assert block.encoded[name].grid == SCHEMES[scheme].weights
        assert torch.equal(block.weight(name), block.encoded[name].dense())
        relative = (block.weight(name) - before[name]).norm() / before[name].norm()
        assert 0.005 < relative < 0.03


def test_only_static_inputs_and_gptq_want_data():
    wants = {scheme: method(scheme=scheme).needs_inputs for scheme in ("FP8_DYNAMIC", "FP8_BLOCK", "FP8")}
    assert wants == {"FP8_DYNAMIC": False, "FP8_BLOCK": False, "FP8": True}
    assert method(scheme="FP8_DYNAMIC", solver="gptq").needs_inputs
    block = first_block(with_inputs=False)
    method().apply(block)
    assert not block.extras


def test_row_scales_are_those_of_each_row_alone():
    block = first_block(with_inputs=False)
    w = block.weight("mlp.down_proj").clone()
    method().apply(block)
    expected = (w.abs().amax(1, keepdim=True) / 448).bfloat16().float()
    assert torch.equal(block.encoded["mlp.down_proj"].scale, expected)


def test_linears_that_engines_fuse_have_one_tensor_scale():
    """vLLM merges q, k, v under the largest of their scales and rounds again: with one scale that changes nothing."""
    block = first_block()
    w = {name: block.weight(name).clone() for name in LINEARS}
    made = method(scheme="FP8")
    made.scales = "float32"
    made.apply(block)
    for fused in (LINEARS[:3], LINEARS[4:6], LINEARS[3:4], LINEARS[6:]):
        scales = {float(block.encoded[name].scale) for name in fused}
        assert len(scales) == 1
        assert scales.pop() == pytest.approx(max(float(w[name].abs().max()) for name in fused) / 448, rel=1e-6)


def test_a_static_scale_puts_the_largest_real_input_at_448():
    block = first_block()
    peaks = {name: inputs_of(block, name).abs().max() for name in LINEARS}
    method(scheme="FP8").apply(block)
    assert set(block.extras) == {f"model.layers.0.{name}.input_scale" for name in LINEARS}
    for name in LINEARS:
        scale = block.extras[f"model.layers.0.{name}.input_scale"]
        assert scale.shape == ()
        assert float(scale) == pytest.approx(float(peaks[name]) / 448)


def test_padding_does_not_reach_static_scales():
    block = first_block()
    block.batches[0].hidden_BTD[:, 32:] *= 1000
    quiet = first_block()
    method(scheme="FP8").apply(block)
    method(scheme="FP8").apply(quiet)
    name = "model.layers.0.self_attn.q_proj.input_scale"
    assert torch.equal(block.extras[name], quiet.extras[name])


def test_inputs_that_are_always_zero_get_scale_one_and_missing_or_infinite_ones_are_refused():
    peak = Peak()
    peak.add(torch.zeros(3, 4))
    assert float(peak.scale(448)) == 1
    with pytest.raises(BadCalibrationError):
        Peak().scale(448)
    peak.add(torch.tensor([[float("nan")]]))
    with pytest.raises(BadCalibrationError):
        peak.scale(448)


def test_ignored_linears_stay_as_they_are():
    block = first_block(with_inputs=False)
    block.ignore = frozenset({"mlp.down_proj", "model.layers.0.self_attn.k_proj"})
    method().apply(block)
    assert set(LINEARS) - set(block.encoded) == {"mlp.down_proj", "self_attn.k_proj"}


def test_an_unknown_scheme_is_refused_with_the_known_ones():
    with pytest.raises(ValidationError, match="FP8_DYNAMIC"):
        FP8.Params(scheme="FP9")


# GPTQ's walk on float grids.

COARSE = FloatGrid("e2m1", (1, 16), "float32")


def correlated(tokens=400, inputs=48, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=generator)
    return torch.randn(tokens, inputs // 3, generator=generator) @ mixing[: inputs // 3] + 0.1 * torch.randn(
        tokens, inputs, generator=generator
    )


def weights(outs=24, ins=48, seed=1):
    return torch.randn(outs, ins, generator=torch.Generator().manual_seed(seed))


def slow_walk(w, h, grid, damp):
    """Equations 2 and 3 of GPTQ, an input at a time, in the order of falling second moments."""
    start = encode(w, grid)
    order = torch.argsort(h.diagonal(), descending=True, stable=True)
    u, _, _ = inverse_factor(h[order][:, order], damp)
    left, spread = w[:, order].clone(), start.spread()[:, order]
    chosen = torch.zeros_like(left)
    for i in range(left.shape[1]):
        chosen[:, i] = round_to(left[:, i] / spread[:, i], grid.element) * spread[:, i]
        error = (left[:, i] - chosen[:, i]) / u[i, i]
        for j in range(i + 1, left.shape[1]):
            left[:, j] -= error * u[i, j]
    return chosen[:, torch.argsort(order)]


def hessian(x):
    return 2 * x.T @ x / len(x)


def test_the_walk_on_a_float_grid_is_the_slow_one():
    h, w = hessian(correlated().double()), weights().double()
    fast, damp = quantize(w, h, COARSE)
    expected = slow_walk(w, h, COARSE, 0.01)
    assert damp == 0.01
    assert torch.allclose(fast.dense().double(), expected.double(), atol=1e-6)


def test_with_uncorrelated_inputs_the_walk_is_rounding_to_nearest():
    w = weights()
    fast, _ = quantize(w, torch.eye(48), COARSE)
    assert torch.equal(fast.values_OI, encode(w, COARSE).values_OI)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_walk_loses_less_output_than_rounding_to_nearest(seed):
    x, w = correlated(seed=seed), weights(seed=seed + 10)
    walked, _ = quantize(w, hessian(x), COARSE)
    lost = [float((x @ (w - dense).T).square().sum()) for dense in (walked.dense(), encode(w, COARSE).dense())]
    assert lost[0] < 0.5 * lost[1]


def test_the_method_reports_what_the_walk_lost():
    block, plain = first_block(), first_block()
    x = inputs_of(block, "mlp.down_proj")
    w = block.weight("mlp.down_proj").clone()
    method(solver="gptq").apply(block)
    method().apply(plain)
    lost = (x @ (w - block.weight("mlp.down_proj")).T).square().sum() / (x @ w.T).square().sum()
    assert block.facts["mlp.down_proj"]["error"] == pytest.approx(float(lost), rel=0.01)
    rounded = (x @ (w - plain.weight("mlp.down_proj")).T).square().sum() / (x @ w.T).square().sum()
    assert lost < 0.9 * rounded
