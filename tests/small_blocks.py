"""Small things that methods are tried on: weights and correlated inputs of known seeds, one block of a tiny model."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compressor.block import Block
from compressor.checkpoint.source import Source
from compressor.families import family_of
from compressor.passes import Rows
from compressor.skeleton import Skeleton


def weights(seed: int = 1, outputs: int = 24, inputs: int = 64) -> Tensor:
    """Normal, float64."""
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(outputs, inputs)))


def inputs(seed: int = 2, tokens: int = 512, width: int = 64) -> Tensor:
    """Correlated: a few directions carry most of the energy. float64."""
    random = np.random.default_rng(seed)
    basis = random.normal(size=(width, width)) * (np.arange(1, width + 1) ** -0.7)[:, None]
    return torch.from_numpy(random.normal(size=(tokens, width)) @ basis)


def moments(x_TI: Tensor) -> Tensor:
    return 2 / len(x_TI) * x_TI.T @ x_TI


def relative_error(w_OI: Tensor, other_OI: Tensor, h_II: Tensor) -> float:
    lost = w_OI - other_OI
    return float(torch.einsum("oi,ij,oj->", lost, h_II, lost) / torch.einsum("oi,ij,oj->", w_OI, h_II, w_OI))


def llama(**changes: Any) -> Any:
    """Two key/value heads for four query heads, biases on attention's linears."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "attention_bias": True,
        "max_position_embeddings": 64,
    }
    return LlamaForCausalLM(LlamaConfig(**(shape | changes)))


def opt(**changes: Any) -> Any:
    """Layer norms with biases, biases everywhere, one value head for each query head."""
    from transformers import OPTConfig, OPTForCausalLM

    shape = {
        "vocab_size": 96,
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
    return OPTForCausalLM(OPTConfig(**(shape | changes)))


def first_block(model: Any, folder: Path, ignore: frozenset[str] = frozenset()) -> Block:
    """Its first block with random norms and biases, some input channels much larger than others, and 96 tokens."""
    random = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=random)
        if "norm" in name:
            parameter.data[:3] *= 12
    model.save_pretrained(folder)
    source = Source(folder)
    family = family_of(source.config)
    skeleton = Skeleton(source, family, torch.device("cpu"))
    ids = torch.randint(4, 96, (4, 24), generator=random)
    batches = skeleton.embed([Rows(ids, torch.ones_like(ids, dtype=torch.bool))])
    return Block(0, 1, family.block(0), skeleton.block(0), family, source.config, batches, ignore)
