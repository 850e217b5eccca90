"""A block of the starter model with inputs, for the tests of small floats."""

import torch

from compressor.block import Block
from compressor.checkpoint.source import Source
from compressor.families import family_of
from compressor.passes import Rows
from compressor.skeleton import Skeleton
from starter import STARTER

LINEARS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


def first_block(*, with_inputs: bool = True, seed: int = 0) -> Block:
    """Block 0 with four rows of forty tokens, of which the last eight of a row are padding."""
    source = Source(STARTER)
    family = family_of(source.config)
    skeleton = Skeleton(source, family, torch.device("cpu"))
    ids = torch.randint(0, 2000, (4, 40), generator=torch.Generator().manual_seed(seed))
    real = torch.ones_like(ids, dtype=torch.bool)
    real[:, 32:] = False
    batches = skeleton.embed([Rows(ids, real)]) if with_inputs else []
    return Block(0, skeleton.count, family.block(0), skeleton.block(0), family, source.config, batches)
