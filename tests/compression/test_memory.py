"""A model larger than the memory that is allowed: the driver gets through, loading it whole does not."""

import json
import subprocess
import sys
from pathlib import Path

import torch

from compressor.checkpoint.sink import Sink

LAYERS, HIDDEN, MLP = 16, 768, 2048
# Beyond what the libraries took: room for a few blocks in float32 (28 MB each), not for sixteen.
ROOM_BYTES = 256 * 2**20

CHILD = """
import resource, sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM
import transformers.models.qwen3.modeling_qwen3
from compressor.blockwise import BlockPass
from compressor.checkpoint.sink import Sink
from compressor.checkpoint.source import Source
from compressor.families import family_of
from compressor.passes import Rows
from compressor.screen import Screen
from compressor.skeleton import Skeleton
from simple_methods import Halve, Plain

what, folder, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
torch.set_num_threads(1)
taken = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (taken + int(sys.argv[4]),) * 2)
if what == "whole":
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
else:
    source = Source(folder)
    skeleton = Skeleton(source, family_of(source.config), torch.device("cpu"))
    sink = Sink(out)
    ids = torch.arange(64).reshape(2, 32)
    driver = BlockPass(skeleton, [Halve()], Plain(), sink, Screen(is_quiet=True))
    driver.run(skeleton.embed([Rows(ids, torch.ones_like(ids, dtype=torch.bool))]))
    sink.config = source.config
    sink.finish()
"""


def write_large(folder: Path) -> None:
    """A random checkpoint in shards, a block at a time."""
    sink, generator = Sink(folder), torch.Generator().manual_seed(0)

    def matrix(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.02).bfloat16()

    sink.write("00000", {"model.embed_tokens.weight": matrix(512, HIDDEN), "model.norm.weight": matrix(HIDDEN)})
    for layer in range(LAYERS):
        shapes = {
            "self_attn.q_proj": (HIDDEN, HIDDEN),
            "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
            "self_attn.v_proj": (HIDDEN // 2, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN),
            "mlp.gate_proj": (MLP, HIDDEN),
            "mlp.up_proj": (MLP, HIDDEN),
            "mlp.down_proj": (HIDDEN, MLP),
            "input_layernorm": (HIDDEN,),
            "post_attention_layernorm": (HIDDEN,),
            "self_attn.q_norm": (64,),
            "self_attn.k_norm": (64,),
        }
        block = {f"model.layers.{layer}.{name}.weight": matrix(*shape) for name, shape in shapes.items()}
        sink.write(f"{layer + 1:05}", block)
    sink.config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": HIDDEN,
        "head_dim": 64,
        "num_attention_heads": HIDDEN // 64,
        "num_key_value_heads": HIDDEN // 128,
        "num_hidden_layers": LAYERS,
        "intermediate_size": MLP,
        "vocab_size": 512,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    sink.finish()


def child(what: str, folder: Path, out: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", CHILD, what, str(folder), str(out), str(ROOM_BYTES)]
    return subprocess.run(
        command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=150, check=False
    )


def test_a_model_larger_than_memory_is_compressed_block_by_block(tmp_path: Path) -> None:
    write_large(tmp_path / "large")
    whole = child("whole", tmp_path / "large", tmp_path / "none")
    assert whole.returncode != 0, "the limit limits nothing: a whole load fits"
    assert "alloc" in whole.stderr.lower() or "memory" in whole.stderr.lower()
    streamed = child("streamed", tmp_path / "large", tmp_path / "out")
    assert streamed.returncode == 0, streamed.stderr[-2000:]
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == LAYERS + 1
