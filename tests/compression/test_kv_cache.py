"""FP8 KV cache: scales of what an engine caches, which is keys after norm and rotary embedding."""

import pytest
import torch

from compressor.errors import BadCalibrationError
from compressor.methods.kv_cache import KVCache
from compressor.numbers.floats import round_to
from small_floats import LINEARS, first_block

K, V = "model.layers.0.self_attn.k_scale", "model.layers.0.self_attn.v_scale"


def calibrated(**kwargs):
    block = first_block(**kwargs)
    KVCache(KVCache.Params()).apply(block)
    return block


def slow_keys_and_values(block):
    """By the equations: project, normalise each head, rotate; of real tokens only."""
    attention, batch = block.module.self_attn, block.batches[0]
    hidden = block.module.input_layernorm(batch.hidden_BTD)
    cos, sin = batch.kwargs["position_embeddings"]
    keys, values = [], []
    for row in range(hidden.shape[0]):
        for token in range(hidden.shape[1]):
            if not batch.real_BT[row, token]:
                continue
            k = (attention.k_proj.weight @ hidden[row, token]).reshape(2, 64)
            k = k / (k.square().mean(1, keepdim=True) + 1e-6).sqrt() * attention.k_norm.weight
            rotated = torch.cat([-k[:, 32:], k[:, :32]], 1)
            keys.append(k * cos[0, token] + rotated * sin[0, token])
            values.append(attention.v_proj.weight @ hidden[row, token])
    return torch.stack(keys), torch.stack(values)


def test_the_scales_put_the_largest_cached_key_and_value_at_448():
    block = calibrated()
    keys, values = slow_keys_and_values(block)
    assert float(block.extras[K]) == pytest.approx(float(keys.abs().max()) / 448, rel=1e-5)
    assert float(block.extras[V]) == pytest.approx(float(values.abs().max()) / 448, rel=1e-5)


def test_keys_are_not_taken_before_norm_and_rotation():
    """The two differ on this model, so that a mistake would show."""
    block = calibrated()
    raw = block.module.self_attn.k_proj(block.module.input_layernorm(block.batches[0].hidden_BTD))
    real = raw[block.batches[0].real_BT].abs().max()
    assert abs(float(real) / 448 / float(block.extras[K]) - 1) > 0.05


def test_weights_are_not_touched_and_the_block_computes_what_it_did():
    block, before = first_block(), first_block()
    KVCache(KVCache.Params()).apply(block)
    assert not block.encoded
    for name in LINEARS:
        assert torch.equal(block.weight(name), before.weight(name))
    assert torch.equal(block.forward(block.batches[0]), before.forward(before.batches[0]))


def test_padding_is_not_calibrated_on():
    block = first_block()
    block.batches[0].hidden_BTD[:, 32:] = 1e3 * torch.randn(4, 8, 256, generator=torch.Generator().manual_seed(5))
    KVCache(KVCache.Params()).apply(block)
    assert torch.equal(block.extras[V], calibrated().extras[V])
    assert torch.equal(block.extras[K], calibrated().extras[K])


def test_what_is_cached_under_these_scales_is_near_what_it_was():
    block = calibrated()
    for cached, scale in zip(slow_keys_and_values(block), (block.extras[K], block.extras[V]), strict=True):
        rounded = round_to(cached / scale, "e4m3") * scale
        assert rounded.abs().max() == pytest.approx(float(cached.abs().max()), rel=1e-6)
        assert float((rounded - cached).norm() / cached.norm()) < 0.03


def test_no_data_is_an_error_and_no_scale_of_one():
    with pytest.raises(BadCalibrationError):
        calibrated(with_inputs=False)


def test_its_scales_are_among_the_facts():
    block = calibrated()
    assert block.facts["self_attn.k_proj"]["cache_scale"] == float(block.extras[K])
    assert block.facts["self_attn.v_proj"]["cache_scale"] == float(block.extras[V])
