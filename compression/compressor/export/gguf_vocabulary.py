"""A byte-level BPE tokenizer as GGUF metadata (`tokenizer.ggml.*`), and whole under `tokenizer.huggingface.json`.

Apart from the tensors: a reader of the folder takes tokenizer.json beside the file, a reader of the file alone these.
"""

import json
from pathlib import Path
from typing import Any

import gguf

from compressor.errors import BadCheckpointError

# What llama.cpp calls the ways of splitting text before the merges (`llama-vocab.cpp`), by a part of the pattern that
# only they have: digits one by one, or three by three.
_SPLITS = {"qwen2": r"|\\p{N}|", "llama-bpe": r"|\\p{N}{1,3}|"}


def write_vocabulary(writer: gguf.GGUFWriter, folder: Path, rows: int) -> None:
    """`rows`: the height of the embedding; rows beyond the vocabulary become unused tokens.

    Raises BadCheckpointError when there is no tokenizer.json, or one of another kind.
    """
    text, content = _read(folder / "tokenizer.json")
    tokens, kinds = _tokens(content, rows)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(next((name for name, part in _SPLITS.items() if part in text), "default"))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = content["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    _write_ends(writer, folder, {token: index for index, token in enumerate(tokens)})
    template = chat_template(folder)
    if template is not None:
        writer.add_chat_template(template)
    writer.add_string("tokenizer.huggingface.json", text)


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_text("utf-8")
        content = json.loads(text)
        is_byte_level = content["model"]["type"] == "BPE" and "ByteLevel" in json.dumps(content.get("decoder"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadCheckpointError(f"{path} cannot be read: {error}") from error
    if not is_byte_level:
        raise BadCheckpointError(f"{path} is not byte-level BPE: GGUF's readers here know no other tokenizer")
    return text, content


def _tokens(content: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    # "ÿ" is byte 0xFF, which is in no UTF-8 text: no text is ever tokenized to an unused row.
    tokens = [f"ÿ[unused {index}]" for index in range(rows)]
    kinds = [int(gguf.TokenType.UNUSED)] * rows
    found = [(index, token, gguf.TokenType.NORMAL) for token, index in content["model"]["vocab"].items()]
    for added in content.get("added_tokens", []):
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        found.append((added["id"], added["content"], kind))
    for index, token, kind in found:
        if index >= rows:
            raise BadCheckpointError(f"token {token!r} has number {index}, and the embedding {rows} rows")
        tokens[index], kinds[index] = token, int(kind)
    return tokens, kinds


def _write_ends(writer: gguf.GGUFWriter, folder: Path, index: dict[str, int]) -> None:
    config, generation = _optional(folder / "tokenizer_config.json"), _optional(folder / "generation_config.json")
    named = {key: index.get(_text(config.get(f"{key}_token"))) for key in ("eos", "bos", "pad")}
    told = generation.get("eos_token_id")
    ends = [end for end in (named["eos"], *(told if isinstance(told, list) else [told])) if end is not None]
    ends = list(dict.fromkeys(ends))
    if ends:
        writer.add_eos_token_id(ends[0])
    if len(ends) > 1:
        writer.add_eot_token_id(ends[1])
    if named["bos"] is not None:
        writer.add_bos_token_id(named["bos"])
    if named["pad"] is not None:
        writer.add_pad_token_id(named["pad"])


def chat_template(folder: Path) -> str | None:
    """The template as Hugging Face finds it: a file of its own goes before the tokenizer's configuration."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text("utf-8")
    template = _optional(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):
        template = next((one["template"] for one in template if one.get("name") == "default"), None)
    return template if isinstance(template, str) else None


def _text(token: Any) -> str:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def _optional(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BadCheckpointError(f"{path} cannot be read: {error}") from error
    return value if isinstance(value, dict) else {}
