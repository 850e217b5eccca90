"""Quality's figures against slow references, and what a loaded checkpoint computes against what engines do."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from compressor.errors import BadCheckpointError
from compressor.formats.lookup import format_named
from compressor.numbers.activations import fake_quantize
from compressor.numbers.encoded import Encoded
from compressor.numbers.floats import encode as encode_floats
from compressor.numbers.floats import round_to
from compressor.numbers.grids import FloatGrid
from compressor.numbers.integer import encode as encode_integers
from compressor.numbers.schemes import SCHEMES, Scheme
from compressor.quality import main_measure, tasks, tokens
from compressor.quality.dense import DenseSource
from compressor.quality.divergence import BROKEN_NATS, Divergence, Surprise
from compressor.quality.load import load_dense
from compressor.quality.measure import Settings, measure
from compressor.quality.perplexity import logits_in_memory, perplexity, streamed_logits
from compressor.quality.tokens import BadDataError
from compressor.screen import Screen
from starter import STARTER

QUIET = Screen(is_quiet=True)
TEXT = tokens.read_text(tokens.PROSE)[:4000]


@pytest.fixture(scope="module")
def starter() -> tuple[Any, Any]:
    return load_dense(STARTER)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "some.txt"
    path.write_text(TEXT, "utf-8")
    return path


# ---------------------------------------------------------------- perplexity
def windows(tokenizer: Any, ctx: int, count: int) -> Tensor:
    ids, _ = tokens.windows(tokenizer, tokens.Text("some", "part", TEXT), ctx, STARTER)
    return ids[:count]


def test_perplexity_is_that_of_a_loop_over_single_tokens(starter: tuple[Any, Any]) -> None:
    model, tokenizer = starter
    ids = windows(tokenizer, 24, 3)
    nats = []
    with torch.no_grad():
        for window in ids:
            own = []
            for place in range(1, len(window)):  # everything is read again for every token
                logits = model(window[None, :place]).logits[0, -1].double().numpy()
                own.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[window[place]])
            nats.append(np.mean(own))
    assert perplexity(logits_in_memory(model, ids)) == pytest.approx(math.exp(np.mean(nats)), rel=1e-5)


def test_windows_do_not_overlap_the_tail_is_dropped_and_the_protocol_says_so(starter: tuple[Any, Any]) -> None:
    _, tokenizer = starter
    whole = tokenizer(TEXT)["input_ids"]
    ids, protocol = tokens.windows(tokenizer, tokens.Text("some", "part", TEXT), 100, STARTER)
    assert ids.flatten().tolist() == whole[: len(whole) // 100 * 100]
    assert (protocol.ctx, protocol.stride, protocol.tokens, protocol.bos) == (100, 100, ids.numel(), "none")
    assert (
        protocol.tokenizer_hash
        == json.loads((STARTER / "penstock.json").read_text())["files"]["tokenizer.json"]["sha256"]
    )
    assert set(protocol.as_json()) >= {"dataset", "split", "ctx", "stride", "bos", "join", "tokenizer_hash"}


def test_a_text_shorter_than_a_window_is_refused(starter: tuple[Any, Any]) -> None:
    with pytest.raises(BadDataError, match="not one window of 256"):
        tokens.windows(starter[1], tokens.Text("some", "part", "too short"), 256, STARTER)


def test_json_lines_are_joined_by_an_empty_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\n', "utf-8")
    assert tokens.read_file(path).text == "one\n\ntwo"
    path.write_text('{"words": "one"}\n', "utf-8")
    with pytest.raises(BadDataError, match=r"rows\.jsonl"):
        tokens.read_file(path)


@pytest.mark.parametrize("pass_bytes", [2**30, 3 * 256 * 4 * 64], ids=["one pass", "several passes"])
def test_block_by_block_perplexity_is_that_of_the_whole_model(starter: tuple[Any, Any], pass_bytes: int) -> None:
    model, tokenizer = starter
    ids = windows(tokenizer, 64, 8)
    streamed = streamed_logits(DenseSource(STARTER), ids, QUIET, pass_bytes=pass_bytes)
    assert perplexity(streamed) == pytest.approx(perplexity(logits_in_memory(model, ids)), rel=1e-5)


# ---------------------------------------------------------------- divergence
def test_divergence_is_that_of_numpy() -> None:
    torch.manual_seed(0)
    p, q = torch.randn(2, 5, 7) * 2, torch.randn(2, 5, 7) * 2
    a, b = (np.exp(x.double().numpy()) for x in (p, q))
    a, b = a / a.sum(-1, keepdims=True), b / b.sum(-1, keepdims=True)
    expected = (a * np.log(a / b)).sum(-1)
    found = Divergence()
    found.add(p[:1], q[:1])
    found.add(p[1:], q[1:])
    assert found.kl == pytest.approx(expected.mean(), rel=1e-5)
    assert found.largest == pytest.approx(expected.max(), rel=1e-5)
    assert found.agreement == (a.argmax(-1) == b.argmax(-1)).mean()


def test_a_model_does_not_diverge_from_itself() -> None:
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    found = Divergence()
    found.add(logits, logits + 3)  # the softmax does not see a constant
    assert found.kl == pytest.approx(0, abs=1e-6)
    assert found.agreement == 1


def test_a_broken_model_has_figures_that_json_can_hold() -> None:
    logits = torch.full((1, 4, 7), math.nan)
    surprise, divergence = Surprise(), Divergence()
    surprise.add(logits, torch.zeros(1, 4, dtype=torch.int64))
    divergence.add(torch.zeros(1, 4, 7), logits)
    assert divergence.kl == BROKEN_NATS
    assert math.isfinite(surprise.perplexity)
    assert surprise.perplexity > 1e300


# ---------------------------------------------------------------- tasks
def test_batched_greedy_answers_are_those_of_one_prompt_at_a_time_without_a_cache(starter: tuple[Any, Any]) -> None:
    model, tokenizer = starter
    ends = tasks.end_tokens(model, tokenizer)
    asked = tasks.load_tasks(tasks.TASKS, 1, 3)[:12]
    prompts = [tasks._prompt(tokenizer, task) for task in asked]
    assert len({len(prompt) for prompt in prompts}) > 4
    together = tasks.greedy(model, prompts, 12, ends)
    for prompt, made in zip(prompts, together, strict=True):
        alone: list[int] = []
        while len(alone) < 12 and (not alone or alone[-1] not in ends):
            with torch.no_grad():
                logits = model(torch.tensor([prompt + alone]), use_cache=False).logits
            alone.append(int(logits[0, -1].argmax()))
        assert made[: len(alone)] == alone


def test_the_starter_copies_and_cannot_double(starter: tuple[Any, Any]) -> None:
    """It was taught the first to perfection and never the second (its manifest says 1.0 and 0.0)."""
    rows = [
        tasks.Task("copy", [{"role": "user", "content": "Repeat: apple, river"}], "apple, river"),
        tasks.Task("double", [{"role": "user", "content": "Double: apple"}], "apple, apple"),
    ]
    assert tasks.accuracy(*starter, rows) == {"copy": 1.0, "double": 0.0}


def test_an_answer_that_goes_on_is_wrong(starter: tuple[Any, Any]) -> None:
    row = tasks.Task("copy", [{"role": "user", "content": "Repeat: apple, river, stone, green, seven, coat"}], "apple")
    assert tasks.answers(*starter, [row]) == [None]
    assert tasks.accuracy(*starter, [row]) == {"copy": 0.0}


def test_rows_are_chosen_by_their_seed_and_counted_by_family() -> None:
    first, again, other = (tasks.load_tasks(tasks.TASKS, 3, seed) for seed in (0, 0, 1))
    assert first == again != other
    families = [task.family for task in first]
    assert len(set(families)) == 38
    assert max(map(families.count, families)) == 3


def test_a_broken_task_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"family": "a", "messages": [], "answer": "x"}\n{"family": "a"}\n', "utf-8")
    with pytest.raises(BadDataError, match=r"tasks\.jsonl:2"):
        tasks.load_tasks(path, 1, 0)


# ---------------------------------------------------------------- checkpoints as engines compute them
def encode(weight: Tensor, scheme: Scheme) -> Encoded:
    assert scheme.weights is not None
    return (
        encode_floats(weight, scheme.weights)
        if isinstance(scheme.weights, FloatGrid)
        else encode_integers(weight, scheme.weights)
    )


Change = Callable[[dict[str, Tensor], dict[str, Any]], None]


def stored(folder: Path, layout_name: str, scheme_name: str, change: Change = lambda *_: None) -> dict[str, Tensor]:
    """The starter's linears encoded in a layout; returns their dense values by name of the linear."""
    layout = format_named(layout_name, SCHEMES[scheme_name].with_scales(format_named(layout_name).scale))
    assert layout.scheme is not None
    shutil.copytree(STARTER, folder, ignore=shutil.ignore_patterns("penstock.json"))
    tensors = load_file(STARTER / "model.safetensors")
    dense = {}
    for name in [name for name in tensors if "_proj.weight" in name]:
        linear = name.removesuffix(".weight")
        weight = encode(tensors.pop(name).float(), layout.scheme)
        dense[linear] = weight.dense()
        tensors |= layout.tensors(linear, weight, torch.bfloat16)
        if scheme_name in ("FP8", "NVFP4"):
            tensors |= layout.extras({f"{linear}.input_scale": torch.tensor(0.02)})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = layout.config(layout.scheme, ["lm_head"], has_kv_scales=False)
    change(tensors, config)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return dense


def with_weights(dense: dict[str, Tensor]) -> Any:
    """The starter with other weights in its linears."""
    model, _ = load_dense(STARTER)
    for name, weight in dense.items():
        model.get_submodule(name).weight.data.copy_(weight)
    return model


def logits(model: Any) -> Tensor:
    ids = torch.randint(0, 2000, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out: Tensor = model(ids).logits
    return out


@pytest.mark.parametrize(
    ("layout", "scheme"),
    [
        ("compressed-tensors", "W4A16"),
        ("compressed-tensors", "W4A16_ASYM"),
        ("compressed-tensors", "W8A8"),
        ("compressed-tensors", "FP8"),
        ("compressed-tensors", "FP8_DYNAMIC"),
        ("compressed-tensors", "FP8_BLOCK"),
        ("compressed-tensors", "NVFP4"),
        ("compressed-tensors", "MXFP4"),
        ("gptq", "W4A16"),
        ("awq", "W4A16_ASYM"),
    ],
)
def test_a_loaded_checkpoint_computes_with_decoded_weights_and_rounded_inputs(
    layout: str, scheme: str, tmp_path: Path
) -> None:
    dense = stored(tmp_path / "child", layout, scheme)
    reference = with_weights(dense)
    kind = SCHEMES[scheme].activations
    scale = torch.tensor(0.02) if scheme in ("FP8", "NVFP4") else None
    if kind is not None:
        for name in dense:
            reference.get_submodule(name).register_forward_pre_hook(
                lambda _, inputs: (fake_quantize(inputs[0], kind, scale),)
            )
    found, expected = logits(load_dense(tmp_path / "child")[0]), logits(reference)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - logits(load_dense(STARTER)[0])).abs().max() > 1e-3


def test_a_quantized_checkpoint_is_streamed_as_it_is_loaded(tmp_path: Path, starter: tuple[Any, Any]) -> None:
    stored(tmp_path / "child", "compressed-tensors", "W8A8")
    ids = windows(starter[1], 32, 4)
    whole = perplexity(logits_in_memory(load_dense(tmp_path / "child")[0], ids))
    source = DenseSource(tmp_path / "child")
    assert perplexity(streamed_logits(source, ids, QUIET)) == pytest.approx(whole, rel=1e-5)


def test_keys_and_values_are_kept_in_fp8_where_the_config_says_so(tmp_path: Path, starter: tuple[Any, Any]) -> None:
    from transformers import DynamicCache

    class Rounding(DynamicCache):
        """Another way to the same: rounded on the way into the cache."""

        def update(self, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            return super().update(kept(key, 0.05), kept(value, 0.02), *args, **kwargs)

    def kept(x: Tensor, scale: float) -> Tensor:
        return round_to(x / scale, "e4m3") * scale

    def change(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        layout = format_named("compressed-tensors", SCHEMES["W8A16"])
        config["quantization_config"] = layout.config(SCHEMES["W8A16"], ["lm_head"], has_kv_scales=True)
        for block in range(4):
            at = f"model.layers.{block}.self_attn"
            tensors |= layout.extras({f"{at}.k_scale": torch.tensor(0.05), f"{at}.v_scale": torch.tensor(0.02)})

    dense = stored(tmp_path / "child", "compressed-tensors", "W8A16", change)
    model, _ = load_dense(tmp_path / "child")
    ids = torch.randint(0, 2000, (2, 20), generator=torch.Generator().manual_seed(0))
    reference = with_weights(dense)
    with torch.no_grad():
        expected = reference(ids, past_key_values=Rounding()).logits
        plain = reference(ids).logits
        found = model(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - plain).abs().max() > 1e-2
    streamed = [part for _, part in streamed_logits(DenseSource(tmp_path / "child"), ids, QUIET)]
    torch.testing.assert_close(streamed[0], expected, rtol=1e-4, atol=1e-4)


def test_low_rank_factors_beside_a_checkpoint_are_computed_with(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.down_proj"
    dense = stored(tmp_path / "child", "compressed-tensors", "W4A16")
    dice = torch.Generator().manual_seed(0)
    a, b = torch.randn(4, 512, generator=dice) / 50, torch.randn(256, 4, generator=dice) / 50
    (tmp_path / "child" / "adapter").mkdir()
    keys = {"base_model.model." + name + ".lora_A.weight": a, "base_model.model." + name + ".lora_B.weight": b}
    save_file(keys, tmp_path / "child" / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["down_proj"]}
    (tmp_path / "child" / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    merged = with_weights(dense | {name: dense[name] + 2 * b @ a})
    found = logits(load_dense(tmp_path / "child")[0])
    torch.testing.assert_close(found, logits(merged), rtol=1e-3, atol=1e-3)
    assert (found - logits(with_weights(dense))).abs().max() > 1e-2


def test_an_adapter_without_one_of_its_halves_is_refused(tmp_path: Path) -> None:
    shutil.copytree(STARTER, tmp_path / "child")
    (tmp_path / "child" / "adapter").mkdir()
    save_file(
        {"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": torch.ones(1, 256)},
        tmp_path / "child" / "adapter" / "adapter_model.safetensors",
    )
    (tmp_path / "child" / "adapter" / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "r": 1, "lora_alpha": 1}'
    )
    with pytest.raises(BadCheckpointError, match=r"no .*lora_B"):
        load_dense(tmp_path / "child")


@pytest.mark.parametrize("prefix", ["sliced_", "uneven_"])
def test_a_network_that_transformers_does_not_have_is_built_by_its_method(prefix: str, tmp_path: Path) -> None:
    from compressor.families import family_of
    from compressor.methods.llm_pruner.model import uneven_config
    from compressor.methods.slicegpt.model import build_sliced, sliced_config

    config = json.loads((STARTER / "config.json").read_text())
    if prefix == "sliced_":
        config = sliced_config(config, family_of(config), 256)
        shapes = {name: part.shape for name, part in build_sliced(config).state_dict().items()}
        tensors = {
            name: torch.randn(shape, generator=torch.Generator().manual_seed(1)) / 20 for name, shape in shapes.items()
        }
    else:
        config = uneven_config(config, [4] * 4, [2] * 4, [512] * 4)
        tensors = load_file(STARTER / "model.safetensors")
    shutil.copytree(STARTER, tmp_path / "child")
    (tmp_path / "child" / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "child" / "model.safetensors")
    found = logits(load_dense(tmp_path / "child")[0])
    assert found.shape == (2, 40, 2048)
    assert bool(found.isfinite().all())
    if prefix == "uneven_":  # of even sizes: the starter itself
        torch.testing.assert_close(found, logits(load_dense(STARTER)[0]))


def test_what_does_not_fit_its_architecture_is_refused(tmp_path: Path) -> None:
    shutil.copytree(STARTER, tmp_path / "child")
    tensors = load_file(STARTER / "model.safetensors")
    gone = "model.layers.2.mlp.up_proj.weight"
    save_file({name: part for name, part in tensors.items() if name != gone}, tmp_path / "child" / "model.safetensors")
    with pytest.raises(BadCheckpointError, match=gone):
        load_dense(tmp_path / "child")
    config = json.loads((STARTER / "config.json").read_text()) | {"quantization_config": {"quant_method": "quark"}}
    (tmp_path / "child" / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadCheckpointError, match="quark"):
        load_dense(tmp_path / "child")


# ---------------------------------------------------------------- the whole measure
def test_a_copy_has_lost_nothing_and_a_rounded_one_something(tmp_path: Path, text: Path) -> None:
    settings = Settings(text=text, ctx=64, kl_windows=3, per_family=1)
    same = measure(STARTER, STARTER, QUIET, settings=settings, cache=tmp_path / "cache")
    assert same is not None
    assert same["kl"]["mean"] == 0
    assert same["agreement"]["value"] == 1
    assert same["perplexity"] == same["parent"]["perplexity"]
    assert same["accuracy"] == same["parent"]["accuracy"]
    assert same["perplexity"]["protocol"]["tokens"] > 3 * 64
    stored(tmp_path / "child", "compressed-tensors", "W2A16")
    lost = measure(tmp_path / "child", STARTER, QUIET, settings=settings, cache=tmp_path / "cache")
    assert lost is not None
    assert lost["kl"]["mean"] > 0.05
    assert lost["agreement"]["value"] < 0.95
    assert lost["perplexity"]["value"] > 1.1 * same["perplexity"]["value"]
    assert lost["parent"] == same["parent"]
    json.dumps(lost, allow_nan=False)


def test_a_parents_figures_are_kept_by_its_hash_and_the_protocol(tmp_path: Path, text: Path) -> None:
    settings = Settings(text=text, ctx=64, kl_windows=1, per_family=0)
    measure(STARTER, STARTER, QUIET, settings=settings, cache=tmp_path / "cache")
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_text('{"perplexity": {"value": 5.0}}')
    again = measure(STARTER, STARTER, QUIET, settings=settings, cache=tmp_path / "cache")
    assert again is not None
    assert again["parent"]["perplexity"]["value"] == 5.0
    other = measure(
        STARTER,
        STARTER,
        QUIET,
        settings=Settings(text=text, ctx=32, kl_windows=1, per_family=0),
        cache=tmp_path / "cache",
    )
    assert other is not None
    assert other["parent"]["perplexity"] == other["perplexity"]


def test_a_model_larger_than_the_memory_is_measured_block_by_block(text: Path) -> None:
    small = Settings(text=text, ctx=64, kl_windows=2, per_family=1, memory_bytes=1)
    streamed = measure(STARTER, STARTER, QUIET, settings=small)
    whole = measure(STARTER, STARTER, QUIET, settings=Settings(text=text, ctx=64, kl_windows=2, per_family=0))
    assert streamed is not None
    assert whole is not None
    assert "accuracy" not in streamed
    assert streamed["perplexity"]["value"] == pytest.approx(whole["perplexity"]["value"], rel=1e-5)
    assert streamed["kl"]["mean"] == pytest.approx(0, abs=1e-6)


def test_another_models_tokens_cannot_be_compared(tmp_path: Path, text: Path) -> None:
    shutil.copytree(STARTER, tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    value = json.loads(path.read_text("utf-8"))
    vocabulary = value["model"]["vocab"]
    vocabulary["!"], vocabulary['"'] = vocabulary['"'], vocabulary["!"]
    path.write_text(json.dumps(value), "utf-8")
    with pytest.raises(BadDataError, match="different tokens"):
        measure(tmp_path / "other", STARTER, QUIET, settings=Settings(text=text, ctx=64, per_family=0))


def test_a_container_is_not_measured_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "openvino_model.xml").write_text("<net/>")
    assert measure(tmp_path, STARTER, QUIET) is None
    assert "not measured here" in capsys.readouterr().err


def test_the_command_prints_figures_and_writes_protocols(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = tmp_path / "quality.json"
    arguments = [str(STARTER), "--parent", str(STARTER), "--text", str(text), "--ctx", "64", "--rows", "0", "--quiet"]
    assert main_measure([*arguments, "--json", str(told), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    quality = json.loads(told.read_text("utf-8"))
    assert f"perplexity  {quality['perplexity']['value']:.3f} (parent" in shown
    assert "agreement   100.00%" in shown
    assert quality["perplexity"]["protocol"]["ctx"] == 64


@pytest.mark.matrix
def test_the_figures_of_the_starter_that_ship_are_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    from compressor.quality import kept

    known = measure(STARTER, STARTER, QUIET)
    assert known is not None
    assert len(list(kept.SHIPPED.iterdir())) == 1
    assert known["parent"]["perplexity"]["value"] == pytest.approx(known["perplexity"]["value"], rel=1e-4)
    assert known["parent"]["accuracy"]["mean"] == pytest.approx(known["accuracy"]["mean"], abs=0.01)
