"""LLM-Pruner: what is removed computes as if it were zero, is counted, and is what matters least.

Slow references: a loop over heads in torch, finite differences of the loss, and counts from closed forms.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressor.checkpoint.sink import Sink
from compressor.checkpoint.source import Entry, Source
from compressor.errors import BadCalibrationError, BadCheckpointError, BadRecipeError, CompressorError
from compressor.families import family_of
from compressor.methods.llm_pruner import memory
from compressor.methods.llm_pruner.choice import choose
from compressor.methods.llm_pruner.gradients import Gradients, perplexity, token_losses
from compressor.methods.llm_pruner.groups import Geometry, inner_blocks, kept_count
from compressor.methods.llm_pruner.importance import assess, combine, lowest, score
from compressor.methods.llm_pruner.method import LLMPruner, narrow
from compressor.methods.llm_pruner.model import build_uneven, load_uneven
from compressor.methods.llm_pruner.plan import Plan, PrunerParams
from compressor.passes import ModelPass, Rows
from compressor.screen import Screen
from starter import STARTER

LLAMA_7B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "qwen3": {"model_type": "qwen3", "num_key_value_heads": 4, "head_dim": 16, "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", "num_key_value_heads": 2},
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 4},
    "opt": {"model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 32},
}


Make = Callable[[str], Path]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Small random models by name, each written once."""
    folder = tmp_path_factory.mktemp("models")
    return lambda name: folder / name if (folder / name).exists() else _write(name, folder)


def _write(name: str, folder: Path) -> Path:
    """A random model whose biases and norms are far from trivial."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = SMALL | MODELS[name]
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.2))
    model.save_pretrained(folder / name)
    return folder / name


def rows(count: int = 3, length: int = 20, vocabulary: int = 96) -> list[Rows]:
    ids = torch.randint(0, vocabulary, (count, length), generator=torch.Generator().manual_seed(1))
    return [Rows(ids, torch.ones_like(ids, dtype=torch.bool))]


class Told(Screen):
    """Remembers what was said."""

    def __init__(self) -> None:
        super().__init__(is_quiet=True)
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.lines.append(text)


def work_on(folder: Path, out: Path, data: list[Rows] | None = None) -> ModelPass:
    source = Source(folder)
    data = rows() if data is None else data
    return ModelPass(source, Sink(out), family_of(source.config), data, torch.device("cpu"), 0, Told())


def prune(folder: Path, out: Path, **params: Any) -> ModelPass:
    work = work_on(folder, out)
    LLMPruner(PrunerParams(**params)).run(work)
    work.sink.finish()
    return work


def logits(model: Any, data: list[Rows] | None = None) -> Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(input_ids=(data or rows())[0].ids_BT).logits)


# ---------------------------------------------------------------- counts
def test_a_quarter_of_blocks_4_to_29_of_llama_7b_leaves_5_422_977_024_parameters() -> None:
    plan = Plan(PrunerParams(widths="per_layer", multiple_of=1), LLAMA_7B, family_of(LLAMA_7B))
    assert plan.pruned == list(range(4, 30))
    pruned = build_uneven(plan.new_config())
    assert sum(parameter.numel() for parameter in pruned.parameters()) == 5_422_977_024
    assert plan.removed_parameters() == 6_738_415_616 - 5_422_977_024


def test_widths_stay_multiples_and_never_lose_more_than_was_asked() -> None:
    assert kept_count(11008, 0.25) == kept_count(11008, 0.25, 8) == 8256
    assert kept_count(11008, 0.25, 128) == 8320
    assert kept_count(352, 0.25, 128) == 352
    assert kept_count(512, 0.25, 128) == 384
    assert kept_count(3, 0.25) == 3
    assert kept_count(10, 0.3) == 7  # 10 · 0.3 is 3.0000000000000004 or 2.9999…: three go


def test_the_sensitive_blocks_are_the_papers() -> None:
    assert inner_blocks(32, None, None) == list(range(4, 30))
    assert inner_blocks(4, None, None) == [1, 2]
    assert inner_blocks(4, 0, 3) == [0]
    assert inner_blocks(2, None, None) == []


# ---------------------------------------------------------------- removal
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("widths", ["uniform", "per_layer"])
def test_removing_is_zeroing(checkpoint: Make, name: str, widths: Any, tmp_path: Path) -> None:
    folder = checkpoint(name)
    work = work_on(folder, tmp_path / "out")
    plan = Plan(PrunerParams(ratio=0.25, widths=widths), work.source.config, work.family)
    masked = load_uneven(work.source)
    gone = choose(plan, masked, work)
    LLMPruner(plan.params).run(work)
    work.sink.finish()
    pruned = load_uneven(Source(tmp_path / "out"))
    assert (logits(pruned) - logits(masked)).abs().max() <= 1e-5
    assert (logits(pruned) - logits(load_uneven(Source(folder)))).abs().max() > 1e-2
    assert all(len(held["channels"]) == 8 for held in gone.values())
    count = lambda model: sum(parameter.numel() for parameter in model.parameters())  # noqa: E731
    assert count(masked) - count(pruned) == plan.removed_parameters() == work.facts["removed_parameters"] > 0


@pytest.mark.parametrize("name", MODELS)
def test_a_uniform_result_is_a_plain_checkpoint_to_transformers(checkpoint: Make, name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    prune(checkpoint(name), tmp_path / "out", ratio=0.25)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert torch.equal(logits(stock), logits(load_uneven(Source(tmp_path / "out"))))
    config = Source(tmp_path / "out").config
    if name in ("llama", "qwen3", "mistral"):
        groups = {"llama": 6, "qwen3": 3, "mistral": 2}[name]
        assert config["head_dim"] == MODELS[name].get("head_dim", 4)
        assert config["num_key_value_heads"] == groups
        assert config["num_attention_heads"] == groups * {"llama": 1, "qwen3": 2, "mistral": 4}[name]
    else:
        assert config["num_attention_heads"] == 8


def test_a_llama_whose_heads_no_longer_divide_its_width_is_written_as_the_mistral_that_it_is(
    checkpoint: Make, tmp_path: Path
) -> None:
    folder = checkpoint("llama")
    prune(folder, tmp_path / "six", heads=0.25, channels=0)
    assert Source(tmp_path / "six").config["architectures"] == ["MistralForCausalLM"]
    assert Source(tmp_path / "six").config["sliding_window"] is None
    prune(folder, tmp_path / "four", heads=0.5, channels=0)
    assert Source(tmp_path / "four").config["architectures"] == ["LlamaForCausalLM"]
    config = Source(folder).config | {"attention_bias": True}
    with pytest.raises(BadRecipeError, match="hidden size, 32, is no multiple of its heads, 6"):
        Plan(PrunerParams(), config, family_of(config))


def test_a_per_layer_result_says_a_name_that_no_engine_knows(checkpoint: Make, tmp_path: Path) -> None:
    folder = checkpoint("qwen3")
    prune(folder, tmp_path / "out", widths="per_layer")
    config = Source(tmp_path / "out").config
    assert config["architectures"] == ["UnevenQwen3ForCausalLM"]
    assert config["model_type"] == "uneven_qwen3"
    assert config["num_key_value_heads_per_layer"] == [4, 3, 3, 4]
    assert config["num_attention_heads_per_layer"] == [8, 6, 6, 8]
    assert config["intermediate_size_per_layer"] == [48, 40, 40, 48]
    with pytest.raises(BadCheckpointError, match="uneven_qwen3"):
        family_of(config)
    assert LLMPruner(PrunerParams(widths="per_layer")).structure == "sizes that differ by layer"
    assert LLMPruner(PrunerParams()).structure is None


def test_a_per_layer_result_generates_with_a_cache_as_without(checkpoint: Make, tmp_path: Path) -> None:
    prune(checkpoint("qwen3"), tmp_path / "out", widths="per_layer")
    model: Any = load_uneven(Source(tmp_path / "out"))
    ids = rows()[0].ids_BT
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, use_cache=True, **options), model.generate(ids, use_cache=False, **options))


def test_what_stays_keeps_its_dtype_and_its_bits(tmp_path: Path) -> None:
    work = prune(STARTER, tmp_path, channels=0.25, heads=0)
    parent, child = Source(STARTER), Source(tmp_path)
    assert {entry.dtype for entry in child.entries.values()} == {"BF16"}
    assert all(torch.equal(child.read(name), parent.read(name)) for name in child.entries if "mlp" not in name)
    name = "model.layers.2.mlp.down_proj.weight"
    columns = {tuple(column.tolist()) for column in parent.read(name).T}
    assert child.read(name).shape == (256, 384)
    assert {tuple(column.tolist()) for column in child.read(name).T} <= columns
    assert work.facts["channels"] == {"before": 512, "after": 384}


# ---------------------------------------------------------------- importance
def test_first_order_importance_is_the_derivative_of_shrinking_a_group(checkpoint: Make, tmp_path: Path) -> None:
    """d/dε of the loss with a structure's weights times 1 − ε is −Σ w·g."""
    source = Source(checkpoint("qwen3"))
    model = load_uneven(source, dtype=torch.float64)
    structures = Geometry.of(source.config).structures(family_of(source.config))
    block = model.get_submodule("model.layers.1")
    names = {f"model.layers.1.{part.linear}.weight" for held in structures.values() for part in held.parts}
    gradients = Gradients({name: model.get_parameter(name) for name in names}, with_squares=False)
    gradients.collect(model, rows())
    for held, chosen in zip(structures.values(), ([0, 2, 3], [0, 17, 47]), strict=True):
        weights = [block.get_submodule(part.linear).weight.detach() for part in held.parts]
        pairs = [gradients.of(f"model.layers.1.{part.linear}.weight") for part in held.parts]
        parts = zip(held.parts, weights, pairs, strict=True)
        signed = torch.stack([part.sums(score("vectorize", w, *pair)) for part, w, pair in parts]).sum(0)
        assert torch.allclose(assess("vectorize", "sum", held, weights, pairs), signed.abs())
        for structure in chosen:
            up, down = (_loss_with(model, block, held, structure, epsilon) for epsilon in (2e-3, -2e-3))
            slope = (up - down) / 4e-3  # transformers' norms are float32 whatever the model is
            assert slope == pytest.approx(-float(signed[structure]), rel=2e-3, abs=1e-5)


def _loss_with(model: nn.Module, block: nn.Module, held: Any, structure: int, epsilon: float) -> float:
    """The mean over rows of the mean loss, with one structure's weights shrunk."""
    before = [block.get_submodule(part.linear).weight.detach().clone() for part in held.parts]
    for part in held.parts:
        weight = block.get_submodule(part.linear).weight.data
        cut = slice(structure * part.width, (structure + 1) * part.width)
        weight[cut if part.axis == 0 else (slice(None), cut)] *= 1 - epsilon
    with torch.no_grad():
        loss = token_losses(model, rows()[0].ids_BT).mean()
    for part, weight in zip(held.parts, before, strict=True):
        block.get_submodule(part.linear).weight.data.copy_(weight)
    return float(loss)


def test_gradients_and_their_squares_are_means_over_single_rows(checkpoint: Make, tmp_path: Path) -> None:
    model = load_uneven(Source(checkpoint("llama")), dtype=torch.float64)
    name = "model.layers.2.mlp.up_proj.weight"
    parameter = model.get_parameter(name)
    found = Gradients({name: parameter}, with_squares=True).collect(model, rows())
    slow = []
    for row in rows()[0].ids_BT:
        parameter.requires_grad_(True)
        (gradient,) = torch.autograd.grad(token_losses(model, row[None]).mean(), parameter)
        slow.append(gradient)
    assert torch.allclose(found.mean[name], torch.stack(slow).mean(0), rtol=1e-9)
    assert torch.allclose(found.squares[name], torch.stack(slow).square().mean(0), rtol=1e-9)
    assert parameter.grad is None


def test_padding_gives_no_gradient(checkpoint: Make, tmp_path: Path) -> None:
    model = load_uneven(Source(checkpoint("llama")), dtype=torch.float64)
    named = {name: parameter for name, parameter in model.named_parameters() if "o_proj" in name}
    ids = rows()[0].ids_BT
    real = torch.ones_like(ids, dtype=torch.bool)
    real[:, 12:] = False
    padded = Gradients(named, with_squares=False).collect(model, [Rows(ids, real)])
    short = Gradients(named, with_squares=False).collect(model, [Rows(ids[:, :12], real[:, :12])])
    assert all(torch.allclose(padded.mean[name], short.mean[name]) for name in named)
    with pytest.raises(BadCalibrationError, match="two tokens"):
        Gradients(named, with_squares=False).collect(model, [Rows(ids[:, :1], real[:, :1])])


def test_each_importance_is_its_formula() -> None:
    w, g, h = (torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in (1, 2, 3))
    h = h.abs()
    assert torch.equal(score("param_first", w, g), (w * g).abs())
    assert torch.equal(score("param_second", w, g, h), (w * w * h).abs())
    assert torch.allclose(score("param_mix", w, g, h), (w * g - w * w * h / 2).abs())
    assert torch.equal(score("l1", w), w.abs())
    assert torch.equal(score("l2", w), w * w)


def test_each_reduction_is_its_formula() -> None:
    parts = [torch.tensor([1.0, -2.0]), torch.tensor([-3.0, 0.5])]
    assert combine(parts, "sum").tolist() == [2.0, 1.5]
    assert combine(parts, "mean").tolist() == [1.0, 0.75]
    assert combine(parts, "max").tolist() == [3.0, 2.0]
    assert combine(parts, "prod").tolist() == [3.0, 1.0]
    assert combine(parts, "last-only").tolist() == [3.0, 0.5]


def test_sums_of_a_kv_group_are_those_of_a_loop_over_heads() -> None:
    config = SMALL | MODELS["qwen3"]
    heads = Geometry.of(config).structures(family_of(config))["heads"]
    query, key, _, out = heads.parts
    q_OI, k_OI, o_OI = torch.rand(128, 32), torch.rand(64, 32), torch.rand(32, 128)
    for group in range(4):
        rows_of_group = [head * 16 + i for head in (2 * group, 2 * group + 1) for i in range(16)]
        assert float(query.sums(q_OI)[group]) == pytest.approx(float(q_OI[rows_of_group].sum()), rel=1e-5)
        assert float(out.sums(o_OI)[group]) == pytest.approx(float(o_OI[:, rows_of_group].sum()), rel=1e-5)
        assert float(key.sums(k_OI)[group]) == pytest.approx(float(k_OI[16 * group : 16 * group + 16].sum()), rel=1e-5)


def test_what_was_removed_stays_removed_in_later_steps() -> None:
    importance = torch.tensor([5.0, 1.0, 2.0, 9.0, 3.0])
    assert lowest(importance, 2, torch.empty(0, dtype=torch.long)).tolist() == [1, 2]
    assert lowest(importance, 3, torch.tensor([3])).tolist() == [1, 2, 3]


@pytest.mark.parametrize("importance", ["param_first", "param_second", "param_mix", "vectorize"])
@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "prod", "last-only"])
def test_a_useless_head_and_a_useless_channel_are_removed_first(
    checkpoint: Make, importance: Any, reduce: Any, tmp_path: Path
) -> None:
    """Nobody reads what it writes (its columns of o are 0): no gradient reaches it, and its own weights do not act."""
    work = work_on(checkpoint("llama"), tmp_path / "out")
    params = PrunerParams(heads=0.125, channels=1 / 48, multiple_of=1, importance=importance, reduce=reduce)
    plan = Plan(params, work.source.config, work.family)
    model = load_uneven(work.source)
    planted = {0: (5, 11), 1: (0, 47), 2: (7, 0), 3: (2, 30)}
    for index, (head, channel) in planted.items():
        block = model.get_submodule(f"model.layers.{index}")
        block.get_submodule("self_attn.o_proj").weight.data[:, 4 * head : 4 * head + 4] = 0
        block.get_submodule("mlp.down_proj").weight.data[:, channel] = 0
    found = choose(plan, model, work)
    assert {index: (held["heads"].tolist(), held["channels"].tolist()) for index, held in found.items()} == {
        index: ([head], [channel]) for index, (head, channel) in planted.items()
    }


def test_several_steps_look_again_and_end_at_the_same_sizes(checkpoint: Make, tmp_path: Path) -> None:
    folder = checkpoint("llama")
    chosen = {}
    for steps in (1, 3):
        work = work_on(folder, tmp_path / "out")
        plan = Plan(PrunerParams(ratio=0.5, iterative_steps=steps), work.source.config, work.family)
        chosen[steps] = choose(plan, load_uneven(work.source), work)
    sizes = [{i: [len(gone) for gone in held.values()] for i, held in found.items()} for found in chosen.values()]
    assert sizes[0] == sizes[1] == {index: [4, 24] for index in range(4)}
    assert any(not torch.equal(chosen[1][i]["channels"], chosen[3][i]["channels"]) for i in range(4))


def test_random_is_seeded(checkpoint: Make, tmp_path: Path) -> None:
    folder = checkpoint("llama")
    found = []
    for seed in (0, 0, 1):
        work = work_on(folder, tmp_path / "out")
        work.seed = seed
        plan = Plan(PrunerParams(importance="random"), work.source.config, work.family)
        found.append(choose(plan, load_uneven(work.source), work)[2]["channels"].tolist())
    assert found[0] == found[1] != found[2]


# ---------------------------------------------------------------- what is said and refused
def test_the_cost_of_uniform_widths_is_told(checkpoint: Make, tmp_path: Path) -> None:
    work = prune(checkpoint("llama"), tmp_path / "out")
    told = work.facts["calibration_perplexity"]
    source = Source(checkpoint("llama"))
    assert told["before"] == round(perplexity(load_uneven(source), rows()), 4)
    assert told["after"] == round(perplexity(load_uneven(Source(tmp_path / "out")), rows()), 4)
    lines = " ".join(work.screen.lines)  # type: ignore[attr-defined]
    assert f"{told['sparing_first_and_last_blocks']:.2f}" in lines
    assert "blocks [0, 3] whole" in lines


def test_the_perplexity_told_for_sparing_blocks_is_that_of_a_per_layer_result(checkpoint: Make, tmp_path: Path) -> None:
    """l1 scores do not depend on what else is zero, so that both choose the same."""
    folder = checkpoint("opt")
    uniform = prune(folder, tmp_path / "a", importance="l1").facts["calibration_perplexity"]
    per_layer = prune(folder, tmp_path / "b", importance="l1", widths="per_layer").facts["calibration_perplexity"]
    assert uniform["sparing_first_and_last_blocks"] == per_layer["after"]


def test_heads_stay_where_their_size_follows_from_their_number(checkpoint: Make, tmp_path: Path) -> None:
    folder = checkpoint("qwen2")
    work = prune(folder, tmp_path / "out")
    assert any("attention stays whole: engines take a head of qwen2" in line for line in work.screen.lines)  # type: ignore[attr-defined]
    with pytest.raises(BadRecipeError, match="leave it out"):
        prune(folder, tmp_path / "out", heads=0.25)


def test_a_share_of_too_few_groups_is_told(checkpoint: Make, tmp_path: Path) -> None:
    work = prune(checkpoint("mistral"), tmp_path / "out")
    assert any("0.25 of 2 KV groups is less than one" in line for line in work.screen.lines)  # type: ignore[attr-defined]


def test_what_cannot_be_done_is_refused_before_anything_is_loaded(
    checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint("mistral")
    with pytest.raises(BadRecipeError, match="nothing would be removed"):
        prune(folder, tmp_path / "out", ratio=0.25, multiple_of=128)
    with pytest.raises(BadRecipeError, match="none is left to prune"):
        prune(folder, tmp_path / "out", widths="per_layer", spare_first=3, spare_last=1)
    prune(folder, tmp_path / "out", widths="per_layer")
    with pytest.raises(BadCheckpointError, match="prune the checkpoint it was made of"):
        Plan(PrunerParams(), Source(tmp_path / "out").config, family_of({"model_type": "mistral"}))


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(checkpoint: Make, tmp_path: Path) -> None:
    work = work_on(checkpoint("llama"), tmp_path / "out")
    work.source.entries["model.embed_tokens.weight"] = Entry(tmp_path / "none", "BF16", (10**9, 10**6))
    with pytest.raises(CompressorError, match=r"whole model in memory, with gradients: about 4,\d+,\d+.\d GB"):
        LLMPruner(PrunerParams()).run(work)


def test_the_memory_that_is_asked_for_counts_the_gradients() -> None:
    source = Source(STARTER)
    assert memory.needed_bytes(source, [], 0) == 4 * 2_886_400
    assert memory.needed_bytes(source, ["model.layers.0.mlp.up_proj.weight"], 2) == 4 * (2_886_400 + 2 * 512 * 256)
    assert memory.available_bytes(torch.device("cpu")) > 10**8  # type: ignore[operator]


def test_an_uneven_config_without_its_lists_is_refused() -> None:
    config = SMALL | MODELS["qwen3"] | {"model_type": "uneven_qwen3", "intermediate_size_per_layer": [48] * 3}
    with pytest.raises(BadCheckpointError, match="no list num_attention_heads_per_layer of 4 numbers"):
        build_uneven(config)


def test_narrowing_leaves_what_is_shared_alone() -> None:
    config = SMALL | MODELS["qwen3"]
    structures = Geometry.of(config).structures(family_of(config))
    tensors = {"self_attn.q_norm.weight": torch.rand(16), "self_attn.k_proj.weight": torch.rand(64, 32)}
    left = narrow(tensors, [(structures["heads"], torch.tensor([1]))])
    assert torch.equal(left["self_attn.q_norm.weight"], tensors["self_attn.q_norm.weight"])
    kept = [*range(16), *range(32, 64)]
    assert torch.equal(left["self_attn.k_proj.weight"], tensors["self_attn.k_proj.weight"][kept])
