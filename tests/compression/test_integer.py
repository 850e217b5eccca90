"""Integer grids: ranges, ties, stored scales, the range search; schemes as recipes spell them."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from compressor.errors import BadRecipeError
from compressor.methods.registry import build
from compressor.methods.rtn import RoundToNearest
from compressor.numbers.grids import IntegerGrid
from compressor.numbers.integer import encode, fit, round_to_grid
from compressor.recipe import Step
from small_blocks import first_block, inputs, llama, moments, relative_error, weights

THREE = IntegerGrid(3, 16, symmetric=False, scale="float32")
GRIDS = [
    IntegerGrid(bits, size, is_symmetric, kind)
    for bits, size, is_symmetric, kind in itertools.product(
        (2, 3, 4, 8), (16, None), (True, False), ("bfloat16", "float16", "float32")
    )
]


def one_at_a_time(w_OI: Tensor, grid: IntegerGrid) -> Tensor:
    """Asymmetric rounding to nearest in a loop over numbers, in numpy."""
    w, dense = w_OI.numpy(), np.empty(w_OI.shape)
    size = grid.group_size or w.shape[1]
    for row, start in itertools.product(range(len(w)), range(0, w.shape[1], size)):
        group = w[row, start : start + size]
        low, high = min(group.min(), 0), max(group.max(), 0)
        scale = np.float64(np.float32((high - low) / (2**grid.bits - 1)))
        zero = np.round(-low / scale)
        for place, value in enumerate(group):
            code = min(max(np.round(value / scale) + zero, 0), 2**grid.bits - 1)
            dense[row, start + place] = scale * (code - zero)
    return torch.from_numpy(dense).float()


def test_rounding_to_nearest_is_what_a_loop_over_numbers_gives() -> None:
    w_OI = weights()
    torch.testing.assert_close(encode(w_OI, THREE).dense(), one_at_a_time(w_OI, THREE), rtol=1e-6, atol=0)


def test_rounding_to_nearest_loses_what_methods_md_says() -> None:
    w_OI = weights()
    error = relative_error(w_OI, encode(w_OI, THREE).dense().double(), moments(inputs()))
    assert error == pytest.approx(0.023503, abs=2e-6)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_no_weight_is_off_by_more_than_half_a_step(grid: IntegerGrid) -> None:
    w_OI = weights().float()
    encoded = encode(w_OI, grid)
    low, high = grid.range
    assert encoded.codes_OI.dtype == torch.int32
    assert int(encoded.codes_OI.min()) >= low
    assert int(encoded.codes_OI.max()) <= high
    step_OI = encoded.scale_OG[:, encoded.groups()]
    # A rounded scale may be 2^-9 too small, and a zero point is off by half a step.
    steps = 0.5 + 2**grid.bits * 2**-8 if grid.symmetric else 1 + 2**grid.bits * 2**-8
    assert bool(((encoded.dense() - w_OI).abs() <= step_OI * steps).all())


def test_a_symmetric_grid_has_the_smallest_step_that_reaches_everything() -> None:
    grid = IntegerGrid(4, None, scale="float32")
    upwards, downwards = torch.tensor([[0.0, 15.0]]), torch.tensor([[0.0, -17.0]])
    assert float(fit(upwards, grid)[0]) == pytest.approx(15 / 7.5)
    assert float(fit(downwards, grid)[0]) == pytest.approx(17 / 8.5)


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_scales_are_what_the_format_stores_before_codes_are_chosen(kind: str) -> None:
    w_OI = weights().float()
    dtype = getattr(torch, kind)
    encoded = encode(w_OI, IntegerGrid(8, 16, scale=kind))  # type: ignore[arg-type]
    assert torch.equal(encoded.scale_OG, encoded.scale_OG.to(dtype).float())
    nearest = (w_OI.reshape(24, 4, 16) / encoded.scale_OG[:, :, None]).round().clamp(-128, 127)
    assert torch.equal(encoded.codes_OI, nearest.reshape(24, 64).int())


@pytest.mark.parametrize("grid", [grid for grid in GRIDS if not grid.symmetric], ids=str)
def test_zero_is_exact_on_an_asymmetric_grid(grid: IntegerGrid) -> None:
    w_OI = weights().float().abs() + 1
    w_OI[:, ::3] = 0
    assert bool((encode(w_OI, grid).dense()[:, ::3] == 0).all())


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_group_of_zeros_stays_zero_and_its_scale_is_a_number(grid: IntegerGrid) -> None:
    encoded = encode(torch.zeros(4, 32), grid)
    assert not encoded.dense().any()
    assert bool((encoded.scale_OG > 0).all())


def test_tiny_weights_keep_a_scale_in_float16() -> None:
    encoded = encode(torch.full((1, 16), 1e-9), IntegerGrid(4, 16, scale="float16"))
    assert bool((encoded.scale_OG > 0).all())
    assert bool(encoded.dense().isfinite().all())


def test_ties_go_to_the_even_code() -> None:
    values = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 9.0])
    codes = round_to_grid(values, torch.ones(()), None, IntegerGrid(3, None))
    assert codes.tolist() == [0, 2, 2, 0, -2, 3]


@pytest.mark.parametrize("is_symmetric", [True, False])
def test_the_range_search_lowers_the_error_of_every_group(is_symmetric: bool) -> None:
    w_OI = weights(7).float()
    grid = IntegerGrid(3, None, is_symmetric, "float32")

    def misfit(shrink: bool) -> Tensor:
        lost_OI = encode(w_OI, grid, *fit(w_OI, grid, shrink=shrink)).dense() - w_OI
        return lost_OI.abs().pow(2.4).sum(-1)

    searched, plain = misfit(True), misfit(False)
    assert bool((searched <= plain * (1 + 1e-6)).all())
    assert float(searched.sum()) < 0.95 * float(plain.sum())


def test_scattered_groups_are_rounded_on_their_own_scales() -> None:
    w_OI = weights().float()
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    grid = replace(THREE, scale="bfloat16")
    straight = encode(w_OI[:, order], grid)
    back = torch.argsort(order)
    scattered = encode(w_OI, grid, straight.scale_OG, straight.zero_OG, back // 16)
    assert torch.equal(scattered.codes_OI, straight.codes_OI[:, back])
    assert torch.equal(scattered.dense(), straight.dense()[:, back])


def test_a_group_size_that_does_not_divide_is_refused_with_one_that_does() -> None:
    with pytest.raises(BadRecipeError, match=r"group_size 48 does not divide 64 inputs.*-1"):
        encode(weights(), IntegerGrid(4, 48))


@pytest.mark.parametrize(
    ("params", "name", "grid"),
    [
        ({}, "W4A16", IntegerGrid(4, 128)),
        ({"scheme": "W4A16", "bits": 3}, "W3A16", IntegerGrid(3, 128)),
        ({"group_size": 64}, "W4A16_G64", IntegerGrid(4, 64)),
        ({"bits": 3, "group_size": -1, "symmetric": False}, "W3A16_ASYM_GROW", IntegerGrid(3, None, symmetric=False)),
        ({"scheme": "W8A8"}, "W8A8", IntegerGrid(8, None)),
    ],
)
def test_a_scheme_can_be_changed_in_parts_and_is_named_for_what_it_is(
    params: dict[str, object], name: str, grid: IntegerGrid
) -> None:
    scheme = RoundToNearest(RoundToNearest.Params.model_validate(params)).scheme
    assert (scheme.name, scheme.weights) == (name, grid)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"scheme": "W4A61"}, "params.scheme: there is no scheme 'W4A61'; did you mean W4A16"),
        ({"scheme": "FP8_DYNAMIC"}, "no scheme of integers"),
        ({"group_size": 0}, "params.group_size: 0 is no group size"),
        ({"bits": 9}, "params.bits"),
        ({"shrnk": True}, "params.shrnk: unknown key; did you mean shrink?"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_its_path(params: dict[str, object], words: str) -> None:
    with pytest.raises(BadRecipeError, match=words):
        build([Step(method="rtn", params=params)], "recipe.yaml")


def test_rtn_encodes_every_linear_of_a_block_but_the_ignored(tmp_path: Path) -> None:
    block = first_block(llama(), tmp_path, ignore=frozenset({"mlp.down_proj"}))
    before = block.weight("mlp.down_proj").clone()
    method = RoundToNearest(RoundToNearest.Params(group_size=16))
    method.apply(block)
    assert set(block.encoded) == set(block.family.linears) - {"mlp.down_proj"}
    assert torch.equal(block.weight("mlp.down_proj"), before)
    assert torch.equal(block.weight("self_attn.k_proj"), block.encoded["self_attn.k_proj"].dense())
