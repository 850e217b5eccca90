"""From the YAML to a model repository: config.pbtxt templates filled in, model.py files beside them.

Apart from serve.py, because a repository for a GPU machine is rendered anywhere and served there.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from string import Template

import yaml

from triton_launcher.errors import LauncherError
from triton_launcher.settings import CpuEngine, LlmApiEngine, Repository, TensorRtEngine

LEGACY = ("preprocessing", "tensorrt_llm", "postprocessing", "ensemble", "tensorrt_llm_bls")
MODELS = {"legacy": LEGACY, "llmapi": ("tensorrt_llm",)}
_SHELVES = {"legacy": "inflight_batcher_llm", "llmapi": "llmapi"}
_VERSION = "1"


def render(repository: Repository, shelf: Path, out: Path, cache: Path) -> tuple[str, ...]:
    """Write the repository to `out` and return its models, in the order in which they load.

    `shelf` is model_repo/triton; `cache` is where the CPU engine keeps conversions. Raises LauncherError.
    """
    _clear(out)
    models = MODELS[repository.contract]
    for model in models:
        source = shelf / _SHELVES[repository.contract] / model
        values = _values(repository, model, cache)
        version = out / model / _VERSION
        version.mkdir(parents=True)
        template = Template((source / "config.pbtxt").read_text("utf-8"))
        (out / model / "config.pbtxt").write_text(template.substitute(values), "utf-8")
        for file in _files(repository, model, source):
            shutil.copyfile(file, version / file.name)
    if repository.contract == "llmapi":
        _write_model_yaml(repository, out / "tensorrt_llm" / _VERSION / "model.yaml")
    return models


def _clear(out: Path) -> None:
    """Only what an earlier rendering left is removed."""
    try:
        strange = [path for path in out.iterdir() if path.name not in LEGACY] if out.exists() else []
        if strange:
            raise LauncherError(f"{out} holds {strange[0].name}, which was not rendered: name an empty folder")
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
    except OSError as error:
        raise LauncherError(f"cannot write the model repository to {out}: {error.strerror}") from error


def _files(repository: Repository, model: str, source: Path) -> list[Path]:
    engine = repository.engine
    if isinstance(engine, TensorRtEngine) and model == "tensorrt_llm":
        return []
    folder = engine.source if isinstance(engine, LlmApiEngine) else source / _VERSION
    files = sorted(folder.glob("*.py"))
    if not files and model != "ensemble":
        raise LauncherError(
            f"{folder} holds no model.py; engine.source is the folder of TensorRT-LLM's own llmapi model "
            "(triton_backend/all_models/llmapi/tensorrt_llm/1 of its sources)"
        )
    return files


def _values(repository: Repository, model: str, cache: Path) -> dict[str, str]:
    """What the ${placeholders} of one template mean."""
    engine, batching = repository.engine, repository.batching
    counts = repository.instances.model_dump() | {"tensorrt_llm_bls": repository.instances.bls}
    datatypes = {
        name: str(getattr(engine, name, default))
        for name, default in (
            ("logits_datatype", "TYPE_FP32"),
            ("prompt_embedding_table_datatype", "TYPE_FP16"),
            ("encoder_input_features_datatype", "TYPE_FP16"),
        )
    }
    return datatypes | {
        "backend": "tensorrtllm" if isinstance(engine, TensorRtEngine) else "python",
        "max_batch_size": str(batching.max_batch_size),
        "max_queue_delay_us": str(batching.max_queue_delay_us),
        "max_queue_size": str(batching.max_queue_size),
        "decoupled": _text(repository.decoupled),
        "instances": str(counts.get(model, 1)),
        "parameters": _block(_parameters(repository, model, cache)),
    }


def _parameters(repository: Repository, model: str, cache: Path) -> Mapping[str, object]:
    tokenizer_dir = {"tokenizer_dir": repository.checkpoint}
    skip = {"skip_special_tokens": repository.tokenizer.skip_special_tokens}
    if model == "preprocessing":
        return tokenizer_dir | {"add_special_tokens": repository.tokenizer.add_special_tokens}
    if model == "postprocessing":
        return tokenizer_dir | skip
    if model == "tensorrt_llm_bls":
        return tokenizer_dir | skip | {"tensorrt_llm_model_name": "tensorrt_llm"} | repository.bls.model_dump()
    if isinstance(repository.engine, CpuEngine):
        return _cpu_parameters(repository, repository.engine, cache)
    return _tensorrt_parameters(repository, repository.engine) if isinstance(repository.engine, TensorRtEngine) else {}


def _cpu_parameters(repository: Repository, engine: CpuEngine, cache: Path) -> Mapping[str, object]:
    return {
        "checkpoint": repository.checkpoint,
        "cache_dir": cache,
        "precision": engine.precision,
        "threads": engine.threads,
        "max_running": engine.max_running,
        "max_waiting": engine.max_waiting,
        "grammar_timeout_s": engine.grammar_timeout_s,
        "kv_cache_gb": engine.kv_cache.gb,
        "enable_kv_cache_reuse": engine.kv_cache.reuse,
    }


def _tensorrt_parameters(repository: Repository, engine: TensorRtEngine) -> Mapping[str, object]:
    """The backend's own keys (tensorrt_llm/config.pbtxt of TensorRT-LLM's triton_backend)."""
    return {
        "gpt_model_path": engine.engine_dir,
        "gpt_model_type": engine.batching,
        "batch_scheduler_policy": engine.scheduler_policy,
        "max_beam_width": engine.max_beam_width,
        "enable_chunked_context": engine.chunked_context,
        "kv_cache_free_gpu_mem_fraction": engine.kv_cache.free_gpu_mem_fraction,
        "max_tokens_in_paged_kv_cache": engine.kv_cache.max_tokens,
        "kv_cache_host_memory_bytes": engine.kv_cache.host_memory_bytes,
        "enable_kv_cache_reuse": engine.kv_cache.reuse,
        "exclude_input_in_output": False,
        "decoding_mode": engine.decoding_mode,
        "gpu_device_ids": ",".join(map(str, engine.gpu_device_ids)) or None,
        "cancellation_check_period_ms": engine.cancellation_check_period_ms,
        "stats_check_period_ms": engine.stats_check_period_ms,
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
        "executor_worker_path": "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker",
        "guided_decoding_backend": "xgrammar" if engine.xgrammar_tokenizer_info else None,
        "tokenizer_dir": repository.checkpoint if engine.xgrammar_tokenizer_info else None,
        "xgrammar_tokenizer_info_path": engine.xgrammar_tokenizer_info,
    } | engine.parameters


def _block(parameters: Mapping[str, object]) -> str:
    """`parameters` entries in text format; what is None is left out, and the backend's default counts."""
    return "\n".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{_quoted(_text(value))}" }} }}'
        for key, value in parameters.items()
        if value is not None
    )


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _write_model_yaml(repository: Repository, path: Path) -> None:
    """TensorRT-LLM reads it at load: LLM's arguments, and what its config.pbtxt leaves open under triton_config."""
    arguments = repository.engine.arguments if isinstance(repository.engine, LlmApiEngine) else {}
    # The llmapi model does not batch requests inside Triton: 0.
    tree = {"model": str(repository.checkpoint)} | arguments
    tree["triton_config"] = {"max_batch_size": 0, "decoupled": repository.decoupled}
    path.write_text(yaml.safe_dump(tree, sort_keys=False), "utf-8")
