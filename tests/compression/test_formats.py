"""Formats: what is written is read back exactly, other people's readers find the same weights in it, and what a format
cannot hold is refused before the work."""

import re
from dataclasses import replace

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig, is_preset_scheme, preset_name_to_scheme

from compressor.checkpoint.sink import Sink
from compressor.checkpoint.source import Source
from compressor.errors import BadCheckpointError, BadRecipeError
from compressor.formats.dense import DenseWeight
from compressor.formats.lookup import FORMATS, format_named, format_of
from compressor.formats.packing import pack_awq, pack_bits, pack_fp4, unpack_awq, unpack_bits, unpack_fp4
from compressor.formats.vocabulary import from_library, to_library
from compressor.numbers import floats, integer
from compressor.numbers.encoded import FloatWeight, IntegerWeight
from compressor.numbers.grids import IntegerGrid
from compressor.numbers.schemes import SCHEMES, Scheme

NAME = "model.layers.0.mlp.up_proj"
ALL_BUT_SIX_BITS = [name for name in SCHEMES if name != "FP6"]


def weights(outs=96, ins=256, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(outs, ins, generator=generator) * torch.rand(outs, 1, generator=generator)


def encoded(scheme, w=None):
    w = weights() if w is None else w
    if isinstance(scheme.weights, IntegerGrid):
        return integer.encode(w, scheme.weights)
    return floats.encode(w, scheme.weights)


def written(folder, layout, scheme, weight, extras=None):
    """A folder as the pipeline would leave it."""
    sink = Sink(folder)
    sink.write("00000", layout.tensors(NAME, weight, torch.bfloat16) | layout.extras(extras or {}))
    sink.config = {"model_type": "qwen3", "torch_dtype": "bfloat16"}
    if quantization := layout.config(scheme, ("lm_head",)):
        sink.config["quantization_config"] = quantization
    sink.finish()
    return Source(folder)


def same(one, other):
    assert type(one) is type(other)
    assert one.grid == other.grid
    fields = ("codes_OI", "scale_OG", "zero_OG", "group_I") if isinstance(one, IntegerWeight) else ()
    fields = fields or ("values_OI", "scale", "global_scale")
    for field in fields:
        a, b = getattr(one, field), getattr(other, field)
        assert (a is None) == (b is None), field
        assert a is None or (a.dtype == b.dtype and torch.equal(a, b)), field


def cases():
    for name in ALL_BUT_SIX_BITS:
        yield "compressed-tensors", SCHEMES[name]
    for bits in (2, 3, 4, 5, 6, 7, 8):
        for group in (32, None):
            for is_symmetric in (True, False):
                grid = IntegerGrid(bits, group, is_symmetric)
                yield "compressed-tensors", Scheme("custom", grid)
                if bits in (2, 3, 4, 8):
                    yield "gptq", Scheme("custom", grid)
    yield "awq", SCHEMES["W4A16_ASYM"]
    yield "awq", Scheme("custom", IntegerGrid(4, 32, symmetric=False))
    for name in ("FP8", "NVFP4", "NVFP4A16", "FP8_DYNAMIC"):
        yield "modelopt", SCHEMES[name]


def label(case):
    return case.name if isinstance(case, Scheme) else case


@pytest.mark.parametrize(("name", "scheme"), list(cases()), ids=label)
def test_what_is_written_is_read_back_exactly(tmp_path, name, scheme):
    scheme = scheme.with_scales(format_named(name).scale)
    layout = format_named(name, scheme)
    layout.check(scheme)
    weight = encoded(scheme)
    source = written(tmp_path, layout, scheme, weight)
    found = format_of(source.config)
    assert found is not None
    assert found.name == name
    same(weight, found.read(source, NAME))
    same(weight, layout.read(source, NAME))


def test_scales_may_be_of_any_kind_and_are_read_as_they_are(tmp_path):
    for kind in ("bfloat16", "float16", "float32"):
        scheme = SCHEMES["W4A16"].with_scales(kind)
        weight = encoded(scheme)
        source = written(tmp_path / kind, format_named("compressed-tensors", scheme), scheme, weight)
        same(weight, format_of(source.config).read(source, NAME))


def test_shapes_that_blocks_do_not_divide_are_read_back_too(tmp_path):
    weight = encoded(SCHEMES["FP8_BLOCK"], weights(200, 300))
    source = written(tmp_path, format_named("compressed-tensors", SCHEMES["FP8_BLOCK"]), SCHEMES["FP8_BLOCK"], weight)
    same(weight, format_of(source.config).read(source, NAME))


@pytest.mark.parametrize("name", ALL_BUT_SIX_BITS)
def test_compressed_tensors_own_decompressor_finds_the_same_weight(tmp_path, name):
    scheme = SCHEMES[name]
    layout = format_named("compressed-tensors", scheme)
    weight = encoded(scheme)
    source = written(tmp_path, layout, scheme, weight)
    config = QuantizationConfig.model_validate(source.config["quantization_config"])
    group = config.config_groups["group_0"]
    local = {entry.removeprefix(f"{NAME}."): source.read(entry) for entry in source.entries}
    if isinstance(weight, FloatWeight) and weight.grid.element == "e4m3":
        local["weight_scale"] = local["weight_scale"].float()
    theirs = BaseCompressor.get_value_from_registry(config.format).decompress(local, group)["weight"].float()
    is_exact = isinstance(weight, FloatWeight) and not weight.grid.has_global_scale
    bound = 0 if is_exact else 2**-7  # the library multiplies in bfloat16 what has bfloat16 scales, and NVFP4
    assert ((theirs - weight.dense()).abs() <= bound * weight.dense().abs()).all()


@pytest.mark.parametrize("name", ALL_BUT_SIX_BITS)
def test_their_compressor_writes_the_same_bytes_from_our_dense_weight(tmp_path, name):
    """Our codes and scales given to the library's own compressor, which rounds again: it must come to the same file."""
    scheme = SCHEMES[name].with_scales("float32")
    layout = format_named("compressed-tensors", scheme)
    weight = encoded(scheme)
    ours = layout.tensors(NAME, weight, torch.float32)
    group = to_library(scheme)
    state = {"weight": weight.dense(), **{key: ours[f"{NAME}.{key}"] for key in _parameters(ours)}}
    if scheme.weights.scale in ("e4m3", "e8m0"):
        state["weight_scale"] = weight.scale.float()
    if isinstance(weight, IntegerWeight) and weight.zero_OG is not None:
        state["weight_zero_point"] = (weight.zero_OG - 2 ** (weight.grid.bits - 1)).to(torch.int8)
    format_name = layout.config(scheme, ())["format"]
    theirs = BaseCompressor.get_value_from_registry(format_name).compress(state, group)
    assert set(theirs) == {key.removeprefix(f"{NAME}.") for key in ours}
    for key, tensor in theirs.items():
        assert tensor.dtype == ours[f"{NAME}.{key}"].dtype, key
        assert tensor.shape == ours[f"{NAME}.{key}"].shape, key
        assert torch.equal(tensor.view(torch.uint8), ours[f"{NAME}.{key}"].view(torch.uint8)), key


def _parameters(tensors):
    return [key.removeprefix(f"{NAME}.") for key in tensors if key.endswith(("scale", "global_scale"))]


@pytest.mark.parametrize("name", ALL_BUT_SIX_BITS)
def test_a_scheme_comes_back_from_the_librarys_words(name):
    assert from_library(to_library(SCHEMES[name])) == SCHEMES[name]


# W8A16 and W2A16 have groups of another size than the library's presets.
PRESETS = [name for name in ALL_BUT_SIX_BITS if is_preset_scheme(name) and name not in ("W8A16", "W2A16")]


@pytest.mark.parametrize("name", PRESETS)
def test_a_scheme_is_the_librarys_preset_of_the_same_name(name):
    ours, theirs = to_library(SCHEMES[name]), preset_name_to_scheme(name, ["Linear"])
    for side in ("weights", "input_activations"):
        a, b = getattr(ours, side), getattr(theirs, side)
        assert (a is None) == (b is None)
        if a is not None:
            leave = {"observer", "observer_kwargs", "zp_dtype"}
            assert a.model_dump(exclude=leave) == b.model_dump(exclude=leave)


def test_gptq_is_the_layout_of_autogptqs_dequantization(tmp_path):
    """Its inference code: shift words right, mask, add one to the zeros, look scales up by g_idx."""
    for bits in (2, 4, 8):
        scheme = Scheme("custom", IntegerGrid(bits, 64, symmetric=False, scale="float16"))
        weight = encoded(scheme)
        t = format_named("gptq", scheme).tensors(NAME, weight, torch.float16)
        shifts = torch.arange(0, 32, bits)
        mask = 2**bits - 1
        zeros = ((t[f"{NAME}.qzeros"][:, :, None] >> shifts) & mask).flatten(1) + 1 & mask
        codes = ((t[f"{NAME}.qweight"][:, None, :] >> shifts[:, None]) & mask).flatten(0, 1)
        index = t[f"{NAME}.g_idx"].long()
        dense_IO = t[f"{NAME}.scales"].float()[index] * (codes - zeros[index])
        assert torch.equal(dense_IO.T, weight.dense())


def test_gptq_packs_three_bits_as_autogptq_does():
    """Words hold ten codes and two bits of one, then its third bit and ten more, and so on: its loop, written out."""
    codes = torch.arange(64) * 5 % 8
    words = []
    for start in (0, 32):
        v = codes[start : start + 32].tolist()
        first = sum(v[j] << 3 * j for j in range(10)) | v[10] << 30
        second = v[10] >> 2 & 1 | sum(v[11 + j] << 3 * j + 1 for j in range(10)) | v[21] << 31
        third = v[21] >> 1 & 3 | sum(v[22 + j] << 3 * j + 2 for j in range(10))
        words += [word & 0xFFFFFFFF for word in (first, second, third)]
    assert (pack_bits(codes[None], 3)[0].long() & 0xFFFFFFFF).tolist() == words


def test_symmetric_gptq_stores_the_middle_less_one_as_every_zero():
    scheme = SCHEMES["W4A16"].with_scales("float16")
    t = format_named("gptq", scheme).tensors(NAME, encoded(scheme), torch.float16)
    assert (t[f"{NAME}.qzeros"] == 0x77777777).all()
    assert t[f"{NAME}.qweight"].shape == (256 // 8, 96)
    assert t[f"{NAME}.scales"].dtype == torch.float16


def test_gptq_keeps_the_scattered_groups_of_act_order(tmp_path):
    scheme = SCHEMES["W4A16"].with_scales("float16")
    order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    group_I = (order // 128).long()
    scale = torch.rand(96, 2).half().float()
    weight = integer.encode(weights(), scheme.weights, scale, None, group_I)
    source = written(tmp_path, format_named("gptq", scheme), scheme, weight)
    same(weight, format_of(source.config).read(source, NAME))


def test_awq_is_the_layout_of_autoawqs_dequantization():
    """Its inference code: nibbles by shifting, columns put back by the reverse order 0 4 1 5 2 6 3 7."""
    scheme = SCHEMES["W4A16_ASYM"].with_scales("float16")
    weight = encoded(scheme)
    t = format_named("awq", scheme).tensors(NAME, weight, torch.float16)
    shifts, reverse = torch.arange(0, 32, 4), torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])

    def unpack(words):
        return ((words[:, :, None] >> shifts) & 15)[:, :, reverse].flatten(1)

    scale = t[f"{NAME}.scales"].float().repeat_interleave(128, 0)
    zero = unpack(t[f"{NAME}.qzeros"]).repeat_interleave(128, 0)
    assert torch.equal((scale * (unpack(t[f"{NAME}.qweight"]) - zero)).T, weight.dense())


def test_words_hold_codes_from_the_lowest_bit():
    assert pack_bits(torch.arange(8)[None], 4).tolist() == [[0x76543210]]
    assert pack_bits(torch.tensor([[15] * 8]), 4).tolist() == [[-1]]
    assert pack_awq(torch.arange(8)[None]).tolist() == [[0x75316420]]
    assert pack_fp4(torch.tensor([[0.5, 1.0, -6.0, -0.0]])).tolist() == [[0x21, 0x0F]]


def test_packing_is_undone():
    generator = torch.Generator().manual_seed(0)
    for bits in range(2, 9):
        codes = torch.randint(0, 2**bits, (5, 37), generator=generator, dtype=torch.int32)
        assert torch.equal(unpack_bits(pack_bits(codes, bits), bits, 37), codes)
    codes = torch.randint(0, 16, (5, 64), generator=generator, dtype=torch.int32)
    assert torch.equal(unpack_awq(pack_awq(codes)), codes)
    values = floats.from_codes(codes.to(torch.uint8), "e2m1")
    assert torch.equal(unpack_fp4(pack_fp4(values)), values)


def test_a_dense_checkpoint_holds_the_encoded_values(tmp_path):
    scheme = SCHEMES["FP6"].with_scales("float32")
    weight = encoded(scheme)
    source = written(tmp_path, format_named("dense", scheme), scheme, weight)
    assert format_of(source.config) is None
    found = format_named("dense").read(source, NAME)
    assert isinstance(found, DenseWeight)
    assert torch.equal(found.dense(), weight.dense().bfloat16().float())


def test_calibrated_scales_come_back_under_their_neutral_names(tmp_path):
    scales = {
        f"{NAME}.input_scale": torch.tensor(0.013),
        "model.layers.0.self_attn.k_scale": torch.tensor(0.05),
        "model.layers.0.self_attn.v_scale": torch.tensor(0.02),
    }
    for name in ("compressed-tensors", "modelopt"):
        for scheme in (SCHEMES["FP8"], SCHEMES["NVFP4"]):
            layout = format_named(name, scheme.with_scales(format_named(name).scale))
            source = written(tmp_path / name / scheme.name, layout, layout.scheme, encoded(layout.scheme), scales)
            found = layout.scales(source, NAME) | layout.scales(source, "model.layers.0.self_attn")
            assert {key: round(float(value), 7) for key, value in found.items()} == {
                "input_scale": 0.013,
                "k_scale": 0.05,
                "v_scale": 0.02,
            }


def test_nvfp4_inputs_are_stored_by_the_inverse_of_their_scale_in_compressed_tensors():
    layout = format_named("compressed-tensors", SCHEMES["NVFP4"])
    stored = layout.extras({f"{NAME}.input_scale": torch.tensor(0.25)})
    assert {key: value.tolist() for key, value in stored.items()} == {f"{NAME}.input_global_scale": [4.0]}


REFUSED = [
    ("compressed-tensors", "FP6", "dense"),
    ("gptq", "W8A8", "compressed-tensors"),
    ("gptq", "FP8_DYNAMIC", "compressed-tensors"),
    ("gptq", "NVFP4", "compressed-tensors"),
    ("awq", "W4A16", "W4A16_ASYM"),
    ("awq", "W3A16_ASYM", "W4A16_ASYM"),
    ("awq", "FP8", "W4A16_ASYM"),
    ("dense", "W8A8", "compressed-tensors"),
    ("modelopt", "W4A16", "compressed-tensors"),
    ("modelopt", "MXFP4", "compressed-tensors"),
    ("modelopt", "FP6", "dense"),
]


@pytest.mark.parametrize(("name", "scheme", "instead"), REFUSED)
def test_a_format_refuses_what_it_cannot_hold_and_names_one_that_can(name, scheme, instead):
    with pytest.raises(BadRecipeError, match=f"format {name} cannot hold scheme {scheme}, because .*{instead}"):
        format_named(name).check(SCHEMES[scheme])


@pytest.mark.parametrize("name", ["gptq", "awq", "dense"])
def test_only_formats_with_a_place_for_them_take_kv_scales(name):
    with pytest.raises(BadRecipeError, match="KV_FP8"):
        format_named(name).check(Scheme("KV_FP8"))


@pytest.mark.parametrize(
    ("name", "scheme", "shape", "said"),
    [
        ("compressed-tensors", "W4A16", (96, 192), "groups of 128 do not divide"),
        ("gptq", "W4A16", (100, 256), "100 × 256"),
        ("awq", "W4A16_ASYM", (100, 256), "8 outputs"),
        ("compressed-tensors", "NVFP4", (96, 24), "groups of 16 do not divide"),
        ("modelopt", "NVFP4", (96, 24), "groups of 16 do not divide"),
    ],
)
def test_a_layer_whose_shape_does_not_fit_is_named(name, scheme, shape, said):
    chosen = SCHEMES[scheme].with_scales(format_named(name).scale)
    fits = replace(chosen, weights=replace(chosen.weights, group_size=shape[1])) if name in ("gptq", "awq") else chosen
    w = weights(*shape)
    weight = encoded(fits, w) if scheme != "W4A16" or name == "gptq" else _ragged(w, chosen)
    with pytest.raises(BadRecipeError, match=f"{re.escape(NAME)}.*{said}"):
        format_named(name, fits).tensors(NAME, weight, torch.bfloat16)


def _ragged(w, scheme):
    """What integer.encode would refuse to make."""
    return IntegerWeight(scheme.weights, torch.zeros(w.shape, dtype=torch.int32), torch.ones(w.shape[0], 2))


def test_scattered_groups_are_refused_where_readers_no_longer_take_them():
    scheme = SCHEMES["W4A16"]
    weight = replace(encoded(scheme), group_I=torch.arange(256).flip(0) // 128)
    for name in ("compressed-tensors", "modelopt", "awq"):
        with pytest.raises(BadRecipeError, match="act_order: static"):
            format_named(name).config(SCHEMES["W4A16_ASYM" if name == "awq" else "FP8"], (), is_scattered=True)
    with pytest.raises(BadRecipeError, match="act_order: static"):
        format_named("compressed-tensors", scheme).tensors(NAME, weight, torch.bfloat16)


def test_gptq_says_when_groups_are_scattered():
    for is_scattered in (True, False):
        config = format_named("gptq").config(SCHEMES["W4A16"], (), is_scattered=is_scattered)
        assert config["desc_act"] is is_scattered


def test_an_unknown_format_is_named_with_the_nearest_one():
    with pytest.raises(BadRecipeError, match="'gptk'; did you mean gptq"):
        format_named("gptk")


def test_plain_weights_and_foreign_methods_are_no_format_of_ours():
    assert format_of({}) is None
    assert format_of({"quantization_config": {"quant_method": "bitsandbytes"}}) is None
    assert format_of({"quantization_config": "what"}) is None


BROKEN = [
    {
        "quant_method": "compressed-tensors",
        "config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": "x"}}},
    },
    {"quant_method": "gptq", "bits": 4},
    {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "checkpoint_format": "gptq_v2"},
    {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "dynamic": {r"+:.*\.0\.": {"bits": 8}}},
    {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemv"},
    {"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"},
]


@pytest.mark.parametrize("quantization", BROKEN, ids=lambda value: value["quant_method"])
def test_layouts_that_are_not_read_here_are_said_so(quantization):
    with pytest.raises(BadCheckpointError):
        format_of({"quantization_config": quantization})


def test_layers_left_alone_are_told_to_each_reader_in_its_words():
    ignore = ("model.layers.3.mlp.down_proj", "self_attn.o_proj")
    scheme = SCHEMES["W4A16_ASYM"]
    compressed = format_named("compressed-tensors").config(scheme, ignore)
    assert compressed["ignore"] == ["lm_head", "model.layers.3.mlp.down_proj", r"re:.*self_attn\.o_proj$"]
    gptq = format_named("gptq").config(scheme, ignore)
    assert list(gptq["dynamic"]) == [r"-:model\.layers\.3\.mlp\.down_proj", r"-:.*self_attn\.o_proj$"]
    awq = format_named("awq").config(scheme, ignore)
    assert awq["modules_to_not_convert"] == ["lm_head", "model.layers.3.mlp.down_proj", "self_attn.o_proj"]


def test_heads_are_never_said_to_be_compressed():
    """They stay dense even when a recipe's `ignore` is empty: tied to the embeddings as often as not."""
    for name in FORMATS:
        if name in ("dense", "modelopt"):
            continue
        said = format_named(name).config(SCHEMES["W4A16_ASYM"], ())
        assert "lm_head" in str(said)


def test_the_kv_cache_is_in_the_configuration():
    config = format_named("compressed-tensors").config(SCHEMES["FP8_DYNAMIC"], (), has_kv_scales=True)
    kept = {key: config["kv_cache_scheme"][key] for key in ("num_bits", "type", "strategy", "dynamic", "symmetric")}
    assert kept == {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
