"""Low-rank factors as a LoRA adapter in PEFT's layout, which engines load beside the checkpoint it belongs to.

A folder with adapter_config.json and adapter_model.safetensors. Ranks are equal (smaller ones are filled up with zeros)
and alpha = r, so that the scale is 1 and y = Wx + B(Ax). Layout as PEFT 0.21 writes it.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from compressor.checkpoint.disk import refuse_full_disk
from compressor.checkpoint.pieces import Pieces
from compressor.checkpoint.sink import Sink, write_json
from compressor.errors import BadCheckpointError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
# What would make the adapter more than B·A beside a weight.
_UNKNOWN = ("use_dora", "use_rslora", "lora_bias", "rank_pattern", "alpha_pattern", "modules_to_save", "fan_in_fan_out")


def write(folder: Path, pieces: Sink, base: str) -> None:
    """From pieces of tensors named LINEAR.lora_A.weight [rank, in] and LINEAR.lora_B.weight [out, rank].

    `base`: the name of the checkpoint they belong to. Raises NoSpaceError.
    """
    tensors: dict[str, Tensor] = {}
    for file in sorted(pieces.folder.glob("piece-*.safetensors")):
        piece = Pieces(pieces.folder, file.stem.removeprefix("piece-"))
        tensors |= {name: piece.read(name) for name in piece.entries}
    rank = max(tensor.shape[0] for name, tensor in tensors.items() if ".lora_A." in name)
    filled = {_PREFIX + name: _filled(name, tensor, rank) for name, tensor in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    with refuse_full_disk(folder):
        save_file(filled, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / WEIGHTS).chmod(0o644)
        write_json(folder / CONFIG, _config([name.split(".lora_")[0] for name in tensors], rank, base))


def read(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Factors A [rank, in] and B [out, rank] by the linear's name, float32, the scale already in B.

    Raises BadCheckpointError for what is no plain LoRA.
    """
    config = _read_config(folder)
    scale = float(config["lora_alpha"]) / int(config["r"])
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise BadCheckpointError(f"{folder / WEIGHTS} cannot be read: {error}") from error
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for name in [name for name in tensors if name.endswith(".lora_A.weight")]:
        linear = name.removesuffix(".lora_A.weight")
        b_OR = tensors.get(f"{linear}.lora_B.weight")
        if b_OR is None:
            raise BadCheckpointError(f"{folder / WEIGHTS} has {name} and no {linear}.lora_B.weight")
        factors[linear.removeprefix(_PREFIX)] = tensors[name].float(), b_OR.float() * scale
    if 2 * len(factors) != len(tensors):
        raise BadCheckpointError(f"{folder / WEIGHTS} holds more than the factors of linears")
    return factors


def _filled(name: str, tensor: Tensor, rank: int) -> Tensor:
    side = 0 if ".lora_A." in name else 1
    missing = rank - tensor.shape[side]
    if not missing:
        return tensor.contiguous()
    shape = (missing, tensor.shape[1]) if side == 0 else (tensor.shape[0], missing)
    return torch.cat([tensor, tensor.new_zeros(shape)], side).contiguous()


def _config(linears: list[str], rank: int, base: str) -> dict[str, Any]:
    return {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted({linear.rpartition(".")[2] for linear in linears}),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadCheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA" or not config.get("r"):
        raise BadCheckpointError(f"{path} describes no LoRA adapter")
    if odd := [key for key in _UNKNOWN if config.get(key)]:
        raise BadCheckpointError(f"{path} asks for {' and '.join(odd)}: only plain LoRA is known here")
    return config
