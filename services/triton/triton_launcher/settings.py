"""The small YAML a person writes: which contract, which engine, how much at once.

Apart from render.py, which knows the model repository; here only shape and vocabulary are judged.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from triton_launcher.errors import LauncherError


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tokenizer(Strict):
    """How text becomes token ids and back."""

    add_special_tokens: bool = Field(True, description="e.g. a BOS token, where the tokenizer has one")
    skip_special_tokens: bool = Field(True, description="leave them out of text_output")


class Batching(Strict):
    """Triton's own queue in front of the models."""

    max_batch_size: int = Field(64, ge=1, description="requests handed over at once; also the models' batch dimension")
    max_queue_delay_us: int = Field(0, ge=0, description="how long a request may wait for others")
    max_queue_size: int = Field(0, ge=0, description="more are refused with UNAVAILABLE; 0: no limit")


class Instances(Strict):
    """Processes of each Python model."""

    preprocessing: int = Field(1, ge=1)
    postprocessing: int = Field(1, ge=1)
    bls: int = Field(1, ge=1)


class Bls(Strict):
    """tensorrt_llm_bls."""

    accumulate_tokens: bool = Field(True, description="text_output is all text so far: no character is ever broken")
    concurrency: int = Field(64, ge=1, description="requests one instance works on at once, a thread each")


class KvCache(Strict):
    """The cache of keys and values. The first three are TensorRT-LLM's, `gb` is the embedded engine's."""

    free_gpu_mem_fraction: float | None = Field(None, gt=0, lt=1, description="of what is free after loading")
    max_tokens: int | None = Field(None, ge=1)
    host_memory_bytes: int | None = Field(None, ge=0, description="offloading of blocks to the CPU's memory")
    reuse: bool = Field(True, description="keep the cache of earlier prompts (prefix caching)")
    gb: int = Field(1, ge=1, description="GiB")


class CpuEngine(Strict):
    """The embedded engine inside Triton's Python backend, for a machine without a GPU."""

    kind: Literal["cpu"]
    precision: Literal["f32", "bf16", "auto"] = "f32"
    threads: int | None = Field(None, ge=1, description="threads that compute; default: the library's choice")
    max_running: int = Field(64, ge=1, description="answers in one continuous batch")
    max_waiting: int = Field(1024, ge=0, description="answers that wait for a place; more are refused as UNAVAILABLE")
    grammar_timeout_s: float = Field(5.0, gt=0, description="longest compilation of a schema, regex or grammar")
    kv_cache: KvCache = KvCache()


class TensorRtEngine(Strict):
    """A compiled TensorRT-LLM engine, run by the `tensorrtllm` backend of NVIDIA's image."""

    kind: Literal["tensorrtllm"]
    engine_dir: Path = Field(description="what trtllm-build wrote, as the server sees it")
    batching: Literal["inflight_fused_batching", "inflight_batching", "V1"] = "inflight_fused_batching"
    scheduler_policy: Literal["max_utilization", "guaranteed_no_evict"] = "guaranteed_no_evict"
    max_beam_width: int = Field(1, ge=1)
    chunked_context: bool = True
    kv_cache: KvCache = KvCache(free_gpu_mem_fraction=0.9)
    xgrammar_tokenizer_info: Path | None = Field(
        None, description="what TensorRT-LLM's generate_xgrammar_tokenizer_info.py wrote; without it no guided decoding"
    )
    decoding_mode: str | None = Field(None, description="auto, top_k_top_p, beam_search, medusa, lookahead, eagle ...")
    gpu_device_ids: list[int] = Field(default_factory=list, description="default: all, one each rank")
    cancellation_check_period_ms: int = Field(100, ge=1)
    stats_check_period_ms: int = Field(100, ge=1)
    logits_datatype: Literal["TYPE_FP32", "TYPE_FP16", "TYPE_BF16"] = "TYPE_FP32"
    prompt_embedding_table_datatype: Literal["TYPE_FP32", "TYPE_FP16", "TYPE_BF16"] = "TYPE_FP16"
    encoder_input_features_datatype: Literal["TYPE_FP32", "TYPE_FP16", "TYPE_BF16"] = "TYPE_FP16"
    parameters: dict[str, str] = Field(
        default_factory=dict, description="further parameters of the backend, as they are"
    )


class LlmApiEngine(Strict):
    """TensorRT-LLM's own llmapi model: its model.py comes from NVIDIA's image when the repository is rendered."""

    kind: Literal["llmapi"]
    source: Path = Field(
        Path("/app/tensorrt_llm/triton_backend/all_models/llmapi/tensorrt_llm/1"),
        description="the folder with TensorRT-LLM's model.py and helpers.py",
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="of tensorrt_llm.LLM: backend, tensor_parallel_size ... (model.yaml)"
    )


class Repository(Strict):
    """One model repository. `checkpoint` may be left to the command line."""

    description: str = Field(description="one line for a person who chooses a file")
    contract: Literal["legacy", "llmapi"] = Field(description="legacy: ensemble, bls and core; llmapi: one text model")
    checkpoint: Path | None = Field(None, description="folder with tokenizer.json; on CPU also the weights")
    decoupled: bool = Field(True, description="streaming; without it one response a request")
    engine: Annotated[CpuEngine | TensorRtEngine | LlmApiEngine, Field(discriminator="kind")]
    tokenizer: Tokenizer = Tokenizer()
    batching: Batching = Batching()
    bls: Bls = Bls()
    instances: Instances = Instances()


def read_repository(path: Path, checkpoint: Path | None = None, engine_dir: Path | None = None) -> Repository:
    """The file at `path`, with `checkpoint` and `engine.engine_dir` over its own.

    Raises LauncherError (exit code 2) naming every wrong key.
    """
    try:
        tree = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise LauncherError(f"cannot read {path}: {error.strerror}", 2) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LauncherError(f"{path} is not YAML: {' '.join(str(error).split())}", 2) from error
    if not isinstance(tree, dict):
        raise LauncherError(f"{path} holds no mapping; it begins with one of: {', '.join(Repository.model_fields)}", 2)
    if checkpoint is not None:
        tree["checkpoint"] = checkpoint.absolute()
    if engine_dir is not None:
        tree["engine"] = {**(tree.get("engine") or {}), "engine_dir": engine_dir.absolute()}
    try:
        return _sensible(Repository.model_validate(tree))
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise LauncherError(f"{path}:\n" + "\n".join(lines), 2) from error


def require_files(repository: Repository) -> None:
    """Raises LauncherError when what the models open first is not here: the server would bury it in its log."""
    needed = {"checkpoint": (repository.checkpoint or Path(), "tokenizer.json")}
    if isinstance(repository.engine, TensorRtEngine):
        needed["engine.engine_dir"] = (repository.engine.engine_dir, "config.json")
    for key, (folder, file) in needed.items():
        if not (folder / file).is_file():
            raise LauncherError(f"{key}: {folder} holds no {file}: name the folder of one", 2)


def _sensible(repository: Repository) -> Repository:
    kind, contract = repository.engine.kind, repository.contract
    if (kind == "llmapi" and contract == "legacy") or (kind == "tensorrtllm" and contract == "llmapi"):
        raise LauncherError(f"engine.kind {kind} does not speak the contract {contract}", 2)
    if repository.checkpoint is None:
        raise LauncherError("checkpoint: is missing (in the file, or --checkpoint)", 2)
    if not repository.checkpoint.is_absolute():
        raise LauncherError(f"checkpoint: {repository.checkpoint} must begin with /: the server runs anywhere", 2)
    return repository
