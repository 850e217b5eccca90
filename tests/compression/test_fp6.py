"""FP6: a float16 scale a row, honest about being served as dense weights."""

import torch

from compressor.formats.lookup import format_named
from compressor.methods.fp6 import FP6
from compressor.methods.fp8 import FP8
from compressor.methods.mxfp4 import MXFP4
from compressor.numbers.floats import code_points
from compressor.recipe import load
from compressor.serving_table import who_can_serve
from small_floats import LINEARS, first_block


def test_every_row_has_a_float16_scale_whatever_the_layout_stores():
    block = first_block(with_inputs=False)
    made = FP6(FP6.Params())
    made.scales = format_named("dense").scale
    made.apply(block)
    for name in LINEARS:
        weight = block.encoded[name]
        assert weight.grid.scale == "float16"
        assert torch.equal(weight.scale, weight.scale.half().float())
        assert set(weight.values_OI.abs().unique().tolist()) <= set(code_points("e3m2").tolist())


def test_six_bits_lie_between_eight_and_four():
    lost = {}
    for kind in (FP8, FP6, MXFP4):
        block = first_block(with_inputs=False)
        before = {name: block.weight(name).clone() for name in LINEARS}
        kind(kind.Params()).apply(block)
        lost[kind.name] = [float((block.weight(name) - before[name]).square().sum()) for name in LINEARS]
    for eight, six, four in zip(lost["fp8"], lost["fp6"], lost["mxfp4"], strict=True):
        assert 2 * eight < six < 0.5 * four


def test_true_bits_are_six_and_a_little():
    block = first_block(with_inputs=False)
    FP6(FP6.Params()).apply(block)
    weight = block.encoded["mlp.down_proj"]
    assert weight.size_bits() == weight.values_OI.numel() * 6 + weight.values_OI.shape[0] * 16


def test_the_recipe_says_what_it_is_and_what_to_deploy_instead():
    recipe = load("fp6")
    assert recipe.export.format == "dense"
    assert "deploy fp8-dynamic" in recipe.about
    notes = who_can_serve("FP6", "dense")
    assert "as dense weights: no smaller and no faster" in notes["vllm"]
