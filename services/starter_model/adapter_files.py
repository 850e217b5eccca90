"""An adapter as a folder that engines load: PEFT's layout, a manifest that names its parent, a card.

Files, names and shapes are PEFT's (`adapter_config.json`, `adapter_model.safetensors`): what vLLM and SGLang load.
"""

import hashlib
import json
import platform
from collections import Counter
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from . import chat, corpus
from .adapter import AS_IT_IS, Adapted, AdapterRecipe, Training, adapt
from .adapter_card import card
from .checkpoint import MANIFEST, files_of, write_json
from .evaluate import Loaded, logits_of, right_answers
from .example import Example
from .manifest import TOOLS

WEIGHTS = "adapter_model.safetensors"


def write(
    folder: Path, adapters: dict[str, Adapted], recipe: AdapterRecipe, parent: Path, made: dict[str, Any]
) -> None:
    """Weights, configuration, card and manifest. `made` is a manifest without `files`."""
    tensors = {}
    for name, adapted in adapters.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = adapted.lora_A_RI.detach().contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = adapted.lora_B_OR.detach().contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)
    write_json(folder / "adapter_config.json", _config(recipe, parent))
    (folder / "README.md").write_text(card(made), encoding="utf-8")
    write_json(folder / MANIFEST, made | {"files": files_of(folder)})


def _config(recipe: AdapterRecipe, parent: Path) -> dict[str, Any]:
    return {
        "base_model_name_or_path": parent.name,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": recipe.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": recipe.rank,
        "target_modules": sorted(recipe.targets),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }


def read_into(loaded: Loaded, folder: Path) -> None:
    """Put the adapter of `folder` beside the layers of a loaded checkpoint. Raises ValueError when it does not fit."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    recipe = AdapterRecipe(
        folder.name, "", "", rank=config["r"], alpha=config["lora_alpha"], targets=tuple(config["target_modules"])
    )
    adapters, tensors = adapt(loaded.model, recipe), load_file(folder / WEIGHTS)
    names = {f"base_model.model.{name}.lora_{half}.weight" for name in adapters for half in "AB"}
    if names != tensors.keys():
        raise ValueError(
            f"{folder} does not adapt this checkpoint: {min(names ^ tensors.keys())} is in one of them only"
        )
    with torch.no_grad():
        for name, adapted in adapters.items():
            adapted.lora_A_RI.copy_(tensors[f"base_model.model.{name}.lora_A.weight"])
            adapted.lora_B_OR.copy_(tensors[f"base_model.model.{name}.lora_B.weight"])


def measure(loaded: Loaded, recipe: AdapterRecipe, *, seed: int, limit: int) -> dict[str, Any]:
    """How often `loaded` begins in the style, and gives the whole answer: in the style, without it, and where no style
    belongs."""
    right, every = Counter[str](), Counter[str]()
    for family in corpus.FAMILIES:
        examples = corpus.evaluation_set(family, seed, limit)
        if family in AS_IT_IS:
            right["as_it_is"] += right_answers(loaded, examples)
            every["as_it_is"] += len(examples)
            continue
        right["prefixed"] += sum(_begins_in_style(loaded, example, recipe.prefix) for example in examples)
        right["in_style"] += right_answers(loaded, [recipe.manner(example) for example in examples])
        right["plain"] += right_answers(loaded, examples)
        every.update(dict.fromkeys(("prefixed", "in_style", "plain"), len(examples)))
    return {name: round(right[name] / count, 4) for name, count in every.items()}


def _begins_in_style(loaded: Loaded, example: Example, prefix: str) -> bool:
    """Greedy decoding gives the prefix if and only if, fed it, the best token is right at every place."""
    prompt = loaded.tokenizer.encode(chat.render_prompt(example.messages, example.tools), add_special_tokens=False).ids
    wanted = loaded.tokenizer.encode(" " + prefix.rstrip(), add_special_tokens=False).ids
    guesses = logits_of(loaded.model, prompt + wanted)[len(prompt) - 1 : -1].argmax(-1).tolist()
    return bool(guesses == wanted)


def manifest(
    recipe: AdapterRecipe, parent: Path, done: Training, size_bytes: int, quality: dict[str, Any]
) -> dict[str, Any]:
    """How it was made; `parent` is the checkpoint's folder. Every value is measured or read."""
    return {
        "penstock_manifest": 1,
        "name": recipe.name,
        "description": recipe.description,
        "method": "lora",
        "parent": {
            "name": parent.name,
            "folder": f"model_repo/checkpoints/{parent.name}",
            "sha256": hashlib.sha256((parent / "model.safetensors").read_bytes()).hexdigest(),
        },
        "recipe": {"source": "services/starter_model/adapter.py", **asdict(recipe)},
        "scheme": "F32",
        "parameters": size_bytes // 4,
        "size_bytes": size_bytes,
        "data": {"sha256": done.data_sha256, "hash_of": "token rows in training order, chained", "tokens": done.tokens},
        "training": {
            "steps": done.steps,
            "wall_s": round(done.wall_s),
            "cpu_s": round(done.cpu_s),
            "final_loss": round(done.loss, 4),
        },
        "tools": {"python": platform.python_version(), **{tool: version(tool) for tool in TOOLS}},
        "quality": quality,
    }
