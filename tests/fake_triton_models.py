"""Inputs, outputs and parameters of the models that fake_triton plays: subsets of the real ones, in their words."""

Tensors = dict[str, tuple[str, list[int]]]

_SCALARS = ("INT32", [-1, 1]), ("FP32", [-1, 1]), ("BOOL", [-1, 1]), ("UINT64", [-1, 1]), ("BYTES", [-1, 1])
_INT, _FLOAT, _BOOL, _LONG, _TEXT = _SCALARS

CORE: Tensors = {
    "input_ids": ("INT32", [-1, -1]), "input_lengths": _INT, "request_output_len": _INT, "end_id": _INT,
    "pad_id": _INT, "stop_words_list": ("INT32", [-1, 2, -1]), "bad_words_list": ("INT32", [-1, 2, -1]),
    "temperature": _FLOAT, "runtime_top_k": _INT, "runtime_top_p": _FLOAT, "repetition_penalty": _FLOAT,
    "min_tokens": _INT, "presence_penalty": _FLOAT, "frequency_penalty": _FLOAT, "seed": _LONG,
    "return_log_probs": _BOOL, "exclude_input_in_output": _BOOL, "streaming": _BOOL,
    "guided_decoding_guide_type": _TEXT, "guided_decoding_guide": _TEXT,
}  # fmt: skip
CORE_OUTPUTS: Tensors = {
    "output_ids": ("INT32", [-1, -1, -1]), "sequence_length": ("INT32", [-1, -1]),
    "output_log_probs": ("FP32", [-1, -1, -1]),
}  # fmt: skip
LEGACY: Tensors = {
    "text_input": _TEXT, "max_tokens": _INT, "stop_words": ("BYTES", [-1, -1]), "bad_words": ("BYTES", [-1, -1]),
    "end_id": _INT, "pad_id": _INT, "top_k": _INT, "top_p": _FLOAT, "temperature": _FLOAT,
    "repetition_penalty": _FLOAT, "min_length": _INT, "random_seed": _LONG, "exclude_input_in_output": _BOOL,
    "return_num_output_tokens": _BOOL, "stream": _BOOL,
}  # fmt: skip
LEGACY_OUTPUTS: Tensors = {"text_output": ("BYTES", [-1, -1]), "num_output_tokens": _INT}
LLMAPI: Tensors = {
    "text_input": ("BYTES", [-1]), "streaming": ("BOOL", [1]), "sampling_param_max_tokens": ("INT32", [1]),
    "sampling_param_temperature": ("FP32", [1]), "sampling_param_top_k": ("INT32", [1]),
    "sampling_param_top_p": ("FP32", [1]), "sampling_param_seed": ("UINT64", [1]),
    "sampling_param_stop": ("BYTES", [-1]), "sampling_param_exclude_input_from_output": ("BOOL", [1]),
    "return_finish_reason": ("BOOL", [1]),
}  # fmt: skip
LLMAPI_OUTPUTS: Tensors = {"text_output": ("BYTES", [-1]), "finish_reason": ("BYTES", [-1])}
_UINT: tuple[str, list[int]] = ("UINT32", [-1, 1])
FASTERTRANSFORMER: Tensors = {
    "input_ids": ("UINT32", [-1, -1]), "input_lengths": _UINT, "request_output_len": _UINT,
    "runtime_top_k": _UINT, "runtime_top_p": _FLOAT, "temperature": _FLOAT, "random_seed": _LONG, "end_id": _UINT,
    "stop_words_list": ("INT32", [-1, 2, -1]),
}  # fmt: skip
FASTERTRANSFORMER_OUTPUTS: Tensors = {
    "output_ids": ("UINT32", [-1, -1, -1]), "sequence_length": ("UINT32", [-1, -1]),
}  # fmt: skip
VLLM: Tensors = {
    "text_input": ("BYTES", [1]), "stream": ("BOOL", [1]), "sampling_parameters": ("BYTES", [1]),
    "exclude_input_in_output": ("BOOL", [1]), "return_finish_reason": ("BOOL", [1]),
    "return_num_output_tokens": ("BOOL", [1]),
}  # fmt: skip

MODELS: dict[str, tuple[Tensors, Tensors, dict[str, str]]] = {
    "core": (CORE, CORE_OUTPUTS, {}),
    "bls": (LEGACY, LEGACY_OUTPUTS, {"accumulate_tokens": "true"}),
    "ensemble": (LEGACY, LEGACY_OUTPUTS, {}),
    "llmapi": (LLMAPI, LLMAPI_OUTPUTS, {}),
    "fastertransformer": (FASTERTRANSFORMER, FASTERTRANSFORMER_OUTPUTS, {}),
    "vllm": (VLLM, LLMAPI_OUTPUTS | {"num_output_tokens": ("UINT32", [-1])}, {}),
    "image": ({"pixels": ("FP32", [-1, 3, 224, 224])}, {"label": ("BYTES", [-1])}, {}),
}
"""By the name that --contract takes; `image` is no text model."""
