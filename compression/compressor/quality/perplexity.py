"""Perplexity of a model in memory, and of one that is larger than memory, block by block: the same figure."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from compressor.block import Batch
from compressor.families import family_of
from compressor.passes import Rows
from compressor.quality.dense import DenseSource
from compressor.quality.divergence import Surprise, logits_of
from compressor.quality.served import ATTENTION, has_fp8_cache, keep_cache_in_fp8, read_adapter, serve
from compressor.screen import Screen
from compressor.skeleton import Skeleton

# A batch of windows: enough for a matrix product to be busy, and no more logits than a quarter of a gigabyte holds.
BATCH_TOKENS = 4096
BATCH_LOGITS = 2**26
# Hidden states that wait between two blocks, all windows of a pass together.
PASS_BYTES = 2 * 2**30


def batches(ids_WT: Tensor, tokens: int) -> Iterator[Tensor]:
    """Windows in batches of at most `tokens` tokens, one window at least; none of none."""
    if len(ids_WT):
        yield from ids_WT.split(max(1, tokens // ids_WT.shape[1]))


def batch_tokens(vocabulary: int) -> int:
    """Tokens a batch; the same for every model with these tokens, so that batches of two models match."""
    return max(1, min(BATCH_TOKENS, BATCH_LOGITS // vocabulary))


def logits_in_memory(model: torch.nn.Module, ids_WT: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(ids [B, T], logits [B, T, vocabulary]) of all windows, batch by batch."""
    for ids_BT in batches(ids_WT, batch_tokens(int(model.config.vocab_size))):
        yield ids_BT, logits_of(model, ids_BT)


def streamed_logits(
    source: DenseSource,
    ids_WT: Tensor,
    screen: Screen,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    pass_bytes: int = PASS_BYTES,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The same of a model of which one block at a time is in memory, with the hidden states of all windows of a pass.

    Text whose hidden states are more than `pass_bytes` is taken in several passes over the blocks. Raises
    BadCheckpointError.
    """
    skeleton = Skeleton(source, family_of(source.config), torch.device(device), dtype)
    bytes_a_token = int(source.config["hidden_size"]) * dtype.itemsize
    for windows_WT in batches(ids_WT, max(1, pass_bytes // bytes_a_token)):
        parts = list(batches(windows_WT, batch_tokens(int(source.config["vocab_size"]))))
        states = _through_blocks(skeleton, source, parts, screen)
        for part, state in zip(parts, states, strict=True):
            with torch.inference_mode():
                yield part, skeleton.logits(state.hidden_BTD)


def perplexity(stream: Iterable[tuple[Tensor, Tensor]]) -> float:
    """exp(mean over windows of the mean nats of a token)."""
    surprise = Surprise()
    for ids_BT, logits_BTV in stream:
        surprise.add(logits_BTV, ids_BT)
    return surprise.perplexity


@torch.inference_mode()
def _through_blocks(skeleton: Skeleton, source: DenseSource, parts: list[Tensor], screen: Screen) -> list[Batch]:
    states: list[Batch] = skeleton.embed(Rows(part, torch.ones_like(part, dtype=torch.bool)) for part in parts)
    adapter = read_adapter(source.folder)
    with screen.work("blocks measured", skeleton.count):
        for index in range(skeleton.count):
            block = _served_block(skeleton, source, index, adapter)
            states = [replace(state, hidden_BTD=_forward(block, state)) for state in states]
            screen.step(f"block {index + 1} of {skeleton.count}")
    return states


def _served_block(
    skeleton: Skeleton, source: DenseSource, index: int, adapter: dict[str, tuple[Tensor, Tensor]]
) -> torch.nn.Module:
    name = skeleton.family.block(index)
    if has_fp8_cache(source):
        skeleton.config._attn_implementation = ATTENTION
    block = skeleton.block(index)
    serve(block, name, source, adapter)
    if has_fp8_cache(source):
        keep_cache_in_fp8(block, name, source)
    return block


def _forward(block: torch.nn.Module, state: Batch) -> Tensor:
    out = block(state.hidden_BTD, **state.kwargs)
    hidden: Tensor = out[0] if isinstance(out, tuple) else out
    return hidden
