"""Inputs rounded as engines round them: against loops token by token."""

import pytest
import torch

from compressor.numbers.activations import fake_quantize
from compressor.numbers.floats import round_to


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 5, 256, generator=generator)
    x[..., 7] *= 40  # an outlier channel, as language models have
    x[1, 2] = 0
    return x


def by_pieces(x, size, rounded):
    """`rounded` applied to each run of `size` inputs of each token."""
    out = torch.zeros_like(x)
    for token, result in zip(x.reshape(-1, x.shape[-1]), out.reshape(-1, x.shape[-1]), strict=True):
        for start in range(0, len(token), size):
            piece = token[start : start + size]
            if piece.abs().max() > 0:
                result[start : start + size] = rounded(piece)
    return out


def test_int8_tokens_have_a_scale_each():
    def rounded(token):
        scale = token.abs().max() / 127
        return (token / scale).round() * scale

    assert torch.equal(fake_quantize(inputs(), "int8-token"), by_pieces(inputs(), 256, rounded))


@pytest.mark.parametrize(("kind", "size"), [("fp8-token", 256), ("fp8-group", 128)])
def test_fp8_inputs_have_a_scale_a_token_or_a_group_of_it(kind, size):
    def rounded(piece):
        scale = piece.abs().max() / 448
        return (piece / scale).to(torch.float8_e4m3fn).float() * scale

    assert torch.equal(fake_quantize(inputs(), kind), by_pieces(inputs(), size, rounded))


def test_static_fp8_inputs_saturate_where_calibration_saw_less():
    scale = torch.tensor(2 / 448)
    out = fake_quantize(inputs(), "fp8-tensor", scale)
    assert out.abs().max() == 2
    assert torch.equal(out, (inputs() / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale)


def test_static_fp8_inputs_without_a_scale_are_a_mistake():
    with pytest.raises(AssertionError, match="calibration"):
        fake_quantize(inputs(), "fp8-tensor")


def test_nvfp4_inputs_have_an_e4m3_scale_for_sixteen_under_the_tensors_scale():
    g = torch.tensor(0.01)

    def rounded(piece):
        scale = (piece.abs().max() / 6 / g).clamp(max=448).to(torch.float8_e4m3fn).float()
        return round_to(piece / (scale * g), "e2m1") * scale * g

    assert torch.equal(fake_quantize(inputs(), "nvfp4", g), by_pieces(inputs(), 16, rounded))


def test_mxfp4_inputs_have_a_power_of_two_for_thirty_two():
    x = inputs()
    out = fake_quantize(x, "mxfp4")
    for piece, result in zip(x.reshape(-1, 32), out.reshape(-1, 32), strict=True):
        if piece.abs().max() == 0:
            assert (result == 0).all()
            continue
        errors = []
        for exponent in range(-20, 10):
            scale = 2.0**exponent
            errors.append(float(((round_to(piece / scale, "e2m1") * scale - piece) ** 2).sum()))
        assert float(((result - piece) ** 2).sum()) <= 2.5 * min(errors)  # near the best power of two


@pytest.mark.parametrize("kind", ["int8-token", "fp8-token", "fp8-group", "nvfp4", "mxfp4"])
def test_rounded_inputs_keep_shape_and_dtype_and_are_near(kind):
    x = inputs().bfloat16()
    out = fake_quantize(x, kind)
    assert (out.shape, out.dtype) == (x.shape, torch.bfloat16)
    relative = float((out - x).float().norm() / x.float().norm())
    assert 0 < relative < {"int8-token": 0.04, "fp8-token": 0.03, "fp8-group": 0.03, "nvfp4": 0.12, "mxfp4": 0.17}[kind]


def test_a_token_is_rounded_alike_whoever_stands_beside_it():
    x = inputs()
    for kind in ("int8-token", "fp8-token", "fp8-group", "mxfp4"):
        assert torch.equal(fake_quantize(x, kind)[1, 3], fake_quantize(x[1, 3], kind))
