"""The same recipes through llm-compressor: a second implementation to hold ours against (`--through llmcompressor`).

Each step is translated into the library's modifiers; what it has no word for is refused, never dropped. Its output is
brought to the shape of ours: the parent's config.json with the quantization added, the parent's tokenizer files (the
library rewrites both in spellings that engines of today refuse). Unlike our own path it holds the whole model in
memory and cannot go on after an interruption.
"""

import io
import logging
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from compressor.checkpoint.sink import write_json
from compressor.checkpoint.source import Source
from compressor.errors import BadRecipeError, CompressorError
from compressor.families import family_of
from compressor.formats import vocabulary
from compressor.formats.lookup import format_of
from compressor.methods.base import Method
from compressor.numbers.schemes import Scheme
from compressor.passes import Rows
from compressor.recipe import Recipe
from compressor.screen import Screen

# Parameters that are carried by the scheme, or by how much is to become zero.
_OF_A_SCHEME = frozenset({"scheme", "bits", "group_size", "symmetric"})
_OF_PRUNING = frozenset({"sparsity", "pattern"})
_NO_WORD = "through llmcompressor"


@dataclass(frozen=True, slots=True)
class Translation:
    """`modifier`: the library's class; `words`: our parameters by its names; `shared`: those said in another way;
    `same`: parameters it does not have, with the value that says what it does anyway."""

    modifier: str
    words: Mapping[str, str] = field(default_factory=dict)
    shared: frozenset[str] = frozenset()
    same: Mapping[str, Any] = field(default_factory=dict)


_VALUES = {"none": None, "yes": True, "no": False}
_SOLVER = {"damp": "dampening_frac", "block_size": "block_size"}
TRANSLATIONS = {
    "rtn": Translation("QuantizationModifier", shared=_OF_A_SCHEME, same={"shrink": False}),
    "fp8": Translation("QuantizationModifier", shared=_OF_A_SCHEME),
    "nvfp4": Translation("QuantizationModifier", shared=_OF_A_SCHEME),
    "mxfp4": Translation("QuantizationModifier", shared=_OF_A_SCHEME),
    "gptq": Translation(
        "GPTQModifier",
        {**_SOLVER, "act_order": "actorder"},
        _OF_A_SCHEME,
        {"shrink": False, "true_sequential": False, "keep_zeros": None},
    ),
    "awq": Translation("AWQModifier", {"steps": "n_grid", "duo_scaling": "duo_scaling"}, _OF_A_SCHEME, {"clip": False}),
    "smoothquant": Translation(
        "SmoothQuantModifier", {"strength": "smoothing_strength"}, same={"through_linears": False}
    ),
    "sparsegpt": Translation("SparseGPTModifier", _SOLVER, _OF_PRUNING),
    "wanda": Translation("WandaPruningModifier", shared=_OF_PRUNING),
    "kv-cache": Translation("QuantizationModifier"),
}


def run(
    source: Source,
    recipe: Recipe,
    methods: Sequence[Method],
    rows: Sequence[Rows],
    folder: Path,
    screen: Screen,
) -> Path:
    """Do the steps and leave config.json, tensors and facts.json in `folder`. Raises CompressorError."""
    if (folder / "config.json").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    modifiers = translate(recipe, methods, family_of(source.config).blocks)
    screen.say(f"llm-compressor at work: {', '.join(type(modifier).__name__ for modifier in modifiers)}")
    raw = folder.with_name(f"{folder.name}-raw")
    with _quiet():
        _oneshot(source.folder, modifiers, rows, raw)
    _normalise(source, raw, folder)
    return folder


def translate(recipe: Recipe, methods: Sequence[Method], blocks: str = "model.layers") -> list[Any]:
    """The library's modifiers for our steps; `blocks`: where the architecture has them. Raises BadRecipeError for what
    it has no word for."""
    if recipe.export.format in ("gptq", "awq", "modelopt"):
        raise BadRecipeError(
            f"{recipe.name}: {_NO_WORD} checkpoints are written as compressed-tensors, not {recipe.export.format}"
        )
    common: dict[str, Any] = {"ignore": list(recipe.ignore)}
    cache = _cache() if any(method.name == "kv-cache" for method in methods) else {}
    made: list[Any] = []
    for number, (step, method) in enumerate(zip(recipe.steps, methods, strict=True)):
        known, words = _words(method.name, step.params, f"{recipe.name}: steps.{number}")
        if method.name == "kv-cache":
            continue
        if known.shared is _OF_PRUNING:
            # Not "Linear": its pruning then calls the head "lm_head." with a dot, and prunes it, ignored or not.
            words |= common | _sparsity(method, step.params) | {"targets": [rf"re:{re.escape(blocks)}\.\d+$"]}
        elif known.modifier in ("QuantizationModifier", "GPTQModifier"):
            words |= common | cache | {"config_groups": {"group_0": _scheme(method)}}
            cache = {}
        made.append(_class(known.modifier)(**words))
    return [*made, _class("QuantizationModifier")(**common, **cache)] if cache else made


def _words(name: str, params: Mapping[str, Any], where: str) -> tuple[Translation, dict[str, Any]]:
    known = TRANSLATIONS.get(name)
    if known is None:
        raise BadRecipeError(f"{where}.method: {name} is ours only; {_NO_WORD} go {', '.join(TRANSLATIONS)}")
    for unknown in params.keys() - known.words.keys() - known.shared:
        if params[unknown] != known.same.get(unknown, ...):
            raise BadRecipeError(
                f"{where}.params.{unknown}: llm-compressor cannot do that: leave it out or use our own"
            )
    said = {theirs: params[ours] for ours, theirs in known.words.items() if ours in params}
    return known, {theirs: _VALUES.get(str(value), value) for theirs, value in said.items()}


def _scheme(method: Method) -> Any:
    scheme: Scheme | None = getattr(method, "scheme", None)
    assert scheme is not None
    return vocabulary.to_library(scheme)


def _sparsity(method: Method, params: Mapping[str, Any]) -> dict[str, Any]:
    checked: Any = method.Params.model_validate(params)
    return {"sparsity": checked.goal.share} | ({} if checked.pattern is None else {"mask_structure": checked.pattern})


def _cache() -> dict[str, Any]:
    """The KV cache's scales belong to the first modifier that rounds, or to one of their own."""
    from compressed_tensors.quantization import QuantizationArgs

    return {"kv_cache_scheme": QuantizationArgs(**vocabulary.KV_CACHE)}


def _class(name: str) -> Callable[..., Any]:
    """Raises CompressorError when the library is not installed."""
    try:
        with redirect_stdout(io.StringIO()):  # it logs to the stdout of the moment it is imported
            import llmcompressor
            from llmcompressor.modifiers import gptq, pruning, quantization, transform
    except ModuleNotFoundError as error:
        raise CompressorError(
            f"--through llmcompressor needs {error.name}: pip install 'penstock[llm-compressor]' into this environment"
        ) from error
    llmcompressor.logger.remove()
    if name == "AWQModifier" and not torch.accelerator.is_available():
        return _unpinned_awq()
    found: Callable[..., Any]
    found = next(getattr(home, name) for home in (quantization, gptq, transform, pruning) if hasattr(home, name))
    return found


def _unpinned_awq() -> Callable[..., Any]:
    """Its AWQ pins what it has cached, for copies to an accelerator; without one, torch refuses to pin anything."""
    from llmcompressor.modifiers.transform import AWQModifier
    from llmcompressor.pipelines.cache import IntermediatesCache

    class Unpinned(IntermediatesCache):
        def pin_memory(self, batch_index: int, input_names: list[str] | None = None) -> None:
            del batch_index, input_names

    class AWQOnCpu(AWQModifier):
        def _setup_activation_cache_hooks(self) -> None:
            super()._setup_activation_cache_hooks()
            for parent in self._parent_args_cache:
                self._parent_args_cache[parent] = Unpinned(None, self.offload_device)

    return AWQOnCpu


@contextmanager
def _quiet() -> Any:
    """Its logs and bars are not ours to show; what it fails with is."""
    logging.disable(logging.WARNING)
    nowhere = io.StringIO()
    try:
        with redirect_stderr(nowhere), redirect_stdout(nowhere):
            yield
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
        raise CompressorError(f"llm-compressor failed: {type(error).__name__}: {error}") from error
    finally:
        logging.disable(logging.NOTSET)


def _oneshot(parent: Path, modifiers: list[Any], rows: Sequence[Rows], out: Path) -> None:
    import warnings

    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(parent, dtype="auto")
    batches = [
        {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}
        for part in rows
        for ids_BT in part.ids_BT.split(1)
    ]
    data = {"dataset": DataLoader(batches, batch_size=None), "pipeline": "sequential"} if batches else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oneshot(model=model, recipe=modifiers, **data)
        model.save_pretrained(out, save_compressed=True)


def _normalise(source: Source, raw: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    made = Source(raw)
    for path in (*raw.glob("*.safetensors"), *raw.glob("*.safetensors.index.json")):
        path.chmod(0o644)
        path.rename(folder / path.name)
    config = dict(source.config)
    if "quantization_config" in made.config:
        config["quantization_config"] = made.config["quantization_config"]
    write_json(folder / "facts.json", {"layers": _facts(folder, config), "facts": {}})
    write_json(folder / "config.json", config)
    shutil.rmtree(raw)


def _facts(folder: Path, config: dict[str, Any]) -> dict[str, dict[str, int]]:
    """What the manifest counts of each linear, read back from the files."""
    write_json(folder / "config.json", config)
    made = Source(folder)
    (folder / "config.json").unlink()  # it says that this stage is done
    layout, family = format_of(config), family_of(config)
    facts = {}
    for index in range(int(config["num_hidden_layers"])):
        for linear in family.linears:
            name = f"{family.block(index)}.{linear}"
            is_dense = set(made.names(name)) <= {f"{name}.weight", f"{name}.bias"}
            facts[name] = _dense(made, name) if layout is None or is_dense else _encoded(layout, made, name)
    return facts


def _dense(made: Source, name: str) -> dict[str, int]:
    weight = made.read(f"{name}.weight")
    return {"weights": weight.numel(), "zeros": weight.numel() - int(torch.count_nonzero(weight))}


def _encoded(layout: Any, made: Source, name: str) -> dict[str, int]:
    weight = layout.read(made, name)
    dense = weight.dense()
    zeros = dense.numel() - int(torch.count_nonzero(dense))
    return {"weights": dense.numel(), "zeros": zeros, "size_bits": weight.size_bits()}
