"""NVFP4 and MXFP4: group scales under a shared tensor scale, powers of two, calibrated input scales."""

import pytest
import torch

from compressor.methods.mxfp4 import MXFP4
from compressor.methods.nvfp4 import NVFP4
from compressor.numbers.activations import fake_quantize
from compressor.numbers.schemes import SCHEMES
from small_floats import LINEARS, first_block


def applied(kind, **params):
    block, made = first_block(), kind(kind.Params(**params))
    before = {name: block.weight(name).clone() for name in LINEARS}
    made.apply(block)
    return block, before


def lost(block, before, name):
    return float((block.weight(name) - before[name]).square().sum() / before[name].square().sum())


@pytest.mark.parametrize("scheme", ["NVFP4", "NVFP4A16"])
def test_nvfp4_has_e4m3_scales_for_sixteen_under_one_for_the_fused_linears(scheme):
    block, before = applied(NVFP4, scheme=scheme)
    for fused in (LINEARS[:3], LINEARS[3:4], LINEARS[4:6], LINEARS[6:]):
        peak = max(float(before[name].abs().max()) for name in fused)
        for name in fused:
            weight = block.encoded[name]
            assert float(weight.global_scale) == pytest.approx(peak / (448 * 6), rel=1e-6)
            assert weight.scale.shape == (before[name].shape[0], before[name].shape[1] // 16)
            assert torch.equal(weight.scale, weight.scale.to(torch.float8_e4m3fn).float())
        assert max(float(block.encoded[name].scale.max()) for name in fused) == 448


def test_inputs_of_nvfp4_get_a_tensor_scale_from_calibration_and_of_nvfp4a16_none():
    block = first_block()
    seen = []
    block.observe({"self_attn.o_proj": seen.append})
    NVFP4(NVFP4.Params()).apply(block)
    scale = block.extras["model.layers.0.self_attn.o_proj.input_scale"]
    assert float(scale) == pytest.approx(float(torch.cat(seen).abs().max()) / (448 * 6))
    rounded = fake_quantize(torch.cat(seen), "nvfp4", scale)
    assert float((rounded - torch.cat(seen)).norm() / torch.cat(seen).norm()) < 0.12
    assert not applied(NVFP4, scheme="NVFP4A16")[0].extras
    assert not NVFP4(NVFP4.Params(scheme="NVFP4A16")).needs_inputs
    assert NVFP4(NVFP4.Params()).needs_inputs


@pytest.mark.parametrize("scheme", ["MXFP4", "MXFP4A16"])
def test_mxfp4_scales_are_powers_of_two_for_thirty_two_and_need_no_data(scheme):
    block, before = applied(MXFP4, scheme=scheme)
    assert not MXFP4(MXFP4.Params(scheme=scheme)).needs_inputs
    assert not block.extras
    for name in LINEARS:
        scale = block.encoded[name].scale
        assert scale.shape == (before[name].shape[0], before[name].shape[1] // 32)
        assert torch.equal(scale.log2(), scale.log2().round())


def test_bits_are_four_and_a_half_and_four_and_a_quarter():
    for kind, bits in ((NVFP4, 4.5), (MXFP4, 4.25)):
        block, _ = applied(kind)
        weights = sum(weight.values_OI.numel() for weight in block.encoded.values())
        size = sum(weight.size_bits() for weight in block.encoded.values())
        assert size / weights == pytest.approx(bits, abs=0.002)


def test_finer_scales_lose_less():
    """NVFP4 before MXFP4 on every linear of the block, by a margin."""
    nvfp4, before = applied(NVFP4, scheme="NVFP4A16")
    mxfp4, _ = applied(MXFP4, scheme="MXFP4A16")
    for name in LINEARS:
        assert lost(nvfp4, before, name) < 0.85 * lost(mxfp4, before, name)


@pytest.mark.parametrize("kind", [NVFP4, MXFP4])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gptqs_walk_loses_less_of_the_output_than_rounding(kind, seed):
    plain, walked = first_block(seed=seed), first_block(seed=seed)
    before, batch = plain.forward(plain.batches[0]), plain.batches[0]
    kind(kind.Params()).apply(plain)
    kind(kind.Params(solver="gptq")).apply(walked)
    real = batch.real_BT
    lost_by = [float((block.forward(batch) - before)[real].square().sum()) for block in (walked, plain)]
    assert lost_by[0] < 0.85 * lost_by[1]


def test_the_schemes_are_the_presets_of_the_field():
    assert NVFP4(NVFP4.Params()).scheme == SCHEMES["NVFP4"]
    assert MXFP4(MXFP4.Params(scheme="MXFP4A16")).scheme == SCHEMES["MXFP4A16"]
