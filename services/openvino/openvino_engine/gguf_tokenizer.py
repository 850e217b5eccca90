"""The tokenizer as GGUF metadata: written by the converter, read back when a bare .gguf is served.

Only byte-level BPE (the kind of Llama 3, Qwen, GPT-2 and the starter): the engine's reader knows no other.
"""

import json
from pathlib import Path
from typing import Any

import gguf

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
PRE_TOKENIZERS = {"gpt-2": _GPT2, "qwen2": _QWEN2, "llama-bpe": _LLAMA3}


class TokenizerError(ValueError):
    """The tokenizer cannot be carried or read; the message says what was met."""


def write_tokenizer(writer: gguf.GGUFWriter, folder: Path, rows: int) -> None:
    """Write vocabulary, merges, special tokens, template and the original tokenizer.json.

    ``rows`` is the embedding's height: ids above the vocabulary are padded with unused tokens.
    Raises TokenizerError when tokenizer.json is missing or is not byte-level BPE.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        raise TokenizerError(f"{path} is missing: the engine needs a fast tokenizer file")
    text = path.read_text(encoding="utf-8")
    try:
        content = json.loads(text)
    except ValueError as error:
        raise TokenizerError(f"{path} is not JSON: {error}") from error
    if content.get("model", {}).get("type") != "BPE" or "ByteLevel" not in json.dumps(content.get("decoder")):
        raise TokenizerError(f"{path} is not byte-level BPE: convert to OpenVINO IR instead")
    tokens, types = _tokens(content, rows)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_name(text))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = content["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    _write_special(writer, folder, {token: index for index, token in enumerate(tokens)})
    writer.add_string("tokenizer.huggingface.json", text)


def _tokens(content: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    # ÿ stands for byte 0xFF, which no UTF-8 text holds: a padded row is never chosen inside a structured answer.
    tokens = [f"ÿ[PAD{index}]" for index in range(rows)]
    types = [int(gguf.TokenType.UNUSED)] * rows
    entries = [(index, token, gguf.TokenType.NORMAL) for token, index in content["model"]["vocab"].items()]
    entries += [
        (item["id"], item["content"], gguf.TokenType.CONTROL if item["special"] else gguf.TokenType.USER_DEFINED)
        for item in content.get("added_tokens", [])
    ]
    for index, token, kind in entries:
        if index >= rows:
            raise TokenizerError(f"token {token!r} has id {index}, but the embedding has {rows} rows")
        tokens[index], types[index] = token, int(kind)
    return tokens, types


def _pre_name(text: str) -> str:
    escaped = {name: json.dumps(pattern)[1:-1] for name, pattern in PRE_TOKENIZERS.items()}
    return next((name for name in ("qwen2", "llama-bpe") if escaped[name] in text), "default")


def _write_special(writer: gguf.GGUFWriter, folder: Path, index: dict[str, int]) -> None:
    config = _optional_json(folder / "tokenizer_config.json")
    generation = _optional_json(folder / "generation_config.json")
    eos = generation.get("eos_token_id")
    ends = [eos] if isinstance(eos, int) else list(eos or [])
    named = index.get(token_text(config.get("eos_token")) or "")
    if named is not None:
        ends = [named, *(end for end in ends if end != named)]
    if ends:
        writer.add_eos_token_id(ends[0])
    if len(ends) > 1:
        writer.add_eot_token_id(ends[1])
    if (bos := index.get(token_text(config.get("bos_token")) or "")) is not None:
        writer.add_bos_token_id(bos)
    if (pad := index.get(token_text(config.get("pad_token")) or "")) is not None:
        writer.add_pad_token_id(pad)
    template = read_chat_template(folder)
    if template:
        writer.add_chat_template(template)


def read_chat_template(folder: Path) -> str | None:
    """The template of a Hugging Face folder: chat_template.jinja wins over tokenizer_config.json."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    template = _optional_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):
        template = next((item["template"] for item in template if item.get("name") == "default"), None)
    return template if isinstance(template, str) else None


def token_text(value: object) -> str | None:
    """A special token as text: configs write it as a string or as an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _optional_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerError(f"{path} is not JSON: {error}") from error
    return value if isinstance(value, dict) else {}
