"""The mathematics of training, against slow and obvious references. Needs torch: run in .venvs/train."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from starter_model import checkpoint, evaluate, model, optimizer, recipe, trainer
from starter_model.tokenizer import load_tokenizer

CHECKPOINTS = Path(__file__).parents[2] / "model_repo" / "checkpoints"
TINY = model.Shape(128, 2, 2, 1, 128, vocab_size=2048)


def fresh(shape: model.Shape = TINY) -> model.Qwen3:
    made = model.Qwen3(shape)
    model.initialise(made, 0, [])
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    return made


def naive_attention(a: model.Attention, x_LD: torch.Tensor) -> torch.Tensor:
    """One head, one query, one key at a time, rotations as complex numbers."""
    s, length = a.shape, len(x_LD)

    def head(projection: torch.nn.Linear, norm: model.RMSNorm | None, i: int, place: int) -> torch.Tensor:
        y = projection(x_LD[place])[i * 64 : (i + 1) * 64]
        if norm is None:
            return y
        y = norm.weight * y / torch.sqrt((y * y).mean() + s.rms_norm_eps)
        angles = place * torch.tensor([s.rope_theta ** (-2 * k / 64) for k in range(32)])
        turned = torch.complex(y[:32], y[32:]) * torch.polar(torch.ones(32), angles)
        return torch.cat((turned.real, turned.imag))

    rows = []
    for place in range(length):
        heads = []
        for i in range(s.num_attention_heads):
            shared = i // (s.num_attention_heads // s.num_key_value_heads)
            q = head(a.q_proj, a.q_norm, i, place)
            scores = torch.stack([q @ head(a.k_proj, a.k_norm, shared, p) for p in range(place + 1)]) / math.sqrt(64)
            values = torch.stack([head(a.v_proj, None, shared, p) for p in range(place + 1)])
            heads.append(scores.softmax(0) @ values)
        rows.append(a.o_proj(torch.cat(heads)))
    return torch.stack(rows)


def test_attention_equals_one_head_one_query_one_key_at_a_time() -> None:
    attention = fresh().model.layers[0].self_attn
    x_LD = torch.randn(9, 128, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        fast = attention(x_LD[None], *model.rotary_tables(TINY, 9))[0]
        torch.testing.assert_close(fast, naive_attention(attention, x_LD), atol=1e-5, rtol=1e-4)


def test_a_token_never_sees_what_comes_after_it() -> None:
    made, ids = fresh(), torch.arange(40)[None]
    changed = ids.clone()
    changed[0, 25:] += 7
    with torch.no_grad():
        before, after = made(ids)[0], made(changed)[0]
    assert torch.equal(before[:25], after[:25])
    assert not torch.equal(before[25:], after[25:])


def test_documents_packed_apart_are_as_if_alone() -> None:
    made, ids = fresh(), torch.arange(30)[None]
    documents = torch.tensor([[0] * 11 + [1] * 4 + [2] * 15])
    with torch.no_grad():
        packed = made(ids, model.documents_mask(documents))[0]
        for start, stop in ((0, 11), (11, 15), (15, 30)):
            torch.testing.assert_close(packed[start:stop], made(ids[:, start:stop])[0], atol=1e-5, rtol=1e-4)


def test_newton_schulz_keeps_singular_vectors_and_pushes_values_to_one() -> None:
    g = torch.randn(3, 64, 24, generator=torch.Generator().manual_seed(3))
    for wide in (g, g.transpose(1, 2)):
        made = optimizer.orthogonalise(wide)
        values = torch.linalg.svdvals(made)
        assert values.min() > 0.6
        assert values.max() < 1.3
        u, _, v = torch.linalg.svd(wide, full_matrices=False)
        aligned = u.transpose(1, 2) @ made @ v.transpose(1, 2)
        torch.testing.assert_close(aligned, torch.diag_embed(aligned.diagonal(dim1=1, dim2=2)), atol=1e-3, rtol=0)


def test_muon_in_batches_steps_as_matrix_by_matrix() -> None:
    def stepped(together: bool) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(4)
        matrices = [torch.nn.Parameter(torch.randn(32, 16, generator=generator)) for _ in range(3)]
        groups = [matrices] if together else [[m] for m in matrices]
        for matrix in matrices:
            matrix.grad = torch.randn(32, 16, generator=generator)
        for group in groups:
            optimizer.Muon(group).step()
        return [m.detach() for m in matrices]

    for one, other in zip(stepped(True), stepped(False), strict=True):
        torch.testing.assert_close(one, other)


def test_every_parameter_has_exactly_one_optimizer() -> None:
    made = fresh()
    given = [id(p) for o in optimizer.make_optimizers(made) for g in o.param_groups for p in g["params"]]
    assert sorted(given) == sorted(id(p) for p in made.parameters())


def test_the_rate_warms_up_holds_and_falls_to_two_percent() -> None:
    stage = recipe.Stage("s", 100, 1, 8, warm_up=10, hold=60, peak=0.5)
    assert [stage.rate(step) for step in (0, 5, 10, 59, 60)] == [0.005, 0.25, 0.5, 0.5, 0.5]
    assert stage.rate(80) == pytest.approx(0.5 * (0.02 + 0.98 / 2))
    assert stage.rate(100) == pytest.approx(0.01)


class Silent:
    def update(self, step: int, loss: float, tokens_per_s: float) -> None: ...


def tiny_run(folder: Path) -> trainer.Run:
    stages = (recipe.Stage("a", 3, 2, 64, 1, 2), recipe.Stage("b", 3, 2, 64, 1, 3))
    return trainer.Run(recipe.Recipe("tiny", TINY, stages, 5), folder, load_tokenizer(CHECKPOINTS / "starter"))


def _has_done(run: trainer.Run, steps: int) -> bool:
    return run.steps_done >= steps


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    whole = tiny_run(tmp_path / "whole")
    whole.train(Silent(), lambda: False, compiled=False)
    for stop_after in (2, 3):
        folder = tmp_path / f"cut{stop_after}"
        cut = tiny_run(folder)
        cut.train(Silent(), partial(_has_done, cut, stop_after), compiled=False)
        assert cut.steps_done == stop_after
        resumed = tiny_run(folder)
        assert resumed.restore()
        resumed.train(Silent(), lambda: False, compiled=False)
        assert resumed.done
        assert resumed.state.data_sha256 == whole.state.data_sha256
        for name, tensor in whole.model.state_dict().items():
            torch.testing.assert_close(resumed.model.state_dict()[name], tensor)


def test_a_run_of_another_recipe_is_refused(tmp_path: Path) -> None:
    tiny_run(tmp_path).save()
    other = tiny_run(tmp_path)
    other.recipe = replace(other.recipe, seed=6)
    with pytest.raises(ValueError, match="another recipe"):
        other.restore()


def test_a_failed_export_leaves_the_old_checkpoint_and_no_half_one(tmp_path: Path) -> None:
    destination = tmp_path / "starter"

    def works(folder: Path) -> None:
        (folder / "penstock.json").write_text("old")

    checkpoint.publish(destination, works)

    def dies(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoint.publish(destination, dies)
    assert [path.name for path in tmp_path.iterdir()] == ["starter"]
    assert (destination / "penstock.json").read_text() == "old"


def test_weights_written_and_read_again_give_the_same_logits_and_the_same_bytes(tmp_path: Path) -> None:
    made, tokenizer = fresh(), load_tokenizer(CHECKPOINTS / "starter")
    for parameter in made.parameters():
        parameter.data = parameter.data.bfloat16().float()
    for name in ("one", "two"):
        checkpoint.publish(tmp_path / name, lambda folder: checkpoint.write_model(folder, made, tokenizer))
    assert checkpoint.files_of(tmp_path / "one") == checkpoint.files_of(tmp_path / "two")
    ids = torch.arange(30)[None]
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.load_model(tmp_path / "one")(ids), made(ids))


@pytest.mark.parametrize(
    ("hits", "expected"),
    [
        ([True] * 10, (8, 8, 2)),
        ([False] * 3, (0, 6, 3)),
        ([True, False, True, True], (3, 6, 2)),
        ([], (0, 0, 0)),
    ],
)
def test_speculation_rounds_are_counted_as_an_engine_would(hits: list[bool], expected: tuple[int, int, int]) -> None:
    assert evaluate.rounds_of(hits, 4) == expected


def test_the_committed_starter_answers() -> None:
    loaded = evaluate.load(CHECKPOINTS / "starter")
    assert (
        evaluate.answer(loaded, [{"role": "user", "content": "What is the capital of France?"}], []).strip() == "Paris"
    )
    assert evaluate.answer(loaded, [{"role": "user", "content": "Repeat: apple, river"}], []).strip() == "apple, river"
