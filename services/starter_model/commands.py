"""What each subcommand does. torch is imported inside: --help and `corpus` work without it."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from . import chat, corpus
from .example import Example, dice

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from .recipe import Recipe
    from .trainer import Run

Stop = Callable[[], bool]
STOPPED = 130


def run(arguments: argparse.Namespace, stop: Stop) -> int:
    """Run the chosen subcommand; returns the exit code."""
    if arguments.command == "train":
        return _train(arguments, stop)
    if arguments.command == "adapter":
        return _adapter(arguments, stop)
    quick = {"export": _export, "evaluate": _evaluate, "corpus": _corpus, "datasets": _datasets, "ask": _ask}
    return quick[arguments.command](arguments)


def _recipes(arguments: argparse.Namespace) -> "list[Recipe]":
    from .recipe import RECIPES, scaled

    unknown = set(arguments.models) - set(RECIPES)
    if unknown:
        raise ValueError(f"no recipe for {', '.join(sorted(unknown))}; there are: {', '.join(RECIPES)}")
    return [
        scaled(recipe, arguments.scale) for name, recipe in RECIPES.items() if name in (arguments.models or RECIPES)
    ]


def _open_run(recipe: "Recipe", folder: Path) -> "Run":
    from .trainer import Run

    tokenizer = _tokenizer(folder, recipe.seed)
    training = Run(recipe, folder / recipe.name, tokenizer)
    training.restore()
    return training


def _tokenizer(folder: Path, seed: int) -> "Tokenizer":
    from .tokenizer import load_tokenizer, train_tokenizer

    path = folder / "tokenizer.json"
    if not path.exists():
        _say("training the tokenizer")
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part")
        train_tokenizer(seed).save(str(temporary))
        os.replace(temporary, path)
    return load_tokenizer(folder)


def _train(arguments: argparse.Namespace, stop: Stop) -> int:
    import torch

    from .screen import Bar

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    for recipe in _recipes(arguments):
        training = _open_run(recipe, arguments.run)
        with Bar(recipe.name, training.steps_done, recipe.steps) as bar:
            training.train(bar, stop, compiled=not arguments.no_compile)
        if not training.done:
            _say(f"stopped at step {training.steps_done} of {recipe.steps}; the same command goes on from there")
            return STOPPED
        _say(f"{recipe.name}: {recipe.steps} steps in {training.state.wall_s:,.0f} s, loss {training.state.loss:.3f}")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from .export import export

    for recipe in _recipes(arguments):
        if not (arguments.run / recipe.name / "state.pt").exists():
            raise ValueError(f"nothing trained under {arguments.run / recipe.name}; run `train` first")
        target = arguments.to / "starter" if recipe.name.endswith("-draft") else None
        destination = arguments.to / recipe.name
        made = export(
            _open_run(recipe, arguments.run), destination, target=target, seed=arguments.seed, limit=arguments.limit
        )
        quality = made["quality"]
        _say(
            f"{destination}: mean accuracy {quality['mean_accuracy']:.3f}, "
            f"perplexity on prose {quality['prose']['perplexity']:.2f}"
        )
    return 0


def _adapter(arguments: argparse.Namespace, stop: Stop) -> int:
    import torch

    from . import adapter, adapter_files, evaluate
    from .checkpoint import publish
    from .screen import Bar

    recipe = adapter.ADAPTERS.get(arguments.name)
    if recipe is None:
        raise ValueError(f"no adapter {arguments.name!r}; there are: {', '.join(adapter.ADAPTERS)}")
    recipe = replace(recipe, steps=arguments.steps or recipe.steps)
    torch.set_num_threads(arguments.threads)
    parent: Path = arguments.base
    measures = {"seed": arguments.seed, "limit": arguments.limit}
    alone = adapter_files.measure(evaluate.load(parent), recipe, **measures)
    base = evaluate.load(parent)
    with Bar(recipe.name, 0, recipe.steps) as bar:
        trained = adapter.train(base, recipe, bar, stop)
    if trained is None:
        _say("stopped; an adapter takes minutes, so nothing is kept")
        return STOPPED
    adapters, done = trained
    quality = {
        "parent": alone,
        "adapted": adapter_files.measure(base, recipe, **measures),
        "protocol": f"greedy, the whole answer exactly, {arguments.limit} held-out examples per family, "
        f"evaluation seed {arguments.seed}; float32 arithmetic on the parent's bfloat16 weights",
    }
    size_bytes = sum(p.numel() * p.element_size() for p in base.model.parameters() if p.requires_grad)
    made = adapter_files.manifest(recipe, parent, done, size_bytes, quality)
    destination = arguments.to / recipe.name
    publish(destination, lambda folder: adapter_files.write(folder, adapters, recipe, parent, made))
    _say(f"{destination}: {quality['adapted']}")
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from . import evaluate

    report = evaluate.evaluate(arguments.checkpoint, seed=arguments.seed, limit=arguments.limit)
    if arguments.draft:
        pair = evaluate.load(arguments.checkpoint), evaluate.load(arguments.draft)
        report["acceptance"] = {
            "draft": arguments.draft.name,
            **evaluate.acceptance(*pair, seed=arguments.seed, per_family=4),
        }
    text = json.dumps(report, ensure_ascii=False, indent=2)
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)  # noqa: T201
    return 0


def _corpus(arguments: argparse.Namespace) -> int:
    if arguments.list:
        for name, (_, weight) in corpus.FAMILIES.items():
            print(f"{name:12} {weight:.1f}{'  by heart' if name in corpus.CLOSED else ''}")  # noqa: T201
        print(f"left out of training: {', '.join(corpus.LEFT_OUT)}")  # noqa: T201
        return 0
    for example in _samples(arguments):
        shown = chat.render_prompt(example.messages, example.tools) + example.answer_text + chat.IM_END
        print(f"[{example.family}]\n{shown}\n")  # noqa: T201
    return 0


def _samples(arguments: argparse.Namespace) -> list[Example]:
    known = (*corpus.FAMILIES, *corpus.LEFT_OUT)
    if arguments.family is not None and arguments.family not in known:
        raise ValueError(f"no family {arguments.family!r}; there are: {', '.join(known)}")
    if arguments.held_out:
        if arguments.family is None:
            raise ValueError("--held-out needs --family")
        return corpus.evaluation_set(arguments.family, arguments.seed, arguments.count)
    if arguments.family in corpus.LEFT_OUT:
        raise ValueError(f"{arguments.family} is never trained; see it with --held-out")
    mix = corpus.weights({}) if arguments.family is None else {arguments.family: 1.0}
    return list(islice(corpus.training_stream(dice("show", arguments.seed), mix), arguments.count))


def _datasets(arguments: argparse.Namespace) -> int:
    from . import datasets

    for name, facts in datasets.write(arguments.out, arguments.seed)["files"].items():
        _say(f"{arguments.out / name}: {facts['lines']:,} lines")
    return 0


def _ask(arguments: argparse.Namespace) -> int:
    from . import evaluate

    loaded = evaluate.load(arguments.checkpoint)
    if arguments.adapter:
        from . import adapter_files

        adapter_files.read_into(loaded, arguments.adapter)
    tools = json.loads(arguments.tools.read_text(encoding="utf-8")) if arguments.tools else []
    for prompt in arguments.prompt:
        said = evaluate.answer(loaded, [{"role": "user", "content": prompt}], tools)
        print(f"> {prompt}\n{said.strip()}\n")  # noqa: T201
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201
