"""Seconds and peak memory of each method on one block, and GPTQ beside llm-compressor's own GPTQ.

    python compression/bench/block.py                          one block of 7B shape, all methods, CPU
    python compression/bench/block.py --starter                the starter model whole, by recipe
    python compression/bench/block.py --against                GPTQ's two halves, ours and llm-compressor's, in turns
    python compression/bench/block.py --device cuda            layers a minute on a GPU

Each figure is taken in a process of its own, so that peaks do not mix. The 7B shape is Llama-2-7B's block: hidden 4096,
intermediate 11008, 32 heads; weights are random, inputs are random, correlated, and have a few large channels.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compressor.block import Batch, Block
from compressor.families import family_of
from compressor.methods.registry import build, is_block_method
from compressor.numbers.grids import IntegerGrid
from compressor.recipe import Step, load

STARTER = Path(__file__).parents[2] / "model_repo" / "checkpoints" / "starter"
LAYERS = {
    "rtn": [("rtn", {})],
    "gptq": [("gptq", {})],
    "gptq, inputs as they come": [("gptq", {"act_order": "none"})],
    "awq + rtn": [("awq", {}), ("rtn", {})],
    "awq + gptq": [("awq", {}), ("gptq", {})],
    "smoothquant + rtn (W8A8)": [("smoothquant", {}), ("rtn", {"scheme": "W8A8"})],
    "spqr": [("spqr", {})],
    "magnitude": [("magnitude", {})],
    "wanda": [("wanda", {})],
    "sparsegpt": [("sparsegpt", {})],
}
RECIPES = (
    "rtn-w4a16",
    "gptq-w4a16",
    "awq-w4a16",
    "awq-gptq-w4a16",
    "smoothquant-w8a8",
    "smoothquant-gptq-w8a8",
    "spqr",
    "wanda-50",
    "sparsegpt-50",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--starter", action="store_true", help="whole starter model by recipe, through the command line"
    )
    parser.add_argument("--against", action="store_true", help="GPTQ's halves beside llm-compressor's, interleaved")
    parser.add_argument("--only", action="append", choices=[*LAYERS, *RECIPES], help="one of the rows; may be repeated")
    parser.add_argument("--device", default="cpu", help="cpu, cuda")
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--intermediate", type=int, default=11008)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=16384, help="calibration tokens; 65,536 is what a recipe takes")
    parser.add_argument("--rounds", type=int, default=3, help="of --against")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(one_layer(args.child, args)))
        return 0
    found = against(args) if args.against else starter(args) if args.starter else layers(args)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(args.device), "rows": found}, indent=2) + "\n", "utf-8")
    return 0


def layers(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One block, a process a method."""
    print(f"{machine(args.device)}\nhidden {args.hidden}, intermediate {args.intermediate}, {args.tokens:,} tokens\n")
    print(f"{'method':28} {'seconds':>8} {'layers/min':>11} {'peak GB':>8} {'block GB':>9}  error")
    found = []
    shape = [f"--{name}={getattr(args, name)}" for name in ("hidden", "intermediate", "heads", "tokens", "device")]
    for name in args.only or LAYERS:
        done = subprocess.run(
            [sys.executable, __file__, "--child", name, *shape], check=True, stdout=subprocess.PIPE, text=True
        )
        row = json.loads(done.stdout)
        found.append(row)
        print(
            f"{name:28} {row['seconds']:8.2f} {60 / row['seconds']:11.2f} {row['peak_gb']:8.2f} {row['block_gb']:9.2f}"
            f"  {row['output_error']:.2e}",
            flush=True,
        )
    return found


def one_layer(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the methods alone; the block's output before and after tells that they did something."""
    methods = build([Step(method=method, params=params) for method, params in LAYERS[name]], "bench")
    assert all(is_block_method(method) for method in methods)
    block = random_block(args)
    before = [block.forward(batch) for batch in block.batches[:1]]
    if any(step == "spqr" for step, _ in LAYERS[name]):
        methods[0].scales = "float32"
    base, began = peak_bytes(args.device), time.perf_counter()
    for method in methods:
        method.apply(block)
    synchronise(args.device)
    seconds = time.perf_counter() - began
    peak = peak_bytes(args.device)
    after = block.forward(block.batches[0])
    error = float((after - before[0]).square().sum() / before[0].square().sum())
    return {"method": name, "seconds": seconds, "peak_gb": peak / 1e9, "block_gb": base / 1e9, "output_error": error}


def random_block(args: argparse.Namespace) -> Block:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=args.hidden,
        intermediate_size=args.intermediate,
        num_attention_heads=args.heads,
        num_key_value_heads=args.heads,
        max_position_embeddings=2048,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    with torch.device(args.device):
        module = LlamaDecoderLayer(config, 0).eval().requires_grad_(False)
        rotary = LlamaRotaryEmbedding(config)
    for parameter in module.parameters():
        if parameter.dim() == 2:
            parameter.data.normal_(0, 0.02)
    length = 512
    positions = torch.arange(length, device=args.device)[None]
    batches = []
    for hidden_BTD in random_hidden(args, length).split(8192 // length):
        embeddings = rotary(hidden_BTD, positions)
        real_BT = torch.ones(hidden_BTD.shape[:2], dtype=torch.bool, device=args.device)
        kwargs = {"position_embeddings": embeddings, "attention_mask": None}
        batches.append(Batch(hidden_BTD, real_BT, kwargs))
    plain = config.to_dict() | {"model_type": "llama"}
    return Block(0, 1, "model.layers.0", module, family_of(plain), plain, batches)


def random_hidden(args: argparse.Namespace, length: int) -> Tensor:
    """Correlated by a few hundred directions; eight channels are twenty times larger."""
    count, rank = args.tokens // length, min(512, args.hidden)
    basis = torch.randn(rank, args.hidden, device=args.device) / rank**0.5
    hidden = torch.randn(count, length, rank, device=args.device) @ basis
    hidden += 0.1 * torch.randn(hidden.shape, device=args.device)
    hidden[..., :: args.hidden // 8] *= 20
    return hidden


def starter(args: argparse.Namespace) -> list[dict[str, Any]]:
    """`penstock compress` on the starter, quality left out; the peak is the process's resident memory."""
    print(f"{machine(args.device)}\nstarter model, the whole command without measuring quality\n")
    print(f"{'recipe':28} {'seconds':>8} {'peak GB':>8}")
    found = []
    for name in args.only or RECIPES:
        load(name)
        folder = Path(tempfile.mkdtemp())
        command = [sys.executable, "-m", "penstock", "compress", str(STARTER), "--recipe", name, "--no-quality"]
        began = time.perf_counter()
        subprocess.run(
            [*command, "--device", args.device, "--out", str(folder / "out")], check=True, stderr=subprocess.DEVNULL
        )
        seconds = time.perf_counter() - began
        manifest = json.loads((folder / "out" / "penstock.json").read_text("utf-8"))
        shutil.rmtree(folder)
        found.append({"recipe": name, "seconds": seconds, "peak_gb": manifest["peak_bytes"] / 1e9})
        print(f"{name:28} {seconds:8.2f} {manifest['peak_bytes'] / 1e9:8.2f}", flush=True)
    return found


def against(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Second moments and solving, on the same data in turns; the library's groups are fitted by its observer before."""
    torch.manual_seed(0)
    hidden_TI = random_hidden(args, 512).reshape(-1, args.hidden)
    w_OI = 0.02 * torch.randn(args.hidden, args.hidden, device=args.device)
    print(f"{machine(args.device)}\n{args.hidden} × {args.hidden}, 4 bits, groups of 128, {len(hidden_TI):,} tokens\n")
    rows = []
    for order in ("none", "static"):
        rows += compare(hidden_TI, w_OI, order, args.rounds, args.device)
    return rows


def compare(hidden_TI: Tensor, w_OI: Tensor, order: str, rounds: int, device: str) -> list[dict[str, Any]]:
    ours, theirs = our_gptq(order), library_gptq(order)
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, (moments, solve) in {"ours": ours, "llm-compressor": theirs}.items():
            spent, h_II = timed(lambda moments=moments: moments(hidden_TI), device)
            times.setdefault(f"{name}: moments", []).append(spent)
            spent, dense_OI = timed(lambda solve=solve, h_II=h_II: solve(w_OI.clone(), h_II), device)
            times.setdefault(f"{name}: solving", []).append(spent)
            lost_TO = hidden_TI[:2048] @ (dense_OI - w_OI).T
            error = float(lost_TO.square().sum() / (hidden_TI[:2048] @ w_OI.T).square().sum())
            times.setdefault(f"{name}: error", []).append(error)
    print(f"act-order {order}")
    found = []
    for name, values in times.items():
        middle = statistics.median(values)
        found.append({"order": order, "what": name, "median": middle, "all": values})
        print(f"  {name:28} {middle:10.4g}" + ("" if name.endswith("error") else " s"))
    return found


def our_gptq(order: str) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]:
    from compressor.methods.gptq import GPTQ, quantize
    from compressor.numbers.hessian import Hessian

    def moments(x_TI: Tensor) -> Tensor:
        hessian = Hessian(x_TI.shape[1])
        for part in x_TI.split(8192):
            hessian.add(part)
        return hessian.matrix

    params = GPTQ.Params.model_validate({"act_order": order})

    def solve(w_OI: Tensor, h_II: Tensor) -> Tensor:
        return quantize(w_OI, h_II, IntegerGrid(4, 128), params).weight.dense()

    return moments, solve


def library_gptq(order: str) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]:
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.utils import calculate_qparams
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight
    from llmcompressor.modifiers.gptq.helpers import accumulate_hessian, make_empty_hessian

    named = {"none": None, "static": "static", "group": "group"}[order]
    args = QuantizationArgs(num_bits=4, group_size=128, strategy="group", symmetric=True, actorder=named)

    def moments(x_TI: Tensor) -> Tensor:
        module = torch.nn.Linear(x_TI.shape[1], 1, bias=False, device=x_TI.device)
        hessian, samples = make_empty_hessian(module), torch.zeros((), device=x_TI.device)
        for part in x_TI.split(8192):
            hessian, samples = accumulate_hessian(part.reshape(-1, 512, part.shape[1]), module, hessian, samples)
        return hessian / samples

    def solve(w_OI: Tensor, h_II: Tensor) -> Tensor:
        low_OG, high_OG = torch.aminmax(w_OI.reshape(len(w_OI), -1, 128), dim=-1)
        scale, zero = calculate_qparams(low_OG, high_OG, args)
        solved, _, _ = quantize_weight(w_OI[None], h_II.clone()[None], scale[None], zero[None], None, args)
        return solved[0]

    return moments, solve


def timed(work: Callable[[], Any], device: str) -> tuple[float, Any]:
    synchronise(device)
    began = time.perf_counter()
    result = work()
    synchronise(device)
    return time.perf_counter() - began, result


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def peak_bytes(device: str) -> int:
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def machine(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    return f"{name}, {torch.get_num_threads()} of {os.cpu_count()} threads, torch {torch.__version__}"


if __name__ == "__main__":
    sys.exit(main())
