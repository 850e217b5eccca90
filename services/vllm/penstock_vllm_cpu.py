"""A plugin of vLLM's (entry-point group `vllm.general_plugins`): what its CPU build 0.32.0 does wrong, put right.

Copied into the environment by install.py, since it must be importable there, in every process of vLLM.

Adapters: rows without one carry the index -1, which the PyTorch kernels take as "the last slot". Once `--max-loras`
adapters are loaded, the base model would answer with the last of them. (The GPU kernels skip -1.)

Weights of 4 bits: the kernel exists for bfloat16 only, and under `--dtype=float32` the first request ends the engine
("cpu_gemm_wna16" not implemented for 'Float'); for GPTQ's and AWQ's own formats vLLM does not even start ("float32 is
not supported"). Those layers compute in bfloat16 then, the rest stays as asked.
"""

from typing import Any


def register() -> None:
    """Called by vLLM before it builds a model; may be called again."""
    keep_base_rows()
    let_int4_be_asked_in_float32()


def keep_base_rows() -> None:
    import vllm.lora.ops.torch_ops as ops
    from vllm.lora.ops.torch_ops import lora_ops

    shrink: Any = lora_ops.bgmv_shrink
    if getattr(shrink, "keeps_base_rows", False):
        return

    def bgmv_shrink(
        inputs: Any, lora_b_weights: Any, output_tensor: Any, lora_indices_tensor: Any, scaling: float = 1.0
    ) -> None:
        """x A^T per row, and zero for a row without an adapter: B A x is zero then, whatever slot B is read from."""
        shrink(inputs, lora_b_weights, output_tensor, lora_indices_tensor, scaling)
        output_tensor.masked_fill_((lora_indices_tensor < 0).unsqueeze(1), 0)

    bgmv_shrink.keeps_base_rows = True  # type: ignore[attr-defined]
    ops.bgmv_shrink = lora_ops.bgmv_shrink = bgmv_shrink


def let_int4_be_asked_in_float32() -> None:
    import torch
    from vllm.model_executor.kernels.linear.mixed_precision.cpu import CPUWNA16LinearKernel
    from vllm.model_executor.layers.quantization.auto_awq import AutoAWQConfig
    from vllm.model_executor.layers.quantization.auto_gptq import AutoGPTQConfig

    kernel: Any = CPUWNA16LinearKernel
    prepare, compute = kernel.process_weights_after_loading, kernel.apply_weights
    if getattr(compute, "takes_float32", False):
        return

    def process_weights_after_loading(self: Any, layer: Any) -> None:
        """Scales as the kernel will see them; it is chosen by their type."""
        scales = getattr(layer, self.w_s_name)
        if scales.dtype == torch.float32:
            scales.data = scales.data.to(torch.bfloat16)
        prepare(self, layer)

    def apply_weights(self: Any, layer: Any, x: Any, bias: Any = None) -> Any:
        if x.dtype != torch.float32:
            return compute(self, layer, x, bias)
        short = None if bias is None else bias.to(torch.bfloat16)
        return compute(self, layer, x.to(torch.bfloat16), short).to(x.dtype)

    apply_weights.takes_float32 = True  # type: ignore[attr-defined]
    for layout in (AutoGPTQConfig, AutoAWQConfig):
        types = [*layout.get_supported_act_dtypes(), torch.float32]
        layout.get_supported_act_dtypes = classmethod(lambda _, types=types: types)
    kernel.process_weights_after_loading, kernel.apply_weights = process_weights_after_loading, apply_weights
