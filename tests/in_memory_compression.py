"""Methods over a whole small model without files: blocks are changed one after the other, and what is lost is measured
on held-out text as the blocks go by, with inputs rounded as the scheme says an engine does."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compressor.block import Batch, Block
from compressor.calibration import load_rows, load_tokenizer
from compressor.checkpoint.source import Source
from compressor.families import family_of
from compressor.numbers.activations import fake_quantize
from compressor.numbers.schemes import Activations
from compressor.passes import Rows
from compressor.quality.divergence import Divergence, Surprise
from compressor.recipe import CalibrationSettings
from compressor.skeleton import Skeleton

PROSE = Path(__file__).parents[1] / "compression" / "data" / "prose.txt"


@dataclass(frozen=True, slots=True)
class Lost:
    """On held-out prose: perplexity, and KL(parent‖child) in nats a token. `bits`: true ones of a linear's weight."""

    perplexity: float
    kl: float
    bits: float
    facts: dict[str, dict[str, Any]]


class Bench:
    """One checkpoint, its logits on held-out prose, and what methods do to it."""

    def __init__(self, folder: Path, windows: int = 16, length: int = 256) -> None:
        self.source = Source(folder)
        self.tokenizer = load_tokenizer(folder)
        ids = self.tokenizer(PROSE.read_text("utf-8"), verbose=False)["input_ids"][: windows * length]
        self.ids_WT = torch.tensor(ids).reshape(-1, length)
        self.parent_WTV, _ = self._through([], [])
        surprise = Surprise()
        surprise.add(self.parent_WTV, self.ids_WT)
        self.perplexity = surprise.perplexity

    def calibration(self, seed: int = 0, samples: int = 64, seq_len: int = 256) -> list[Rows]:
        return load_rows(CalibrationSettings(samples=samples, seq_len=seq_len, seed=seed), self.tokenizer, None)[0]

    def lose(self, methods: Sequence[Any], rows: list[Rows]) -> Lost:
        """What the checkpoint is worth after `methods`, calibrated on `rows`."""
        logits_WTV, blocks = self._through(methods, rows)
        surprise, divergence = Surprise(), Divergence()
        surprise.add(logits_WTV, self.ids_WT)
        divergence.add(self.parent_WTV, logits_WTV)
        facts = {f"{block.name}.{name}": block.facts.get(name, {}) for block in blocks for name in block.linears()}
        sizes = [_size_bits(block, name) for block in blocks for name in block.linears()]
        weights = [block.weight(name).numel() for block in blocks for name in block.linears()]
        return Lost(surprise.perplexity, divergence.nats / divergence.tokens, sum(sizes) / sum(weights), facts)

    @torch.no_grad()
    def _through(self, methods: Sequence[Any], rows: list[Rows]) -> tuple[Tensor, list[Block]]:
        family = family_of(self.source.config)
        skeleton = Skeleton(self.source, family, torch.device("cpu"))
        calibration = skeleton.embed(rows) if rows else []
        held_out = skeleton.embed([Rows(self.ids_WT, torch.ones_like(self.ids_WT, dtype=torch.bool))])
        blocks = []
        for index in range(skeleton.count):
            module = skeleton.block(index)
            block = Block(index, skeleton.count, family.block(index), module, family, self.source.config, calibration)
            for method in methods:
                method.apply(block)
            _round_as_stored(block, self.source.dtype)
            calibration = [_after(block, batch) for batch in calibration]
            kinds = [kind for method in methods if method.scheme and (kind := method.scheme.activations)]
            _round_inputs(block, kinds)
            held_out = [_after(block, batch) for batch in held_out]
            block.batches = []
            blocks.append(block)
        return skeleton.logits(held_out[0].hidden_BTD), blocks


def _after(block: Block, batch: Batch) -> Batch:
    return replace(batch, hidden_BTD=block.forward(batch))


def _round_as_stored(block: Block, dtype: torch.dtype) -> None:
    for name, parameter in block.module.named_parameters():
        if name.removesuffix(".weight") not in block.encoded:
            parameter.data.copy_(parameter.to(dtype))


def _round_inputs(block: Block, kinds: Sequence[Activations]) -> None:
    for kind in kinds:
        for name in block.linears():
            block.linear(name).register_forward_pre_hook(
                lambda _module, args, kind=kind: (fake_quantize(args[0], kind), *args[1:])
            )


def _size_bits(block: Block, name: str) -> int:
    if name in block.encoded:
        return block.encoded[name].size_bits()
    return int(block.facts.get(name, {}).get("size_bits", 16 * block.weight(name).numel()))
