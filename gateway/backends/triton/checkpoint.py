"""What the gateway reads from a checkpoint's folder to write a Triton model's prompts: tokenizer, template, limits.

The weights are the engine's. Read once, when the configuration becomes objects.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from tokenizers import Tokenizer

from gateway.backends.triton.template import ChatTemplate
from gateway.backends.triton.text import Tokens
from gateway.settings import ConfigError

_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
_SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`context`: positions of prompt and answer together. `sampling`: generation_config's defaults.

    `end_id` is the end token engines are told; `eos_ids` are all that end an answer. `adds`: the text of the token that
    the tokenizer puts before every prompt by itself, if it does.
    """

    tokens: Tokens
    context: int
    eos_ids: frozenset[int]
    end_id: int
    pad_id: int
    sampling: dict[str, float]
    template: ChatTemplate | None
    adds: str


def read_checkpoint(folder: Path | None) -> Checkpoint:
    """Raises ConfigError saying what is missing and what to do."""
    if folder is None:
        raise ConfigError(
            "engine triton needs `checkpoint:` in its deployment: the folder with config.json, tokenizer.json and "
            "tokenizer_config.json of the model that Triton serves, because the gateway writes its prompts"
        )
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # noqa: BLE001 (the library raises nothing narrower)
        raise ConfigError(f"checkpoint: {folder / 'tokenizer.json'} cannot be read: {error}") from None
    config, naming = _read(folder / "config.json"), _read(folder / "tokenizer_config.json", or_empty=True)
    generation = _read(folder / "generation_config.json", or_empty=True)
    texts = {name: text for name in _SPECIAL if (text := _token_text(naming.get(name)))}
    tokens = Tokens(tokenizer, int(config.get("vocab_size", 0)))
    end_ids = _end_ids(generation, config, tokens.id_of(texts.get("eos_token")), folder)
    pad_id = tokens.id_of(texts.get("pad_token"))
    return Checkpoint(
        tokens=tokens,
        context=_context(config, folder),
        eos_ids=frozenset(end_ids),
        end_id=end_ids[0],
        pad_id=end_ids[0] if pad_id is None else pad_id,
        sampling=_sampling(generation),
        template=_template(folder, naming, texts),
        adds=_added_text(tokens, texts),
    )


def _read(path: Path, *, or_empty: bool = False) -> dict[str, Any]:
    if or_empty and not path.exists():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"checkpoint: {path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"checkpoint: {path} does not hold a JSON object")
    return content


def _token_text(value: Any) -> str | None:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _end_ids(generation: dict[str, Any], config: dict[str, Any], named: int | None, folder: Path) -> list[int]:
    """The first is the one that the tokenizer names: chat models end their turn with it."""
    listed = generation.get("eos_token_id", config.get("eos_token_id"))
    ids = [] if named is None else [named]
    ids += [listed] if isinstance(listed, int) else list(listed or ())
    if not ids:
        raise ConfigError(f"checkpoint: {folder} names no end token: set eos_token_id in generation_config.json")
    return list(dict.fromkeys(ids))


def _context(config: dict[str, Any], folder: Path) -> int:
    context = config.get("max_position_embeddings", config.get("text_config", {}).get("max_position_embeddings"))
    if not isinstance(context, int) or context < 1:
        raise ConfigError(f"checkpoint: {folder / 'config.json'} has no max_position_embeddings")
    return context


def _sampling(generation: dict[str, Any]) -> dict[str, float]:
    found = {name: generation[name] for name in _SAMPLING if isinstance(generation.get(name), int | float)}
    if generation.get("do_sample") is False:
        found.pop("temperature", None)
    return found


def _template(folder: Path, naming: dict[str, Any], texts: dict[str, str]) -> ChatTemplate | None:
    beside = folder / "chat_template.jinja"
    source = beside.read_text("utf-8") if beside.exists() else naming.get("chat_template")
    if isinstance(source, list):
        source = next((named["template"] for named in source if named.get("name") == "default"), None)
    if source is None:
        return None
    try:
        return ChatTemplate(source, texts)
    except jinja2.TemplateError as error:
        raise ConfigError(f"checkpoint: the chat template of {folder} is not valid: {error}") from None


def _added_text(tokens: Tokens, texts: dict[str, str]) -> str:
    first = tokens.encode("x", add_special_tokens=True)[0]
    text = texts.get("bos_token", "")
    return text if text and tokens.id_of(text) == first else ""
