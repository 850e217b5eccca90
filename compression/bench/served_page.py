"""The page docs/compression-served.md, written from the rows that served.py measured."""

import datetime
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PAGE = """\
# What compressed checkpoints are like to serve

Written by `compression/bench/served.py`, last on {date}: checkpoints made by `penstock compress`, loaded by the real
engines, asked through the gateway. CPU: {cpu}, {cores} cores, **shared with other work while this ran**. Speeds of one
moment mean little then: every compressed checkpoint was measured in turn with its parent, both engines up,
{rounds} rounds, order swapped each round. Trust the ratio (median of the rounds), not the tokens.

- **vLLM** 0.32 on CPU, one thread, eager, bfloat16 for parent and child; 1 GiB of KV cache is in its memory.
- **The embedded engine** (OpenVINO) computes in float32, its default; its parent is the same checkpoint as 16-bit GGUF.
- Perplexity: held-out prose, from the checkpoint's manifest (measured by `penstock compress`, protocol beside it).
  Accuracy: 128 held-out questions of the 16 families that the starter is good at, exact match, **asked of the engine
  that is named**. Memory: proportional share (PSS) of the engine's processes at the end of its rounds.

{tables}
## How to read it

{reading}
"""
HEADER = (
    "| engine | recipe | scheme | bits | size MB | perplexity | accuracy | tokens/s, one | to parent "
    "| tokens/s, eight | to parent | memory MB |"
)
TITLES = {
    "starter": "The starter: 2.9 M weights, where nothing but the overhead of the engine is seen",
    "random-100m": "A Qwen3 of 102 M random weights, where weights matter for speed",
}
READING = """\
- **On a CPU without AMX**, where weights matter: GGUF Q4_0 and Q8_0 on the embedded engine, and W8A8 on vLLM, are
  faster than their parent. W4A16, GPTQ and AWQ save memory, not time: the kernel unpacks 4 bits on every use, and eight
  streams show it. FP8 is emulated there, many times slower than the parent: make it for a GPU.
- On the starter a token's time is the engine's own, not the weights': smaller weights are not faster there, and the
  extra arithmetic of unpacking shows. Its columns of quality are what to look at.
- With 8- and 4-bit weights the embedded engine also rounds a linear's inputs to 8 bits (OpenVINO's dynamic
  quantization, its default on CPU). With that off its greedy texts are those of the rounded weights exactly, on Llama,
  Qwen2 and Qwen3 of random weights; with it on, texts of the starter stay the parent's in Q8_0.
- The random model says nothing about quality, so none is given; its weights no longer fit the caches of a core.
- Engines are not compared with each other here: they run with other precisions and other schedulers.
- Schemes that are missing have no kernel on this CPU: FP8 in blocks wants AMX, W8A16 and FP4 a GPU
  ([engines.md](engines.md)). K-quants of GGUF need ggml's own tool to be written, and OpenVINO IR its own: the
  embedded engine turns Q8_0 and Q4_0 into integers of 8 and 4 bits itself. Of GGUF it reads F16, Q8_0, Q4_0 and Q4_1
  (tried here) and Q4_K and Q6_K (by its source); of Q5_0 it says "gguf_tensor_to_f16 failed".
"""


def write_page(rows: Sequence[Mapping[str, Any]], rounds: int) -> str:
    """`rows`: what served.Row holds."""
    tables = ""
    for model, title in TITLES.items():
        chosen = [row for row in rows if row["model"] == model]
        chosen.sort(key=lambda row: (row["engine"], row["recipe"] != "", row["recipe"]))
        if chosen:
            tables += f"## {title}\n\n{HEADER}\n|{'---|' * 3}{'--:|' * 9}\n{''.join(map(_line, chosen))}\n"
    today = datetime.datetime.now(tz=datetime.UTC).date()
    cpu, cores = _cpu()
    return PAGE.format(date=today, cpu=cpu, cores=cores, rounds=rounds, tables=tables, reading=READING.rstrip())


def _line(row: Mapping[str, Any]) -> str:
    parent = row["recipe"] == ""
    cells = [
        row["engine"],
        "the parent" if parent else f"`{row['recipe'].replace('+', ' --set ')}`",
        row["scheme"],
        f"{row['bits']:.2f}",
        f"{row['size_bytes'] / 1e6:.2f}",
        _number(row["perplexity"], 2),
        _number(row["accuracy"], 3),
        f"{row['single']:.0f}",
        "–" if parent else f"{row['single_ratio']:.2f}",
        f"{row['eight']:.0f}",
        "–" if parent else f"{row['eight_ratio']:.2f}",
        f"{row['memory_bytes'] / 1e6:.0f}",
    ]
    return f"| {' | '.join(cells)} |\n"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _cpu() -> tuple[str, int]:
    text = Path("/proc/cpuinfo").read_text()
    names = re.findall(r"model name\s*:\s*(.+)", text)
    return (names[0] if names else "unknown", len(names) or 1)
