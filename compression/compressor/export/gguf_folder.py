"""A dense checkpoint as a folder with one model.gguf in it, tensor by tensor: memory is that of the largest tensor.

Blocks of 32 successive inputs share a float16 scale d: Q8_0 stores round(w / d) with d = max|w| / 127, Q4_0 stores
w / d + 8 in 4 bits with d = (the value of largest size) / −8, Q4_1 a scale and a least value. Source: ggml's
`quantize_row_*_ref` (https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c), which the `gguf` package repeats
in numpy. The K-quants need ggml itself; the embedded engine reads none of 5 bits.
"""

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch

from compressor.checkpoint.disk import need_room, refuse_full_disk
from compressor.checkpoint.source import Entry, Source
from compressor.errors import BadCheckpointError, BadRecipeError
from compressor.export.gguf_names import Shape, gguf_name, shape_of, write_shape
from compressor.export.gguf_source import rotary_order
from compressor.export.gguf_vocabulary import write_vocabulary
from compressor.screen import Screen

FILE = "model.gguf"
BESIDE = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


@dataclass(frozen=True, slots=True)
class Kind:
    """`linear`: of the blocks' matrices; `table`: of embeddings and head, which 4 bits hurt most. `file`: what the
    header must call the whole: the library decides by it whether it looks for scales at all."""

    linear: gguf.GGMLQuantizationType
    table: gguf.GGMLQuantizationType
    file: gguf.LlamaFileType


_TYPES, _FILES = gguf.GGMLQuantizationType, gguf.LlamaFileType
KINDS = {
    "F16": Kind(_TYPES.F16, _TYPES.F16, _FILES.MOSTLY_F16),
    "Q8_0": Kind(_TYPES.Q8_0, _TYPES.Q8_0, _FILES.MOSTLY_Q8_0),
    "Q4_0": Kind(_TYPES.Q4_0, _TYPES.Q8_0, _FILES.MOSTLY_Q4_0),
    "Q4_1": Kind(_TYPES.Q4_1, _TYPES.Q8_0, _FILES.MOSTLY_Q4_1),
}


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor of the file: `name` in the checkpoint, `target` in GGUF, `stored` its type there."""

    name: str
    target: str
    stored: gguf.GGMLQuantizationType
    entry: Entry

    @property
    def size_bytes(self) -> int:
        block, block_bytes = gguf.GGML_QUANT_SIZES[self.stored]
        size: int = math.prod(self.entry.shape) // block * block_bytes
        return size

    @property
    def is_linear(self) -> bool:
        return len(self.entry.shape) == 2 and self.target.startswith("blk.")


class GGUF:
    """The exporter behind `export: {format: gguf, type: Q8_0}`."""

    def scheme(self, kind: str | None) -> str:
        _kind(kind)
        return f"GGUF_{kind}"

    def check(self, config: dict[str, Any], kind: str | None) -> None:
        shape, blocks = shape_of(config), gguf.GGML_QUANT_SIZES[_kind(kind).linear][0]
        for what, width in {
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "heads": shape.heads * shape.head_dim,
        }.items():
            if width % blocks:
                raise BadCheckpointError(
                    f"its {what} is {width}, and {kind} wants rows of whole blocks of {blocks}: F16"
                )

    def run(self, folder: Path, destination: Path, kind: str | None, screen: Screen) -> dict[str, Any]:
        source = Source(folder)
        self.check(source.config, kind)
        pieces = list(_pieces(source, _kind(kind)))
        destination.mkdir(parents=True)
        need_room(destination, sum(piece.size_bytes for piece in pieces))
        with refuse_full_disk(destination):
            _write(source, destination / FILE, pieces, _kind(kind), screen)
            for name in BESIDE:
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, destination / name)
        return _bits(pieces)


def _kind(kind: str | None) -> Kind:
    if kind not in KINDS:
        raise BadRecipeError(f"export.type {kind!r} is none that GGUF is written in here: {', '.join(KINDS)}")
    return KINDS[kind]


def _pieces(source: Source, kind: Kind) -> Iterator[Piece]:
    shape = shape_of(source.config)
    for name, entry in source.entries.items():
        target = gguf_name(name, is_tied=shape.is_tied)
        if target is None:
            continue
        stored = _TYPES.F32  # norms and biases: the reader adds them to float32, and they cost nothing
        if len(entry.shape) == 2:
            stored = kind.linear if target.startswith("blk.") else kind.table
        yield Piece(name, target, stored, entry)


def _write(source: Source, file: Path, pieces: list[Piece], kind: Kind, screen: Screen) -> None:
    shape = shape_of(source.config)
    writer = gguf.GGUFWriter(file, shape.architecture)
    try:
        writer.add_name(source.folder.resolve().name)
        writer.add_file_type(kind.file)
        write_shape(writer, shape)
        write_vocabulary(writer, source.folder, source.entries["model.embed_tokens.weight"].shape[0])
        for piece in pieces:
            writer.add_tensor_info(
                piece.target, piece.entry.shape, np.dtype(np.float32), piece.size_bytes, raw_dtype=piece.stored
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with screen.work("writing GGUF", len(pieces)):
            for piece in pieces:
                writer.write_tensor_data(_stored(source.read(piece.name), piece, shape))
                screen.step(f"{piece.target}: {piece.stored.name}")
    finally:
        writer.close()


def _stored(w: torch.Tensor, piece: Piece, shape: Shape) -> npt.NDArray[Any]:
    """The bytes of one tensor. Raises BadCheckpointError for values that float16, of weights or scales, cannot hold."""
    values = w.float().numpy()
    if piece.stored == _TYPES.F32:
        return np.ascontiguousarray(values)
    if shape.architecture == "llama" and ".attn_q." in piece.target:
        values = values[rotary_order(values.shape[0], shape.heads)]
    elif shape.architecture == "llama" and ".attn_k." in piece.target:
        values = values[rotary_order(values.shape[0], shape.kv_heads)]
    if np.abs(values).max(initial=0.0) > np.finfo(np.float16).max:
        raise BadCheckpointError(
            f"tensor {piece.name} has values beyond float16, which GGUF's {piece.stored.name} holds"
        )
    if piece.stored == _TYPES.F16:
        return np.ascontiguousarray(values, dtype=np.float16)
    return gguf.quantize(np.ascontiguousarray(values), piece.stored)  # type: ignore[no-any-return]


def _bits(pieces: list[Piece]) -> dict[str, Any]:
    """True bits, scales included; the tokenizer in the file is not counted."""

    def average(chosen: list[Piece]) -> float | None:
        count = sum(math.prod(piece.entry.shape) for piece in chosen)
        return round(sum(piece.size_bytes for piece in chosen) * 8 / count, 4) if count else None

    linears = average([piece for piece in pieces if piece.is_linear])
    return {"bits_per_weight": average(pieces), "bits_per_linear_weight": linears}
