"""A checkpoint folder: writing it whole or not at all, and reading its weights back.

The layout is Hugging Face's, in the spellings that transformers 4 and 5 both read. Everything goes to a temporary
folder first; the manifest is written last; one rename publishes it.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from . import chat
from .model import Qwen3, Shape, config_json
from .tokenizer import token_id

MANIFEST = "penstock.json"
MAX_LENGTH = 2048


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def write_model(folder: Path, model: Qwen3, tokenizer: Tokenizer) -> None:
    """Weights in bfloat16, tokenizer, template and configurations: all that an engine loads."""
    state = model.state_dict()
    tensors = {name: state[name].to(torch.bfloat16).contiguous() for name in sorted(state)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save(str(folder / "tokenizer.json"))
    end, pad = token_id(tokenizer, chat.IM_END), token_id(tokenizer, chat.END_OF_TEXT)
    write_json(folder / "config.json", config_json(model.shape, eos=end, pad=pad))
    write_json(folder / "generation_config.json", {"do_sample": False, "eos_token_id": end, "pad_token_id": pad})
    write_json(folder / "tokenizer_config.json", _tokenizer_config(tokenizer))
    write_json(folder / "special_tokens_map.json", _special_tokens())


def _special_tokens() -> dict[str, Any]:
    roles = [token for token in chat.SPECIAL_TOKENS if token not in (chat.IM_END, chat.END_OF_TEXT)]
    return {"additional_special_tokens": roles, "eos_token": chat.IM_END, "pad_token": chat.END_OF_TEXT}


def _tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    added = {
        str(token_id(tokenizer, token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token in chat.SPECIAL_TOKENS,
        }
        for token in (*chat.SPECIAL_TOKENS, *chat.TOOL_TOKENS)
    }
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        **_special_tokens(),
        "bos_token": None,
        "chat_template": chat.CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": MAX_LENGTH,
        "split_special_tokens": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }


def load_model(folder: Path) -> Qwen3:
    """The model in float32. Raises ValueError when the folder is not one of ours."""
    if not (folder / MANIFEST).exists() and not (folder / "config.json").exists():
        raise ValueError(f"{folder} is not a checkpoint: it has no config.json")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != "qwen3":
        raise ValueError(f"{folder} is a {config.get('model_type')} model; only qwen3 can be evaluated here")
    model = Qwen3(Shape(**{name: config[name] for name in Shape.__dataclass_fields__}))
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()})
    model.eval()
    return model


def files_of(folder: Path) -> dict[str, dict[str, Any]]:
    """sha256 and bytes of every file but the manifest itself."""
    paths = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    return {
        path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size_bytes": path.stat().st_size}
        for path in paths
    }


def publish(destination: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into a temporary folder, then put it in place of `destination` by renames."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    fresh = destination.with_name(f".{destination.name}.part")
    old = destination.with_name(f".{destination.name}.old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir()
    try:
        fill(fresh)
        if destination.exists():
            os.replace(destination, old)
        os.replace(fresh, destination)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
