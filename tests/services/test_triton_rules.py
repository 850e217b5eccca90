"""The rules of the Triton models and of the renderer, without a server: tensors, word lists, endings, config.pbtxt."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from openvino_engine.checkpoint import Checkpoint
from openvino_engine.errors import ApiError
from openvino_engine.sequence import StopRules
from triton_launcher import __main__ as program
from triton_launcher.errors import LauncherError
from triton_launcher.render import LEGACY, render
from triton_launcher.serve import Listen, command
from triton_launcher.server import Server, host_server, venv_server
from triton_launcher.settings import read_repository
from triton_models.core_request import read_request
from triton_models.tensors import Tensors, only
from triton_models.token_sequence import TokenSequence
from triton_models.words import read_words

ROOT = Path(__file__).resolve().parents[2]
REPOSITORIES = ROOT / "services/triton/repositories"
SHELF = ROOT / "model_repo/triton"
CHECKPOINT = Checkpoint(
    root=Path("m"), model_path=Path("m"), tokenizer=None, rows=100, eos_ids=frozenset({9}), grammar_eos=9,  # type: ignore[arg-type]
    context=64, kv_values=1, chat_template=None,
)  # fmt: skip

# contracts: TensorRT-LLM's triton_backend/all_models, inflight_batcher_llm and llmapi, name and datatype of each input.
TEXT_INPUTS = {
    "TYPE_STRING": "text_input decoder_text_input stop_words bad_words embedding_bias_words guided_decoding_guide_type "
    "guided_decoding_guide",
    "TYPE_INT32": "max_tokens num_return_sequences top_k min_tokens beam_width end_id pad_id prompt_vocab_size "
    "lora_config",
    "TYPE_FP32": "top_p temperature length_penalty repetition_penalty presence_penalty frequency_penalty "
    "embedding_bias_weights",
    "TYPE_BOOL": "exclude_input_in_output return_log_probs return_context_logits return_generation_logits "
    "return_perf_metrics return_num_input_tokens return_num_output_tokens stream",
    "TYPE_UINT64": "seed prompt_table_extra_id lora_task_id",
    "TYPE_FP16": "prompt_embedding_table lora_weights",
}
BLS_INPUTS = {
    "TYPE_FP16": "image_input",
    "TYPE_UINT8": "image_bytes_input video_bytes_input",
    "TYPE_STRING": "image_url_input",
    "TYPE_INT32": "num_draft_tokens",
    "TYPE_BOOL": "use_draft_logits",
}
CORE_INPUTS = {
    "TYPE_INT32": "input_ids encoder_output_lengths input_lengths request_output_len num_return_sequences "
    "draft_input_ids decoder_input_ids decoder_input_lengths end_id pad_id stop_words_list bad_words_list beam_width "
    "runtime_top_k runtime_top_p_reset_ids min_tokens prompt_vocab_size lora_config retention_token_range_starts "
    "retention_token_range_ends retention_token_range_priorities retention_token_range_durations_ms "
    "retention_decode_priority retention_decode_duration_ms lookahead_window_size lookahead_ngram_size "
    "lookahead_verification_set_size",
    "TYPE_FP32": "draft_logits draft_acceptance_threshold embedding_bias temperature runtime_top_p runtime_top_p_min "
    "runtime_top_p_decay len_penalty repetition_penalty beam_search_diversity_rate presence_penalty frequency_penalty "
    "mrope_rotary_cos_sin",
    "TYPE_BOOL": "early_stopping return_log_probs return_context_logits return_generation_logits return_perf_metrics "
    "return_num_input_tokens return_num_output_tokens exclude_input_in_output stop streaming cross_attention_mask "
    "skip_cross_attn_blocks",
    "TYPE_UINT64": "seed prompt_table_extra_ids lora_task_id",
    "TYPE_FP16": "encoder_input_features prompt_embedding_table lora_weights",
    "TYPE_INT64": "mrope_position_deltas",
    "TYPE_UINT8": "context_phase_params",
    "TYPE_STRING": "guided_decoding_guide_type guided_decoding_guide",
}
LLMAPI_INPUTS = {
    "TYPE_STRING": "text_input image_url sampling_param_stop lora_name lora_path lora_ckpt_source",
    "TYPE_INT32": "sampling_param_best_of sampling_param_top_k sampling_param_max_tokens",
    "TYPE_FP32": "sampling_param_temperature sampling_param_top_p sampling_param_frequency_penalty "
    "sampling_param_presence_penalty",
    "TYPE_UINT64": "sampling_param_seed lora_id",
    "TYPE_BOOL": "streaming sampling_param_exclude_input_from_output sampling_param_return_perf_metrics "
    "return_finish_reason return_stop_reason return_cumulative_logprob stop",
}
TEXT_OUTPUTS = [
    *("text_output", "cum_log_probs", "output_log_probs", "context_logits", "generation_logits", "batch_index"),
    *("sequence_index", "kv_cache_alloc_new_blocks", "kv_cache_reused_blocks", "kv_cache_alloc_total_blocks"),
    *("arrival_time_ns", "first_scheduled_time_ns", "first_token_time_ns", "last_token_time_ns", "acceptance_rate"),
    *("total_accepted_draft_tokens", "total_draft_tokens", "num_input_tokens", "num_output_tokens"),
]


GOOD = "description: d\ncontract: legacy\n"


def rendered(name: str, out: Path, **over: Any) -> dict[str, dict[str, Any]]:
    """Every config.pbtxt of a shipped YAML, parsed by Triton's own message definition."""
    path = REPOSITORIES / name
    if over:
        path = out.parent / "own.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load((REPOSITORIES / name).read_text()) | over))
    models = render(read_repository(path, Path("/ckpt")), SHELF, out, Path("/cache"))
    files = [str(out / model / "config.pbtxt") for model in models]
    talk = [sys.executable, str(ROOT / "tests/triton_talk.py"), *files]
    done = subprocess.run(talk, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return dict(zip(models, json.loads(done.stdout), strict=True))


def inputs_of(config: dict[str, Any]) -> dict[str, str]:
    return {tensor["name"]: tensor["data_type"] for tensor in config["input"]}


def by_name(*tables: dict[str, str]) -> dict[str, str]:
    return {name: kind for table in tables for kind, names in table.items() for name in names.split()}


def parameters_of(config: dict[str, Any]) -> dict[str, str]:
    return {key: value["string_value"] for key, value in config.get("parameters", {}).items()}


@pytest.mark.parametrize("name", ["cpu.yaml", "gpu.yaml"])
def test_the_legacy_repository_has_tensorrt_llms_tensors(tmp_path: Path, name: str) -> None:
    configs = rendered(name, tmp_path / "models")
    assert tuple(configs) == LEGACY
    assert inputs_of(configs["ensemble"]) == by_name(TEXT_INPUTS)
    assert inputs_of(configs["tensorrt_llm_bls"]) == by_name(TEXT_INPUTS, BLS_INPUTS)
    assert inputs_of(configs["tensorrt_llm"]) == by_name(CORE_INPUTS)
    for model in ("ensemble", "tensorrt_llm_bls"):
        assert [tensor["name"] for tensor in configs[model]["output"]] == TEXT_OUTPUTS
        required = [tensor["name"] for tensor in configs[model]["input"] if not tensor.get("optional")]
        assert required == ["text_input", "max_tokens"]
    assert all(config["max_batch_size"] == 64 for config in configs.values())
    assert configs["tensorrt_llm"]["model_transaction_policy"]["decoupled"] is True


def test_every_tensor_of_the_ensembles_steps_exists_in_the_step(tmp_path: Path) -> None:
    configs = rendered("cpu.yaml", tmp_path / "models")
    known, own = set(inputs_of(configs["ensemble"])), set()
    for step in configs["ensemble"]["ensemble_scheduling"]["step"]:
        model = configs[step["model_name"]]
        assert set(step["input_map"]) <= set(inputs_of(model))
        assert set(step["output_map"]) <= {tensor["name"] for tensor in model["output"]}
        assert set(step["input_map"].values()) <= known | own
        own |= set(step["output_map"].values())
    assert set(TEXT_OUTPUTS) <= own


def test_on_gpu_the_core_is_tensorrt_llms_backend_with_the_engine_that_was_named(tmp_path: Path) -> None:
    engine = {
        "kind": "tensorrtllm", "engine_dir": "/engines/mine",
        "kv_cache": {"free_gpu_mem_fraction": 0.5, "reuse": False}, "scheduler_policy": "max_utilization",
        "gpu_device_ids": [0, 1], "parameters": {"medusa_choices": "{0}"},
        "xgrammar_tokenizer_info": "/engines/mine/xgrammar_tokenizer_info.json", "logits_datatype": "TYPE_FP16",
    }  # fmt: skip
    configs = rendered("gpu.yaml", tmp_path / "models", engine=engine, decoupled=False)
    core = configs["tensorrt_llm"]
    assert core["backend"] == "tensorrtllm"
    assert not list((tmp_path / "models/tensorrt_llm/1").iterdir())
    assert "decoupled" not in core["model_transaction_policy"]
    assert parameters_of(core) == {
        "gpt_model_path": "/engines/mine",
        "gpt_model_type": "inflight_fused_batching",
        "batch_scheduler_policy": "max_utilization",
        "max_beam_width": "1",
        "enable_chunked_context": "true",
        "kv_cache_free_gpu_mem_fraction": "0.5",
        "enable_kv_cache_reuse": "false",
        "exclude_input_in_output": "false",
        "gpu_device_ids": "0,1",
        "cancellation_check_period_ms": "100",
        "stats_check_period_ms": "100",
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
        "executor_worker_path": "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker",
        "guided_decoding_backend": "xgrammar",
        "tokenizer_dir": "/ckpt",
        "xgrammar_tokenizer_info_path": "/engines/mine/xgrammar_tokenizer_info.json",
        "medusa_choices": "{0}",
    }
    assert {t["name"]: t["data_type"] for t in core["output"]}["context_logits"] == "TYPE_FP16"
    assert configs["preprocessing"]["instance_group"][0]["count"] == 2
    assert parameters_of(configs["tensorrt_llm_bls"])["accumulate_tokens"] == "true"


def test_the_llmapi_repository_has_tensorrt_llms_tensors_and_its_own_model_on_gpu(tmp_path: Path) -> None:
    assert inputs_of(rendered("llmapi.yaml", tmp_path / "cpu")["tensorrt_llm"]) == by_name(LLMAPI_INPUTS)
    source = tmp_path / "image"
    source.mkdir()
    (source / "model.py").write_text("# TensorRT-LLM's\n")
    engine = {"kind": "llmapi", "source": str(source), "arguments": {"backend": "pytorch", "tensor_parallel_size": 2}}
    rendered("llmapi-gpu.yaml", tmp_path / "gpu", engine=engine)
    version = tmp_path / "gpu/tensorrt_llm/1"
    assert (version / "model.py").read_text() == "# TensorRT-LLM's\n"
    assert yaml.safe_load((version / "model.yaml").read_text()) == {
        "model": "/ckpt",
        "backend": "pytorch",
        "tensor_parallel_size": 2,
        "triton_config": {"max_batch_size": 0, "decoupled": True},
    }


def test_rendering_again_replaces_the_old_and_touches_nothing_else(tmp_path: Path) -> None:
    repository = read_repository(REPOSITORIES / "cpu.yaml", Path("/ckpt"))
    out = tmp_path / "models"
    render(repository, SHELF, out, tmp_path)
    (out / "ensemble/2").mkdir()
    render(repository, SHELF, out, tmp_path)
    assert not (out / "ensemble/2").exists()
    (out / "mine").mkdir()
    with pytest.raises(LauncherError, match=r"holds mine, which was not rendered"):
        render(repository, SHELF, out, tmp_path)
    assert (out / "mine").exists()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[", "is not YAML"),
        ("- a", "holds no mapping; it begins with one of: description, contract"),
        (GOOD + "engine: {kind: cpu, treads: 2}", "engine.cpu.treads: Extra inputs"),
        (GOOD + "engine: {kind: gpu}", "engine: Input tag 'gpu' found using 'kind'"),
        (GOOD + "engine: {kind: llmapi}\ncheckpoint: /c", "does not speak the contract legacy"),
        (GOOD + "engine: {kind: cpu}", "checkpoint: is missing (in the file, or --checkpoint)"),
        (GOOD + "engine: {kind: cpu}\ncheckpoint: c", "checkpoint: c must begin with /"),
    ],
)
def test_a_wrong_file_is_refused_with_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, complaint: str
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    assert program.main(["render", str(path), "--out", str(tmp_path / "out")]) == 2
    assert complaint in capsys.readouterr().err


def test_files_that_are_not_there_are_named_before_the_server_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, complaint in (("cpu.yaml", "checkpoint: "), ("gpu.yaml", "engine.engine_dir: ")):
        if name == "gpu.yaml":
            (tmp_path / "tokenizer.json").touch()
        asked = ["serve", str(REPOSITORIES / name), "--checkpoint", str(tmp_path), "--engine-dir", str(tmp_path)]
        assert program.main(asked if name == "gpu.yaml" else asked[:-2]) == 2
        assert f"{complaint}{tmp_path} holds no " in capsys.readouterr().err


def test_a_missing_server_says_where_one_comes_from(tmp_path: Path) -> None:
    with pytest.raises(LauncherError, match=r"bin/tritonserver is not there: .*--venv .venvs/triton"):
        host_server(tmp_path)
    with pytest.raises(LauncherError, match=r"is no virtual environment: make it with services/triton/install.py"):
        venv_server(tmp_path, tmp_path)


def test_the_server_listens_where_it_is_told_and_loads_only_what_was_rendered() -> None:
    argv = command(Server(Path("/t/tritonserver"), Path("/t/backends")), Path("/m"), LEGACY, Listen("::1", 1, 2, 3), 5)
    assert argv[0] == "/t/tritonserver"
    assert "--model-control-mode=explicit" in argv
    assert [word for word in argv if word.startswith("--load-model=")] == [f"--load-model={model}" for model in LEGACY]
    assert {"--grpc-port=1", "--http-port=2", "--metrics-port=3", "--grpc-address=::1"} <= set(argv)


def test_a_taken_port_is_named_before_the_server_starts() -> None:
    import socket

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(LauncherError, match=rf"cannot listen on 127.0.0.1:{port}: .*--metrics-port"):
            Listen("127.0.0.1", 0, 0, port).require_free()


@pytest.mark.parametrize(
    ("array", "words"),
    [
        ([[1, 2, 3], [2, 3, -1]], ((1, 2), (3,))),
        ([[[1, 2, 3], [1, 3, -1]]], ((1,), (2, 3))),
        ([[0], [-1]], ()),
        ([[5, 0], [1, 1]], ((5,),)),
    ],
)
def test_a_word_list_is_ids_and_ends(array: list[Any], words: tuple[tuple[int, ...], ...]) -> None:
    assert read_words(np.array(array, dtype=np.int32), "stop_words_list") == words


@pytest.mark.parametrize("array", [[[1, 2], [3, -1]], [[1, 2], [2, 1]], [1, 2], [[1], [1], [1]]])
def test_a_broken_word_list_is_refused(array: list[Any]) -> None:
    with pytest.raises(ApiError, match="'stop_words_list'"):
        read_words(np.array(array, dtype=np.int32), "stop_words_list")


@pytest.mark.parametrize(
    ("rules", "words", "steps", "tokens", "finish"),
    [
        ({}, (), [[1, 2], [9]], [1, 2], "stop"),
        ({"max_tokens": 3}, (), [[1, 2], [3, 4]], [1, 2, 3], "length"),
        ({"max_tokens": 2}, (), [[1, 9]], [1], "stop"),
        ({}, ((2, 3),), [[1, 2], [3], [4]], [1, 2, 3], "stop"),
        ({}, ((2, 3), (3,)), [[3, 2]], [3], "stop"),
        ({}, ((1, 2, 3),), [[2, 3], [1, 2], [4]], [2, 3, 1, 2, 4], None),
        ({"min_tokens": 2}, ((1,),), [[9, 1, 1, 5]], [9, 1, 1], "stop"),
        ({"ignore_eos": True}, (), [[9, 9]], [9, 9], None),
    ],
)
def test_an_answer_ends_by_tensorrt_llms_rules(
    rules: dict[str, Any], words: tuple[Any, ...], steps: list[list[int]], tokens: list[int], finish: str | None
) -> None:
    sequence = TokenSequence(StopRules(eos=frozenset({9}), **{"max_tokens": 50} | rules), words)
    put_out: list[int] = []
    for step in steps:
        delta = sequence.feed(step, [0.0] * len(step))
        put_out += delta.tokens
        assert len(delta.logprobs) == len(delta.tokens)
        if delta.finish:
            break
    assert (put_out, delta.finish) == (tokens, finish)


def test_an_input_that_nobody_reads_is_refused_unless_it_asks_for_nothing() -> None:
    neutral = {"beams": only(1)}
    Tensors({"a": np.array([1]), "beams": np.array([[1]]), "empty": np.empty((1, 0))}, frozenset({"a"}), neutral)
    for name, value in (("beams", 2), ("other", 0)):
        with pytest.raises(ApiError, match=f"'{name}' is not supported"):
            Tensors({name: np.array([value])}, frozenset({"a"}), neutral)


def test_a_float32_is_read_as_the_decimal_that_was_meant() -> None:
    tensors = Tensors({"t": np.array([0.7], dtype=np.float32)}, frozenset({"t"}), {})
    assert tensors.number("t", 1.0, 0, 1) == 0.7
    for wrong in (np.nan, np.inf, -0.1, 1.1):
        with pytest.raises(ApiError, match="'t' must be between 0 and 1"):
            Tensors({"t": np.array([wrong], dtype=np.float32)}, frozenset({"t"}), {}).number("t", 1.0, 0, 1)


def test_text_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(ApiError, match="'t' is not UTF-8"):
        Tensors({"t": np.array([b"\xff"], dtype=object)}, frozenset({"t"}), {}).text("t")


BASE: dict[str, Any] = {"input_ids": [[1, 2, 3]], "input_lengths": [[3]], "request_output_len": [[10]]}


def request(**tensors: Any) -> Any:
    values = {name: np.array(value) for name, value in (BASE | tensors).items() if value is not None}
    return read_request(values, CHECKPOINT, 64)


@pytest.mark.parametrize(
    ("given", "temperature", "top_p", "top_k"),
    [
        ({}, 0.0, 1.0, 0),
        ({"temperature": [[2.0]]}, 0.0, 1.0, 0),
        ({"runtime_top_k": [[1]], "runtime_top_p": [[0.5]]}, 0.0, 0.5, 1),
        ({"runtime_top_p": [[0.5]]}, 1.0, 0.5, 0),
        ({"runtime_top_k": [[40]], "temperature": [[0.5]]}, 0.5, 1.0, 40),
    ],
)
def test_sampling_begins_with_top_k_or_top_p(
    given: dict[str, Any], temperature: float, top_p: float, top_k: int
) -> None:
    sampling = request(**given).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (temperature, top_p, top_k, 0)


def test_the_end_token_is_the_checkpoints_or_the_requests_or_none() -> None:
    assert request().sampling.stop.eos == {9}
    assert request(end_id=[[5]]).sampling.stop.eos == {5}
    assert request(end_id=[[-1]]).sampling.stop.ignore_eos


def test_the_prompt_is_what_input_lengths_leaves_of_it() -> None:
    assert request(input_lengths=[[2]]).prompt == [1, 2]
    for given, complaint in (
        ({"input_lengths": [[4]]}, "'input_lengths' must be between 1 and 3"),
        ({"input_ids": [[1, 100]], "input_lengths": [[2]]}, "token ids from 0 to 99"),
        ({"input_ids": [[1], [2]], "input_lengths": [[1]]}, "one prompt a request"),
        ({"input_ids": None}, "'input_ids' must hold at least one token"),
        ({"request_output_len": [[62]]}, "maximum context length is 64"),
    ):
        with pytest.raises(ApiError, match=complaint):
            request(**given)


def test_a_guide_and_a_rule_that_contradicts_it_are_refused_together() -> None:
    guide = {"guided_decoding_guide_type": [[b"regex"]], "guided_decoding_guide": [[b"a+"]]}
    assert request(**guide).sampling.constraint.regex == "a+"
    for name, value in (("end_id", -1), ("min_tokens", 5)):
        with pytest.raises(ApiError, match=f"'{name}' is not supported .* contradicts guided decoding"):
            request(**guide, **{name: [[value]]})


INSTALL = [sys.executable, str(ROOT / "services/triton/install.py")]


def test_where_the_wheel_cannot_be_had_triton_is_unavailable_and_no_failure(tmp_path: Path) -> None:
    nothing = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
    command = [*INSTALL, "--venv", str(tmp_path / "venv")]
    done = subprocess.run(command, env=os.environ | nothing, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 69, done.stderr
    assert "triton cannot be installed here: pip finds no nvidia-pytriton==0.7.0" in done.stderr
    again = subprocess.run([*command, "--check"], capture_output=True, text=True, timeout=60, check=False)
    assert again.returncode == 1
    assert "is missing, incomplete or of another version" in again.stderr


def test_an_engine_venv_is_complete_only_with_its_stamp_and_its_program(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("engine_venv", ROOT / "services/engine_venv.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    environment = module.EngineVenv("some", tmp_path, "digest", "bin/*")
    for stamp in ("", "[]", '{"digest": "other"}', '{"digest": "digest"}'):
        environment.stamp.write_text(stamp)
        assert not environment.is_complete
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/program").touch()
    assert environment.is_complete
    assert environment.main(lambda _: pytest.fail("filled again"), 1, check=False) == 0
    environment.stamp.unlink()
    with pytest.raises(module.Failed, match=r"MiB free, 1099511627776 MiB are needed"):
        environment.require_space(2**40)
