"""A checkpoint with the outliers of large language models and the same function: methods are told apart on it.

A few residual channels come out of every norm `factor` times larger, and the linears after it divide them again
(columns). A power of two, so that nothing is rounded in bfloat16: the logits stay what they were, to the bit.
"""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from compressor.checkpoint.source import Source
from compressor.families import family_of

FACTOR = 32.0
CHANNELS = 4


def inject(source: Path, folder: Path, factor: float = FACTOR, channels: int = CHANNELS, seed: int = 0) -> Path:
    """A copy of `source` in `folder` with outliers in the same `channels` random channels of every block."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    tensors = load_file(folder / "model.safetensors")
    opened = Source(source)
    family = family_of(opened.config)
    width = opened.config["hidden_size"]
    chosen = torch.randperm(width, generator=torch.Generator().manual_seed(seed))[:channels]
    for index in range(opened.config["num_hidden_layers"]):
        for group in family.groups:
            norm = f"{family.block(index)}.{group.source}"
            if not group.source.endswith("norm"):
                continue
            for name in (f"{norm}.weight", f"{norm}.bias"):
                if name in tensors:
                    tensors[name][chosen] *= factor
            for name in group.linears:
                tensors[f"{family.block(index)}.{name}.weight"][:, chosen] /= factor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
