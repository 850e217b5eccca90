"""A checkpoint with the outlier channels of a large model, that computes what it computed before.

A few channels of every norm's scale are multiplied and the columns that read them divided, by a power of two, so that
bfloat16 holds both exactly: activations get outliers, weights a wider spread, logits stay as they are.
"""

import random
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

FACTOR = 32.0
READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


def with_outliers(parent: Path, folder: Path, seed: int, channels: int = 4) -> Path:
    """A copy of `parent` (Qwen3 or Llama, one file) in which `channels` residual channels are `FACTOR` times larger."""
    shutil.copytree(parent, folder)
    (folder / "penstock.json").unlink(missing_ok=True)
    tensors = load_file(folder / "model.safetensors")
    width = tensors["model.norm.weight"].numel()
    chosen = random.Random(seed).sample(range(width), channels)
    for norm, readers in READERS.items():
        for name in [name for name in tensors if name.endswith(f"{norm}.weight")]:
            tensors[name][chosen] *= FACTOR
            block = name.removesuffix(f"{norm}.weight")
            for reader in readers:
                tensors[f"{block}{reader}.weight"][:, chosen] /= FACTOR
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
