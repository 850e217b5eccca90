"""The sequential driver: one block at a time through all block methods, with the inputs that compressed blocks produce.

Peak memory is one block, the activations of the calibration windows, and the embeddings. A block that is done is on
disk; after an interruption the driver runs the data through the stored blocks and goes on with the next one, and makes
the same bytes as an uninterrupted run: what later blocks see is always what was stored.
Methods.md's description of this loop follows GPTQ (arXiv 2210.17323) and SparseGPT (arXiv 2301.00774).
"""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from compressor.block import Batch, Block
from compressor.checkpoint.pieces import Pieces
from compressor.checkpoint.sink import Sink, write_json
from compressor.formats.base import Format
from compressor.methods.base import BlockMethod
from compressor.numbers.encoded import Encoded
from compressor.screen import Screen
from compressor.skeleton import Skeleton


class BlockPass:
    """Runs `methods` over every block of `skeleton` and writes the pieces into `sink`.

    `batches`: what reaches the first block; none when no method needs inputs. `layers`: facts of each linear, by full
    name, once `run` is through. `dtype`: what dense weights are stored in.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        methods: Sequence[BlockMethod],
        layout: Format,
        sink: Sink,
        screen: Screen,
        ignore: frozenset[str] = frozenset(),
    ) -> None:
        self._skeleton, self._methods, self._layout = skeleton, methods, layout
        self._sink, self._screen, self._ignore = sink, screen, ignore
        self._adapters = Sink(sink.folder / "adapter-pieces")
        self._dtype = skeleton.source.dtype
        self.layers: dict[str, dict[str, Any]] = {}

    def run(self, batches: list[Batch]) -> None:
        """Raises CompressorError; what is done stays on disk."""
        count = self._skeleton.count
        done = next((index for index in range(count) if not self._sink.has(_piece(index))), count)
        if done:
            self._screen.say(f"going on after block {done} of {count}, from an interrupted run")
        if not self._sink.has("00000-outside"):
            self._sink.write("00000-outside", self._skeleton.outside())
        if done < count:
            self._survey(batches)
        with self._screen.work("blocks", count, done):
            for index in range(count):
                batches = self._redo(index, batches) if index < done else self._do(index, batches)

    def _survey(self, batches: list[Batch]) -> None:
        """Every block, unchanged, is shown to the methods that decide over all of them before the first is changed."""
        methods: list[Any] = [method for method in self._methods if getattr(method, "needs_survey", False)]
        if not methods:
            return
        with self._screen.work("blocks to look at first", self._skeleton.count):
            for index in range(self._skeleton.count):
                block = self._block(index, batches)
                for method in methods:
                    method.survey(block)
                batches = [replace(batch, hidden_BTD=block.forward(batch)) for batch in batches]
                self._screen.step(f"block {index + 1} of {self._skeleton.count} seen")

    def _do(self, index: int, batches: list[Batch]) -> list[Batch]:
        block = self._block(index, batches)
        before = [block.forward(batch) for batch in batches]
        for method in self._methods:
            method.apply(block)
        _round_dense(block, self._dtype)
        after = [replace(batch, hidden_BTD=block.forward(batch)) for batch in batches]
        error = _relative_error(before, after)
        self._write(block, error)
        told = "" if error is None else f", output error {error:.2e}"
        self._screen.step(f"block {index + 1} of {self._skeleton.count}{told}")
        return after

    def _redo(self, index: int, batches: list[Batch]) -> list[Batch]:
        """The outputs of a block that an earlier run has stored."""
        facts = json.loads(self._facts(index).read_text("utf-8"))
        self.layers.update(facts["layers"])
        if not batches:
            return []
        block = self._block(index, batches)
        stored = Pieces(self._sink.folder, _piece(index))
        for name, parameter in block.module.named_parameters():
            full = f"{block.name}.{name}"
            linear = full.removesuffix(".weight")
            is_encoded = linear in facts["encoded"]
            value = self._layout.read(stored, linear).dense() if is_encoded else stored.read(full)
            parameter.data.copy_(value)
        for name, (a_RI, b_OR) in self._factors(index).items():
            block.adapt(name.removeprefix(f"{block.name}."), a_RI, b_OR)
        return [replace(batch, hidden_BTD=block.forward(batch)) for batch in batches]

    def _block(self, index: int, batches: list[Batch]) -> Block:
        skeleton = self._skeleton
        return Block(
            index=index,
            count=skeleton.count,
            name=skeleton.family.block(index),
            module=skeleton.block(index),
            family=skeleton.family,
            config=skeleton.source.config,
            batches=batches,
            ignore=self._ignore,
        )

    def _write(self, block: Block, error: float | None) -> None:
        """Factors and facts first: the block's own piece says that all of it is there."""
        layers = {f"{block.name}.{name}": facts | _sizes(block, name) for name, facts in _facts(block).items()}
        if error is not None:
            layers[block.name] = {"output_error": error}
        if block.adapters:
            factors = {
                f"{block.name}.{name}.lora_{side}.weight": factor
                for name, pair in block.adapters.items()
                for side, factor in zip("AB", pair, strict=True)
            }
            self._adapters.write(f"{block.index:05}", factors)
        encoded = [f"{block.name}.{name}" for name in block.encoded]
        fresh = self._facts(block.index).with_suffix(".part")
        write_json(fresh, {"layers": layers, "encoded": encoded})
        os.replace(fresh, self._facts(block.index))
        self._sink.write(_piece(block.index), self._tensors(block))
        self.layers.update(layers)

    def _tensors(self, block: Block) -> dict[str, Tensor]:
        tensors = self._layout.extras(block.extras)
        for name, parameter in block.module.state_dict().items():
            weight: Encoded | None = (
                block.encoded.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
            )
            full = f"{block.name}.{name}"
            if weight is None:
                tensors[full] = parameter.to(self._dtype)
            else:
                tensors |= self._layout.tensors(full.removesuffix(".weight"), weight, self._dtype)
        return tensors

    def _factors(self, index: int) -> dict[str, tuple[Tensor, Tensor]]:
        """What an earlier run put beside the linears of a block, by full name."""
        if not self._adapters.has(f"{index:05}"):
            return {}
        stored = Pieces(self._adapters.folder, f"{index:05}")
        linears = [name.removesuffix(".lora_A.weight") for name in stored.entries if name.endswith(".lora_A.weight")]
        return {name: (stored.read(f"{name}.lora_A.weight"), stored.read(f"{name}.lora_B.weight")) for name in linears}

    def _facts(self, index: int) -> Any:
        return self._sink.folder / f"facts-{index:05}.json"


def _piece(index: int) -> str:
    return f"{index + 1:05}"


def _facts(block: Block) -> dict[str, dict[str, Any]]:
    return {name: block.facts.get(name, {}) for name in block.linears()}


def _sizes(block: Block, name: str) -> dict[str, Any]:
    """What the manifest counts: weights, zeros among them, and bits where they are encoded (unless the method, as
    SpQR does, has counted them itself)."""
    weight, dense = block.encoded.get(name), block.weight(name)
    sizes = {"weights": dense.numel(), "zeros": dense.numel() - int(torch.count_nonzero(dense))}
    if weight is not None and "size_bits" not in block.facts.get(name, {}):
        sizes["size_bits"] = weight.size_bits()
    return sizes


def _round_dense(block: Block, dtype: torch.dtype) -> None:
    """Later blocks, and a run that is resumed, see what the files will hold."""
    for name, parameter in block.module.named_parameters():
        if name.removesuffix(".weight") not in block.encoded:
            parameter.data.copy_(parameter.to(dtype))


def _relative_error(before: list[Tensor], after: list[Batch]) -> float | None:
    """‖compressed − original‖² / ‖original‖² of the block's output, on the same inputs, padding left out."""
    if not before:
        return None
    lost = kept = 0.0
    for original, batch in zip(before, after, strict=True):
        real = batch.real_BT
        lost += float((batch.hidden_BTD - original)[real].double().square().sum())
        kept += float(original[real].double().square().sum())
    return lost / kept if kept else 0.0
