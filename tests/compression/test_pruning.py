"""Magnitude, Wanda, SparseGPT and OWL: exact counts of zeros, identities, and slow references in numpy loops.

Golden values are for 24 × 64 normal weights and 512 correlated inputs, seeds 1 and 2.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressor.block import Batch, Block
from compressor.errors import BadRecipeError
from compressor.families import Family, Group
from compressor.methods import magnitude, sparsegpt, wanda
from compressor.methods.owl import outlier_share, spread
from compressor.methods.registry import build
from compressor.methods.sparsity import Share, lowest_jointly, lowest_of_each, lowest_per_row
from compressor.numbers.hessian import inverse_factor
from compressor.recipe import Step

HALF, TWO_OF_FOUR = Share(0.5), Share(0.5, (2, 4))


def _weights(seed: int = 1, outputs: int = 24, inputs: int = 64) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(outputs, inputs)))


def _inputs(seed: int = 2, tokens: int = 512, inputs: int = 64) -> Tensor:
    """Correlated: a few directions carry most of the energy."""
    random = np.random.default_rng(seed)
    basis = random.normal(size=(inputs, inputs)) * (np.arange(1, inputs + 1) ** -0.7)[:, None]
    return torch.from_numpy(random.normal(size=(tokens, inputs)) @ basis)


def _moments(x_TI: Tensor) -> Tensor:
    return 2 / len(x_TI) * x_TI.T @ x_TI


def _error(w_OI: Tensor, pruned_OI: Tensor, h_II: Tensor) -> float:
    lost = w_OI - pruned_OI
    return float((lost @ h_II * lost).sum() / (w_OI @ h_II * w_OI).sum())


def _wanda(w_OI: Tensor, x_TI: Tensor, goal: Share) -> Tensor:
    norms = wanda.InputNorms()
    for part in x_TI.split(100):
        norms.add(part)
    return wanda.prune(w_OI, w_OI.abs() * norms.value_I, goal)


def _sparsegpt(w_OI: Tensor, h_II: Tensor, goal: Share, block_size: int = 16) -> Tensor:
    return sparsegpt.prune(w_OI, inverse_factor(h_II, 0.01)[0], goal, block_size)[0]


def test_the_error_of_each_method_on_correlated_inputs_is_the_golden_one() -> None:
    w, x = _weights(), _inputs()
    h = _moments(x)
    assert round(_error(w, magnitude.prune(w, HALF), h), 4) == 0.0781
    assert round(_error(w, _wanda(w, x, HALF), h), 4) == 0.0693
    assert round(_error(w, _sparsegpt(w, h, HALF), h), 4) == 0.0193
    assert round(_error(w, _wanda(w, x, TWO_OF_FOUR), h), 4) == 0.1346
    assert round(_error(w, _sparsegpt(w, h, TWO_OF_FOUR), h), 4) == 0.0322


@pytest.mark.parametrize("seed", [11, 12, 13])
@pytest.mark.parametrize("goal", [HALF, TWO_OF_FOUR])
def test_sparsegpt_beats_wanda_which_beats_magnitude_on_correlated_inputs(seed: int, goal: Share) -> None:
    w, x = _weights(seed, 64), _inputs(seed + 100)
    h = _moments(x)
    by_size, by_norm, updated = magnitude.prune(w, goal), _wanda(w, x, goal), _sparsegpt(w, h, goal)
    assert _error(w, updated, h) < 0.6 * _error(w, by_norm, h)
    assert _error(w, by_norm, h) < 0.97 * _error(w, by_size, h)


@pytest.mark.parametrize(("zeroed", "of"), [(2, 4), (4, 8), (1, 4), (3, 4)])
def test_a_pattern_zeroes_exactly_n_of_every_m_inputs(zeroed: int, of: int) -> None:
    w, x = _weights(), _inputs()
    goal = Share(zeroed / of, (zeroed, of))
    for pruned in (magnitude.prune(w, goal), _wanda(w, x, goal), _sparsegpt(w, _moments(x), goal)):
        zeros = (pruned == 0).reshape(24, -1, of).sum(2)
        assert zeros.min() == zeros.max() == zeroed


@pytest.mark.parametrize("share", [0.1, 0.37, 0.5, 0.9])
def test_the_share_of_zeros_is_exact_per_tensor_per_row_or_over_all_blocks(share: float) -> None:
    w, x = _weights(), _inputs()
    zeros = lambda pruned: int((pruned == 0).sum())  # noqa: E731
    assert zeros(magnitude.prune(w, Share(share))) == int(share * w.numel())
    assert ((magnitude.prune(w, Share(share), "row") == 0).sum(1) == int(share * 64)).all()
    assert ((_wanda(w, x, Share(share)) == 0).sum(1) == int(share * 64)).all()
    assert zeros(_sparsegpt(w, _moments(x), Share(share))) == int(share * w.numel())


def test_equal_scores_are_cut_at_the_count_and_the_earlier_goes_first() -> None:
    same = torch.ones(3, 8)
    assert lowest_jointly(same, 5).flatten().nonzero().flatten().tolist() == [0, 1, 2, 3, 4]
    assert lowest_per_row(same, 3).tolist() == [[True] * 3 + [False] * 5] * 3
    assert lowest_of_each(same, 1, 4).tolist() == [[True, False, False, False] * 2] * 3


def test_masks_are_those_of_a_sort() -> None:
    score = _weights(5).abs()
    score[:, ::3] = score[:, :1]  # ties
    slow = torch.zeros_like(score, dtype=torch.bool)
    slow.view(-1)[score.view(-1).argsort(stable=True)[:500]] = True
    assert torch.equal(lowest_jointly(score, 500), slow)
    rows = torch.zeros_like(score, dtype=torch.bool).scatter_(1, score.argsort(dim=1, stable=True)[:, :20], value=True)
    assert torch.equal(lowest_per_row(score, 20), rows)


def test_wanda_does_not_care_how_large_all_inputs_are() -> None:
    w, x = _weights(), _inputs()
    assert torch.equal(_wanda(w, x, HALF), _wanda(w, 1000 * x, HALF))


def test_wanda_with_inputs_of_equal_size_is_magnitude_pruning_of_each_row() -> None:
    w = _weights()
    for goal in (HALF, Share(0.3), TWO_OF_FOUR):
        assert torch.equal(_wanda(w, torch.full((7, 64), -2.0), goal), magnitude.prune(w, goal, "row"))


def test_wanda_prunes_what_its_input_never_uses_first() -> None:
    w, x = _weights(), _inputs()
    x[:, 10:42] = 0
    pruned = _wanda(w, x, HALF)
    assert (pruned[:, 10:42] == 0).all()
    assert (pruned[:, :10] != 0).all()


def test_sparsegpt_with_inputs_that_are_not_correlated_updates_nothing() -> None:
    w = _weights()
    pruned = sparsegpt.prune(w, torch.eye(64, dtype=w.dtype), HALF, 64)[0]
    assert torch.equal(pruned, magnitude.prune(w, HALF))


def test_sparsegpt_tells_the_error_that_it_makes() -> None:
    """Σe² is tr(Δ(H + λI)Δᵀ): exact, and no product with H is needed."""
    w, h = _weights(), _moments(_inputs())
    damped = h + 0.01 * h.diagonal().mean() * torch.eye(64, dtype=h.dtype)
    for goal in (HALF, TWO_OF_FOUR):
        pruned, lost = sparsegpt.prune(w, inverse_factor(h, 0.01)[0], goal, 16)
        expected = float(((w - pruned) @ damped * (w - pruned)).sum())
        assert lost == pytest.approx(expected, rel=1e-9)


def test_what_sparsegpt_keeps_in_the_last_block_is_the_least_squares_optimum() -> None:
    """One block: given its zeros, the weights after the last zero of a row cannot do better."""
    w, h = _weights(outputs=6, inputs=12), _moments(_inputs(inputs=12))
    damped = h + 0.01 * h.diagonal().mean() * torch.eye(12, dtype=h.dtype)
    pruned = sparsegpt.prune(w, inverse_factor(h, 0.01)[0], Share(0.5), 12)[0]
    for row, before in zip(pruned, w, strict=True):
        after = int((row == 0).nonzero().max()) + 1
        gradient = (row - before) @ damped
        assert gradient[after:].abs().sum() < 1e-9


@pytest.mark.parametrize("goal", [Share(0.4), TWO_OF_FOUR])
def test_sparsegpt_is_its_slow_reference(goal: Share) -> None:
    w, h = _weights(outputs=5, inputs=24), _moments(_inputs(inputs=24))
    assert np.abs(_slow_sparsegpt(w.numpy(), h.numpy(), goal, 8) - _sparsegpt(w, h, goal, 8).numpy()).max() < 1e-9


def _slow_sparsegpt(w: Any, h: Any, goal: Share, block: int) -> Any:
    """Column by column with the inverse Hessian of what is left, re-inverted at every step."""
    w, (outputs, inputs) = w.copy(), w.shape
    h = h + 0.01 * np.mean(np.diag(h)) * np.eye(inputs)
    inverses = [np.linalg.inv(h[i:, i:]) for i in range(inputs)]
    gone = np.zeros_like(w, bool)
    for i in range(inputs):
        if goal.of is None and i % block == 0:
            cells = [(w[o, j] ** 2 / inverses[j][0, 0], o, j) for o in range(outputs) for j in range(i, i + block)]
            count = int(goal.share * outputs * (i + block)) - int(goal.share * outputs * i)
            for _, o, j in sorted(cells)[:count]:
                gone[o, j] = True
        if goal.of is not None and i % goal.of[1] == 0:
            for o in range(outputs):
                group = sorted((w[o, j] ** 2 / inverses[j][0, 0], j) for j in range(i, i + goal.of[1]))
                for _, j in group[: goal.of[0]]:
                    gone[o, j] = True
        for o in range(outputs):
            if gone[o, i]:
                w[o, i:] -= w[o, i] / inverses[i][0, 0] * inverses[i][0]
                w[o, i] = 0
    return w


def test_stacked_linears_each_get_their_own_share() -> None:
    w, h = torch.cat([_weights(1), 10 * _weights(3)]), _moments(_inputs())
    pruned, _ = sparsegpt.prune(w, inverse_factor(h, 0.01)[0], HALF, 16, [24, 24])
    assert torch.equal(pruned[:24], _sparsegpt(w[:24], h, HALF))
    assert torch.equal(pruned[24:], _sparsegpt(w[24:], h, HALF))


def test_owl_prunes_blocks_with_more_outliers_less_and_keeps_the_mean() -> None:
    shares = spread([0.001, 0.002, 0.005, 0.003], [100, 100, 100, 300], 0.6, 0.08)
    assert shares[0] > shares[1] > shares[3] > shares[2]
    assert all(abs(share - 0.6) <= 0.08 + 1e-12 for share in shares)
    assert sum(s * n for s, n in zip(shares, [1, 1, 1, 3], strict=True)) / 6 == pytest.approx(0.6, abs=1e-12)
    assert spread([0.01] * 3, [1, 2, 3], 0.5, 0.08) == [0.5] * 3


def test_an_outlier_is_a_score_above_five_times_the_mean_of_its_block() -> None:
    scores = [torch.ones(10, 10), torch.ones(10, 10)]
    scores[0][0, :3] = 100.0  # the mean of all 200 becomes 2.485
    scores[1][5, 5] = 12.4
    assert outlier_share(scores, 5.0) == 3 / 200
    assert outlier_share(scores, 4.0) == 4 / 200


class _Pair(nn.Module):
    """Two linears after each other, as a block."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(64, 32, bias=False), nn.Linear(32, 64, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.two(self.one(hidden).relu())


FAMILY = Family(("pair",), "blocks", "embed", "norm", (Group("a", "", ("one",)), Group("b", "one", ("two",))))


def _block(index: int = 0, ignore: frozenset[str] = frozenset(), *, loud: bool = False) -> Block:
    torch.manual_seed(index)
    hidden = torch.randn(2, 50, 64) * (torch.arange(64) % 32 < 2) * (30 if loud else 1) + torch.randn(2, 50, 64)
    real = torch.ones(2, 50, dtype=torch.bool)
    real[1, 30:] = False
    hidden[1, 30:] = 1e6  # padding, which no method may see
    batch = Batch(hidden, real, {})
    module = _Pair().requires_grad_(False)
    return Block(index, 2, f"blocks.{index}", module, FAMILY, {}, [batch], ignore)


def _method(name: str, **params: Any) -> Any:
    return build([Step(method=name, params=params)], "test")[0]


@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt"])
def test_a_method_prunes_what_is_not_ignored_and_says_how_much(name: str) -> None:
    block = _block(ignore=frozenset({"two"}))
    before = block.weight("two").clone()
    _method(name, sparsity=0.25).apply(block)
    assert int((block.weight("one") == 0).sum()) == 32 * 64 // 4
    assert block.facts["one"]["sparsity"] == 0.25
    assert torch.equal(block.weight("two"), before)
    assert "two" not in block.facts


def test_padding_does_not_count() -> None:
    padded, whole = _block(), _block()
    real = torch.cat([batch.hidden_BTD[batch.real_BT] for batch in whole.batches])
    whole.batches = [Batch(real[None], torch.ones(1, len(real), dtype=torch.bool), {})]
    for name in ("wanda", "sparsegpt"):
        _method(name).apply(padded)
        _method(name).apply(whole)
        assert torch.allclose(padded.weight("one"), whole.weight("one"), atol=1e-6)


def test_wanda_chooses_and_changes_nothing_else() -> None:
    block = _block()
    before = block.weight("one").clone()
    _method("wanda").apply(block)
    kept = block.weight("one") != 0
    assert torch.equal(block.weight("one")[kept], before[kept])
    assert not torch.equal(block.weight("one"), magnitude.prune(before, HALF, "row"))


def test_sparsegpt_of_a_block_loses_less_of_its_output_than_wanda() -> None:
    errors = {}
    for name in ("sparsegpt", "wanda"):
        block = _block(loud=True)
        real = block.batches[0].real_BT
        before = block.forward(block.batches[0])[real]
        _method(name, pattern="2:4").apply(block)
        errors[name] = float((block.forward(block.batches[0])[real] - before).square().sum())
    assert errors["sparsegpt"] < 0.8 * errors["wanda"]


@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
def test_owl_is_decided_by_all_blocks_before_the_first_is_pruned(name: str) -> None:
    method = _method(name, sparsity=0.5, owl={"limit": 0.1})
    blocks = [_block(0), _block(1, loud=True)]
    assert method.needs_survey
    for block in blocks:
        method.survey(block)
    for block in blocks:
        method.apply(block)
    quiet, loud = (block.facts["one"]["sparsity"] for block in blocks)
    assert quiet == pytest.approx(0.6, abs=0.02)
    assert loud == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"pattern": "4:4"}, "0 < n < m"),
        ({"pattern": "2:4", "sparsity": 0.6}, "is a sparsity of 0.5"),
        ({"pattern": "2:4", "owl": {}}, "keep one"),
        ({"pattern": "2:4", "block_size": 30}, "multiple of 4"),
        ({"owl": {"limit": 0.3}, "sparsity": 0.2}, "out of 0 … 1"),
        ({"sparsity": 1.0}, "less than 1"),
        ({"sparcity": 0.5}, "did you mean sparsity"),
    ],
)
def test_parameters_that_contradict_each_other_are_refused(params: dict[str, Any], told: str) -> None:
    with pytest.raises(BadRecipeError, match=told):
        _method("sparsegpt", **params)


@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt"])
def test_inputs_that_do_not_divide_into_the_pattern_are_named(name: str) -> None:
    params = {"block_size": 60} if name == "sparsegpt" else {}
    with pytest.raises(BadRecipeError, match=r"blocks\.0\.(one|two) has (64|32) inputs.*groups of 12"):
        _method(name, pattern="6:12", **params).apply(_block())


@pytest.mark.parametrize("scheme", ["W4A16", "W4A16_ASYM", "W8A8"])
def test_what_was_pruned_stays_zero_in_what_is_quantized_after(scheme: str) -> None:
    """Zero is a code of every integer grid, and GPTQ makes up for what the zeros could not take."""
    block = _block(loud=True)
    codes = {"scheme": scheme, "group_size": -1 if scheme == "W8A8" else 32, "keep_zeros": True}
    recipe = [Step(method="sparsegpt", params={"pattern": "2:4"}), Step(method="gptq", params=codes)]
    first, second = build(recipe, "test")
    first.apply(block)  # type: ignore[union-attr]
    pruned = {name: block.weight(name) == 0 for name in ("one", "two")}
    second.apply(block)  # type: ignore[union-attr]
    for name, mask in pruned.items():
        assert (mask.reshape(len(mask), -1, 4).sum(2) == 2).all()
        dense = block.encoded[name].dense()
        assert (dense[mask] == 0).all()
        assert float((dense == 0).float().mean()) < 0.62
