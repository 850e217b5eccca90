"""From the path a person gives to all that serving needs: a GGUF file, an OpenVINO IR or a Hugging Face folder."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import openvino_genai
from tokenizers import Tokenizer

from openvino_engine.convert import ConversionError, convert_cached, read_json
from openvino_engine.gguf_tokenizer import read_chat_template, token_text
from openvino_engine.text import FastTokenizer, TextTokenizer, tokenizer_from_gguf

_SAMPLING_FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_GGUF_SAMPLING = {"temp": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p"}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model ready to be opened. ``model_path`` is what the library loads, ``root`` what the person named."""

    root: Path
    model_path: Path
    tokenizer: TextTokenizer
    rows: int  # vocabulary size of the logits
    eos_ids: frozenset[int]
    grammar_eos: int  # the one among them that ends a structured answer
    context: int | None
    kv_values: int | None  # numbers in the KV cache per token
    chat_template: str | None
    special_texts: dict[str, str] = field(default_factory=dict)  # bos_token, eos_token, ... for the template
    sampling: dict[str, float] = field(default_factory=dict)  # defaults the checkpoint asks for
    manifest: dict[str, Any] | None = None


def load_checkpoint(path: Path, cache_dir: Path) -> Checkpoint:
    """Recognise and read ``path``; a Hugging Face folder is converted into ``cache_dir`` first.

    Raises ConversionError, SafetensorsError or TokenizerError with what is wrong and what to do.
    """
    try:
        return _recognise(path, cache_dir)
    except KeyError as error:
        raise ConversionError(f"{path}: a file of the model lacks {error}") from error


def _recognise(path: Path, cache_dir: Path) -> Checkpoint:
    if path.suffix == ".gguf" and path.is_file():
        return _from_gguf(path)
    if (path / "openvino_model.xml").exists():
        return _from_ir(path)
    if (path / "config.json").exists():
        return _from_hugging_face(path, cache_dir)
    raise ConversionError(
        f"{path} is not a model: give a .gguf file, an OpenVINO IR folder (openvino_model.xml) "
        "or a Hugging Face folder (config.json, tokenizer.json, *.safetensors or one .gguf)"
    )


def _from_hugging_face(folder: Path, cache_dir: Path) -> Checkpoint:
    gguf_path = _stored_gguf(folder) or convert_cached(folder, cache_dir)
    config = read_json(folder / "config.json")
    tokenizer = _read_tokenizer(folder / "tokenizer.json")
    reader = gguf.GGUFReader(gguf_path)
    rows = _gguf_rows(reader)
    return Checkpoint(
        root=folder,
        model_path=gguf_path,
        tokenizer=FastTokenizer(tokenizer, rows),
        rows=rows,
        context=config.get("max_position_embeddings"),
        kv_values=_gguf_kv_values(reader),
        manifest=_manifest(folder),
        **_folder_parts(folder, tokenizer, gguf_path),
    )


def _stored_gguf(folder: Path) -> Path | None:
    """The one GGUF file of a folder whose weights are nowhere else: what `penstock compress` exports."""
    found = sorted(folder.glob("*.gguf"))
    return found[0] if len(found) == 1 and not any(folder.glob("*.safetensors")) else None


def _from_ir(folder: Path) -> Checkpoint:
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    if not (folder / "tokenizer.json").exists():
        raise ConversionError(
            f"{folder} has no tokenizer.json: copy it from the original checkpoint into the IR folder"
        )
    tokenizer = _read_tokenizer(folder / "tokenizer.json")
    rows = config.get("vocab_size") or tokenizer.get_vocab_size()
    return Checkpoint(
        root=folder,
        model_path=folder,
        tokenizer=FastTokenizer(tokenizer, rows),
        rows=rows,
        context=config.get("max_position_embeddings"),
        kv_values=None,
        manifest=_manifest(folder),
        **_folder_parts(folder, tokenizer, folder),
    )


def _folder_parts(folder: Path, tokenizer: Tokenizer, model_path: Path) -> dict[str, Any]:
    """End tokens, template, its special texts and sampling defaults, from the folder's configs."""
    config = _optional(folder / "tokenizer_config.json")
    generation = _optional(folder / "generation_config.json")
    texts = {
        key: text
        for key in ("bos_token", "eos_token", "pad_token", "unk_token")
        if (text := token_text(config.get(key)))
    }
    eos = generation.get("eos_token_id", _optional(folder / "config.json").get("eos_token_id"))
    ids = {eos} if isinstance(eos, int) else set(eos or ())
    if (named := tokenizer.token_to_id(texts.get("eos_token", ""))) is not None:
        ids.add(named)
    if not ids:
        raise ConversionError(f"{folder} names no end token: set eos_token_id in generation_config.json")
    library_eos = library_tokenizer(model_path).get_eos_token_id()
    grammar_eos = library_eos if library_eos >= 0 else min(ids)
    sampling = {key: generation[key] for key in _SAMPLING_FIELDS if isinstance(generation.get(key), int | float)}
    if generation.get("do_sample") is False:
        sampling.pop("temperature", None)
    template = read_chat_template(folder)
    return {
        "eos_ids": frozenset(ids | {grammar_eos}),
        "grammar_eos": grammar_eos,
        "special_texts": texts,
        "sampling": sampling,
        "chat_template": template,
    }


def _from_gguf(path: Path) -> Checkpoint:
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError) as error:
        raise ConversionError(f"{path} is not a readable GGUF file: {error}") from error
    value = _values(reader)
    architecture = value("general.architecture")
    tokens, types = value("tokenizer.ggml.tokens"), value("tokenizer.ggml.token_type")
    embedded, beside = value("tokenizer.huggingface.json"), path.with_name("tokenizer.json")
    if embedded:
        tokenizer = Tokenizer.from_str(embedded)
    elif beside.exists():
        tokenizer = _read_tokenizer(beside)
    else:
        tokenizer = tokenizer_from_gguf(tokens, value("tokenizer.ggml.merges"), types, value("tokenizer.ggml.pre"))
    ids = {key: value(f"tokenizer.ggml.{key}_token_id") for key in ("bos", "eos", "eot", "eom", "padding")}
    if ids["eos"] is None:
        raise ConversionError(f"{path} names no end token (tokenizer.ggml.eos_token_id)")
    rows = _gguf_rows(reader)
    return Checkpoint(
        root=path,
        model_path=path,
        tokenizer=FastTokenizer(tokenizer, rows),
        rows=rows,
        eos_ids=frozenset(ids[key] for key in ("eos", "eot", "eom") if ids[key] is not None),
        grammar_eos=ids["eos"],
        context=value(f"{architecture}.context_length"),
        kv_values=_gguf_kv_values(reader),
        chat_template=value("tokenizer.chat_template"),
        special_texts={f"{key}_token": tokens[ids[key]] for key in ("bos", "eos") if ids[key] is not None},
        sampling={
            target: float(found)
            for key, target in _GGUF_SAMPLING.items()
            if (found := value(f"general.sampling.{key}")) is not None
        },
        manifest=_manifest(path.parent),
    )


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:
        raise ConversionError(f"cannot read {path}: {error}") from error


def _values(reader: gguf.GGUFReader) -> Any:
    def value(key: str) -> Any:
        entry = reader.get_field(key)
        return None if entry is None else entry.contents()

    return value


def _gguf_rows(reader: gguf.GGUFReader) -> int:
    embedding = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
    return int(embedding.shape[1])


def _gguf_kv_values(reader: gguf.GGUFReader) -> int:
    value = _values(reader)
    arch = value("general.architecture")
    heads = value(f"{arch}.attention.head_count")
    head_dim = value(f"{arch}.attention.key_length") or value(f"{arch}.embedding_length") // heads
    return int(2 * value(f"{arch}.block_count") * (value(f"{arch}.attention.head_count_kv") or heads) * head_dim)


def _manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / "penstock.json"
    return read_json(path) if path.exists() else None


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def library_tokenizer(model_path: Path) -> Any:
    """The library's own tokenizer object: it compiles grammars against it. We never encode or decode with it."""
    return openvino_genai.Tokenizer(str(model_path))


__all__ = ["Checkpoint", "library_tokenizer", "load_checkpoint"]
