"""The life of a compression, on one page: check, change, lay out, measure, publish.

1. `plan` finds everything that can be known before the work: the recipe's faults, an architecture or layout that does
   not fit, an engine that could not serve the result, too little room.
2. Stages run in order, each from one folder to the next: block methods together, block by block (blockwise.py);
   whole-model methods alone. A stage that is done is not done again.
3. The last stage's folder gets the tokenizer, or is turned into a container (GGUF, OpenVINO).
4. What it lost is measured against the parent; manifest and card are written last; one rename publishes it.
"""

import json
import resource
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from compressor.blockwise import BlockPass
from compressor.calibration import SHIPPED, Used, load_rows, load_tokenizer
from compressor.checkpoint import manifest, publish
from compressor.checkpoint.disk import need_room
from compressor.checkpoint.sink import Sink, write_json
from compressor.checkpoint.source import Source
from compressor.errors import BadCheckpointError, BadRecipeError, CannotServeError
from compressor.export import exporter_named
from compressor.families import family_of
from compressor.formats.base import Format
from compressor.formats.lookup import format_named
from compressor.gate import judge
from compressor.methods import registry
from compressor.methods.base import BlockMethod, Method, ModelMethod
from compressor.numbers.schemes import Scheme
from compressor.passes import ModelPass, Rows
from compressor.recipe import Recipe
from compressor.screen import Screen
from compressor.serving_table import who_can_serve, why_not
from compressor.skeleton import Skeleton

CONTAINERS = ("gguf", "openvino")
# Files that belong to a model and not to its weights; they go along as they are.
BESIDE = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


@dataclass(frozen=True, slots=True)
class Job:
    """What was asked. `engine`: refuse beforehand what it cannot serve. `device`: "cpu", "cuda", ...

    `dtype`: of the blocks while data runs through them; solvers work in float32 whatever it is. `cache`: where a
    parent's own figures are kept for its next child.
    """

    model: Path
    recipe: Recipe
    out: Path
    engine: str | None = None
    through: str = "own"
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    with_quality: bool = True
    is_forced: bool = False
    cache: Path | None = None

    def identity(self) -> dict[str, Any]:
        """What must be equal for an interrupted run to be taken up: not whether quality is measured at the end.

        Of the calibration file what is in it, not only its name.
        """
        rows = self.recipe.calibration.file or SHIPPED
        return {
            "rows": manifest.sha256(rows) if rows.is_file() else None,
            "parent": manifest.parent_of(self.model),
            "recipe": self.recipe.model_dump(mode="json"),
            "through": self.through,
            "device": self.device,
            "dtype": str(self.dtype),
            "penstock": version("penstock"),
        }


@dataclass(slots=True)
class Plan:
    """A job that can be done. `scheme`: of the last step that encodes weights, else the dtype they stay in."""

    job: Job
    source: Source
    methods: list[Method]
    scheme: str
    structure: str | None
    served_by: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)
    layers: dict[str, dict[str, Any]] = field(default_factory=dict)
    used: Used | None = None

    @property
    def layout(self) -> str:
        """The format of the last stage's tensors: a container is made of a dense checkpoint."""
        wanted = self.job.recipe.export.format
        is_plain = wanted in CONTAINERS or all(getattr(method, "scheme", None) is None for method in self.methods)
        return "dense" if is_plain else wanted


def plan(job: Job) -> Plan:
    """Everything that can fail before the work does so here. Raises CompressorError."""
    recipe = job.recipe
    if recipe.model is not None and recipe.model != job.model.name:
        raise BadRecipeError(f"recipe {recipe.name} was written for {recipe.model}, not for {job.model.name}")
    source = Source(job.model)
    if (found := source.config.get("quantization_config")) is not None:
        named = found.get("quant_method") if isinstance(found, dict) else found
        raise BadCheckpointError(f"{job.model} is quantized already ({named}): give the checkpoint it was made of")
    family_of(source.config)
    methods = registry.build(recipe.steps, recipe.name)
    structure = next((found for method in methods if (found := getattr(method, "structure", None))), None)
    schemes = _schemes(methods)
    scheme = schemes[-1].name if schemes else _plain_scheme(source)
    if (exporter := exporter_named(recipe.export.format)) is not None:
        exporter.check(source.config, recipe.export.type)
        scheme = exporter.scheme(recipe.export.type)
    made = Plan(job, source, methods, scheme, structure, served_by={})
    stored = recipe.export.format if recipe.export.format in CONTAINERS else made.layout
    architecture = next(iter(source.config.get("architectures") or ()), None)
    if job.engine is not None and (why := why_not(job.engine, scheme, stored, structure, architecture)) is not None:
        raise CannotServeError(f"{job.engine} cannot serve what recipe {recipe.name} makes, because {why}")
    made.served_by = who_can_serve(scheme, stored, structure, architecture)
    layout = format_named(made.layout)
    for one in schemes:
        layout.check(one)
    if schemes:
        _quantization(layout, methods, schemes[-1], recipe)
    publish.refuse_taken(job.out, force=job.is_forced)
    need_room(job.out, source.size_bytes * (1 + len(registry.stages(methods))))
    return made


def compress(job: Job, screen: Screen) -> dict[str, Any]:
    """Do the job and return the manifest of the checkpoint at `job.out`. Raises CompressorError; on an interruption
    what is done is kept for the next run."""
    made = plan(job)
    began = time.monotonic()
    with publish.reserve(job.out, job.identity(), force=job.is_forced) as (partial, is_resumed):
        if is_resumed:
            screen.say(f"taking up an interrupted run of the same recipe ({partial.name})")
        if job.through == "own":
            folder = _run_stages(made, partial, screen)
        else:
            from compressor.methods import library

            folder = library.run(
                made.source, job.recipe, made.methods, _rows(made, screen), partial / "library", screen
            )
            _recall(made, folder)
        final = _lay_out(made, folder, partial / "final", screen)
        quality = _measure(made, final, screen) if job.with_quality else None
        verdict = judge(job.recipe.gate, quality)
        made_of = manifest.Work(
            name=job.out.name,
            parent=job.model,
            recipe=job.recipe.model_dump(mode="json"),
            method="+".join(step.method for step in job.recipe.steps) or job.recipe.export.format,
            scheme=made.scheme,
            layers=made.layers,
            seconds=time.monotonic() - began,
            peak_bytes=peak_bytes(job.device),
            structure=made.structure,
            calibration=None if made.used is None else made.used.as_json(),
            quality=quality,
            gate=verdict,
            served_by=made.served_by,
            facts=made.facts | ({} if job.through == "own" else {"through": job.through}),
            tools=() if job.through == "own" else ("llmcompressor",),
            prunes=any("sparsity" in type(method).Params.model_fields for method in made.methods),
        )
        whole = publish.seal(final, manifest.build(final, made_of))
        publish.publish(final, job.out)
        shutil.rmtree(partial, ignore_errors=True)
    return whole


def _measure(made: Plan, folder: Path, screen: Screen) -> dict[str, Any] | None:
    from compressor.quality.measure import measure

    return measure(folder, made.job.model, screen, torch.device(made.job.device), cache=made.job.cache)


def peak_bytes(device: str) -> int:
    """Highest memory of this process so far: on the accelerator where one works, else resident."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _schemes(methods: Sequence[Method]) -> list[Scheme]:
    """In the order of the steps, those without weights (KV cache) first: the last one is what the weights are in."""
    found = [scheme for method in methods if (scheme := getattr(method, "scheme", None)) is not None]
    return sorted(found, key=lambda scheme: scheme.weights is not None)


def _quantization(layout: Format, methods: Sequence[Method], scheme: Scheme, recipe: Recipe) -> dict[str, Any]:
    """What config.json will say. Raises BadRecipeError when the layout has no words for it."""
    return layout.config(
        scheme,
        recipe.ignore,
        has_kv_scales=any(method.name == "kv-cache" for method in methods),
        is_scattered=any(getattr(method, "scatters_groups", False) for method in methods),
    )


def _plain_scheme(source: Source) -> str:
    return {torch.bfloat16: "BF16", torch.float16: "FP16"}.get(source.dtype, "FP32")


def _run_stages(made: Plan, partial: Path, screen: Screen) -> Path:
    """The folder of the last stage: config.json and tensors."""
    job = made.job
    rows = _rows(made, screen)
    folder = job.model
    stages = registry.stages(made.methods)
    for number, stage in enumerate(stages, 1):
        source, destination = Source(folder), partial / f"stage-{number}"
        layout = made.layout if number == len(stages) else "dense"
        if not (destination / "config.json").is_file():
            if isinstance(stage, list):
                _run_blocks(made, stage, source, destination, rows, layout, screen)
            else:
                _run_model(made, stage, source, destination, rows, screen)
        _recall(made, destination)
        if number > 1:
            shutil.rmtree(folder)
        folder = destination
    return folder


def _rows(made: Plan, screen: Screen) -> list[Rows]:
    tokenizer = load_tokenizer(made.source.folder)
    if not any(method.needs_inputs for method in made.methods):
        return []
    context = made.source.config.get("max_position_embeddings")
    rows, made.used = load_rows(made.job.recipe.calibration, tokenizer, context)
    wanted = made.job.recipe.calibration.samples
    if made.used.samples < wanted:
        screen.warn(f"{made.used.file} has tokens for {made.used.samples} windows only, not for {wanted}")
    return rows


def _run_blocks(
    made: Plan,
    methods: Sequence[BlockMethod],
    source: Source,
    destination: Path,
    rows: list[Rows],
    layout_name: str,
    screen: Screen,
) -> None:
    for method in methods:
        method.scales = format_named(layout_name).scale
    schemes = _schemes(methods)
    layout = format_named(layout_name, schemes[-1] if schemes else None)
    device = torch.device(made.job.device)
    skeleton = Skeleton(source, family_of(source.config), device, made.job.dtype)
    sink = Sink(destination)
    runs = BlockPass(skeleton, methods, layout, sink, screen, frozenset(made.job.recipe.ignore))
    needs_inputs = any(method.needs_inputs for method in methods)
    runs.run(skeleton.embed(rows) if needs_inputs else [])
    sink.config = dict(source.config)
    if schemes and layout_name != "dense":
        quantization = _quantization(layout, methods, schemes[-1], made.job.recipe)
        sink.config["quantization_config"] = quantization
        for name, value in layout.files(quantization).items():
            write_json(destination / name, value)
    _remember(destination, runs.layers, {})
    sink.finish()


def _run_model(
    made: Plan, method: ModelMethod, source: Source, destination: Path, rows: list[Rows], screen: Screen
) -> None:
    sink = Sink(destination)
    sink.config = dict(source.config)
    work = ModelPass(
        source=source,
        sink=sink,
        family=family_of(source.config),
        rows=rows if method.needs_inputs else [],
        device=torch.device(made.job.device),
        seed=made.job.recipe.calibration.seed,
        screen=screen,
    )
    method.run(work)
    _remember(destination, {}, {method.name: work.facts})
    sink.finish()


def _remember(destination: Path, layers: dict[str, Any], facts: dict[str, Any]) -> None:
    """Facts of a stage, written before the file that says that it is done."""
    (destination / "facts.json").write_text(json.dumps({"layers": layers, "facts": facts}), encoding="utf-8")


def _recall(made: Plan, destination: Path) -> None:
    found = json.loads((destination / "facts.json").read_text("utf-8"))
    made.layers, made.facts = found["layers"] or made.layers, made.facts | found["facts"]


def _lay_out(made: Plan, folder: Path, final: Path, screen: Screen) -> Path:
    """The folder as engines want it: tensors and config, tokenizer, adapter; or the container made of it."""
    for name in BESIDE:
        if (made.source.folder / name).is_file() and not (folder / name).exists():
            shutil.copy2(made.source.folder / name, folder / name)
    pieces = folder / "adapter-pieces"
    if any(pieces.glob("*.safetensors")):
        from compressor.checkpoint import adapter

        adapter.write(folder / "adapter", Sink(pieces), base=made.job.out.name)
    shutil.rmtree(pieces, ignore_errors=True)
    for leftover in (folder / "facts.json", *folder.glob("facts-*.json")):
        leftover.unlink(missing_ok=True)
    shutil.rmtree(final, ignore_errors=True)
    export = made.job.recipe.export
    if (exporter := exporter_named(export.format)) is not None:
        made.facts |= exporter.run(folder, final, export.type, screen)
    else:
        folder.rename(final)
    return final
