"""Any checkpoint of ours as a model of transformers that computes what an engine would: weights decoded, inputs and
cached keys rounded, factors beside, in one dtype throughout (float32: rounding of the arithmetic itself left out).
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compressor.calibration import load_tokenizer
from compressor.errors import BadCheckpointError
from compressor.quality.dense import DenseSource
from compressor.quality.served import ATTENTION, has_fp8_cache, keep_cache_in_fp8, read_adapter, serve

# Networks that transformers does not have, by the beginning of config.json's model_type: who builds them, on meta.
BUILDERS = {
    "sliced_": "compressor.methods.slicegpt.model:build_sliced",
    "uneven_": "compressor.methods.llm_pruner.model:build_uneven",
}


def load_dense(folder: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> tuple[Any, Any]:
    """(model, tokenizer). Raises BadCheckpointError where files, configuration and architecture do not match."""
    source = DenseSource(folder)
    tokenizer = load_tokenizer(folder)
    model = _empty(source)
    tensors = {name: source.read(name).to(device, dtype) for name in source.entries}
    try:
        missing = model.load_state_dict(tensors, strict=False, assign=True)
    except RuntimeError as error:
        raise BadCheckpointError(f"{folder} does not fit its config.json: {error}") from error
    if missing.unexpected_keys:
        raise BadCheckpointError(f"{folder}: tensor {missing.unexpected_keys[0]} is none of its architecture's")
    model.tie_weights()
    if empty := next((name for name, tensor in model.named_parameters() if tensor.is_meta), None):
        raise BadCheckpointError(f"{folder} has no tensor {empty}, which its config.json asks for")
    model = model.to(device).eval().requires_grad_(False)
    serve(model, "", source, read_adapter(folder))
    if has_fp8_cache(source):
        keep_cache_in_fp8(model, "", source)
        model.set_attn_implementation(ATTENTION)
    return model, tokenizer


def _empty(source: DenseSource) -> Any:
    """The architecture on the meta device, with its computed tables."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    config = dict(source.config)
    model_type = str(config.pop("model_type", None))
    builder = next((path for prefix, path in BUILDERS.items() if model_type.startswith(prefix)), None)
    if builder is not None:
        module, _, function = builder.partition(":")
        model: Any = getattr(import_module(module), function)(dict(source.config))
    else:
        try:
            made = AutoConfig.for_model(model_type, **config)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(made, attn_implementation="sdpa")
        except (ValueError, KeyError, TypeError) as error:
            raise BadCheckpointError(
                f"transformers cannot build what {source.folder}/config.json says: {error}"
            ) from error
        _compute_tables(model, made)
    if (source.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(source.folder)
    return model


def _compute_tables(model: nn.Module, config: Any) -> None:
    """Rotary tables are computed and not stored: on meta they would stay empty."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if "Rotary" in type(child).__name__:
                setattr(module, name, type(child)(config=config))
