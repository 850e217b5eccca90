"""A plugin of vLLM's (entry-point group `vllm.general_plugins`): what its CPU build 0.32.0 does wrong, put right.

Copied into the environment by install.py, since it must be importable there, in every process of vLLM. Adapters on
CPU: rows without one carry the index -1, which the PyTorch kernels take as "the last slot". Once `--max-loras`
adapters are loaded, the base model would answer with the last of them. (The GPU kernels skip -1.)
"""

from typing import Any


def register() -> None:
    """Called by vLLM before it builds a model; may be called again."""
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
