"""The served table of docs/compression-served.md: scheme × engine × size × quality × tokens/s × memory.

Run by the compressor's Python (it makes the random model): `.venvs/compress/bin/python compression/bench/served.py`.
A child is measured beside its parent: both engines are up, rounds alternate, medians are compared, so that what else
the machine does falls on both. Rows are kept in WORK/rows.json as they are made: an interrupted run goes on there.
"""

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from served_page import write_page

ROOT = Path(__file__).resolve().parents[2]
COMPRESS, UP = ROOT / ".venvs/compress/bin/penstock", ROOT / ".venv/bin/penstock"
STARTER = ROOT / "model_repo/checkpoints/starter"
TASKS = ROOT / "compression/data/tasks.jsonl"
FAMILIES = (
    "facts_en", "facts_zh", "add", "sub", "mul", "compare", "first", "last", "reverse", "sort", "count", "upper",
    "copy", "as_json", "translate", "option_of",
)  # fmt: skip
PER_FAMILY = 8
MARK = "PENSTOCK_BENCH_MARK"
# Weights that no method has to be right about: what a recipe looks at decides nothing about speed.
HARDLY_ANY_DATA = ("calibration.samples=2", "calibration.seq_len=64")
# bfloat16 for parent and child alike: the 4-bit kernel's type, and half the parent's memory.
ENGINE_ARGS = {"vllm": ("--engine-arg=--dtype=bfloat16",), "openvino": ()}
CASES = {
    "openvino": (("gguf-q8-0",), ("gguf-q4-0",)),
    "vllm": (
        ("gptq-w4a16",),
        ("gptq-w8a8",),
        ("awq-w4a16",),
        ("gptq-w4a16", "export.format=gptq"),
        ("fp8-dynamic",),
    ),
}
# Tokens of an answer: (one stream, each of eight).
TOKENS = {"starter": (256, 128), "random-100m": (48, 24)}


@dataclass
class Row:
    """One line. Speeds are tokens a second; ratios are to the parent, measured in turn with it."""

    model: str
    engine: str
    recipe: str
    scheme: str
    bits: float
    size_bytes: int
    perplexity: float | None
    accuracy: float | None
    single: float
    single_ratio: float
    eight: float
    eight_ratio: float
    memory_bytes: int


def main() -> None:
    args = _parser().parse_args()
    rows_file: Path = args.work / "rows.json"
    args.work.mkdir(parents=True, exist_ok=True)
    rows = [Row(**row) for row in json.loads(rows_file.read_text())] if rows_file.exists() else []
    if not args.page_only:
        for row in measure(args.models, args.engines, args.work, args.rounds, {key(row) for row in rows}):
            rows.append(row)
            rows_file.write_text(json.dumps([asdict(row) for row in rows], indent=1))
            print(row, flush=True)
    args.page.write_text(write_page([asdict(row) for row in rows], args.rounds), encoding="utf-8")


def key(row: Row) -> tuple[str, str, str]:
    return row.model, row.engine, row.recipe


def measure(
    models: list[str], engines: list[str], work: Path, rounds: int, known: set[tuple[str, str, str]]
) -> Iterator[Row]:
    """One parent stays up for all its children on an engine; each child comes and goes."""
    for model in models:
        parent = STARTER if model == "starter" else random_model(work / model)
        for engine in engines:
            missing = [case for case in CASES[engine] if (model, engine, "+".join(case)) not in known]
            if not missing:
                continue
            with up(engine, parent, work / "parent") as original:
                for case in missing:
                    folder = compressed(parent, model, case, work)
                    with up(engine, folder, work / "child") as child:
                        speeds = in_turn(original, child, *TOKENS[model], rounds)
                        yield from rows_of(model, engine, case, parent, folder, original, child, speeds, known)


def rows_of(
    model: str,
    engine: str,
    case: tuple[str, ...],
    parent: Path,
    folder: Path,
    original: "Stack",
    child: "Stack",
    speeds: dict[str, list[float]],
    known: set[tuple[str, str, str]],
) -> Iterator[Row]:
    """The child's row, before the first one also the parent's."""
    median = {name: statistics.median(values) for name, values in speeds.items()}
    if (model, engine, "") not in known:
        known.add((model, engine, ""))
        told = json.loads((folder / "penstock.json").read_text("utf-8")).get("quality") or {}
        beside = (told.get("parent") or {}).get("perplexity")  # by the same protocol as the child's
        yield row(model, engine, "", parent, original, median["parent 1"], 1.0, median["parent 8"], 1.0, beside)
    ratios = [
        statistics.median(c / p for c, p in zip(speeds[f"child {n}"], speeds[f"parent {n}"], strict=True))
        for n in (1, 8)
    ]
    yield row(model, engine, "+".join(case), folder, child, median["child 1"], ratios[0], median["child 8"], ratios[1])


def row(
    model: str, engine: str, recipe: str, folder: Path, stack: "Stack",
    single: float, single_ratio: float, eight: float, eight_ratio: float,
    parent_perplexity: dict[str, Any] | None = None,
) -> Row:  # fmt: skip
    manifest = json.loads((folder / "penstock.json").read_text("utf-8"))
    quality = manifest.get("quality") or {}
    perplexity = (quality.get("perplexity") or parent_perplexity or {}).get("value")
    return Row(
        model=model,
        engine=engine,
        recipe=recipe,
        scheme=manifest["scheme"],
        bits=manifest["bits_per_weight"],
        size_bytes=manifest["size_bytes"],
        perplexity=perplexity,
        accuracy=accuracy(stack) if model == "starter" else None,
        single=single,
        single_ratio=single_ratio,
        eight=eight,
        eight_ratio=eight_ratio,
        memory_bytes=stack.memory_bytes(),
    )


# ---- checkpoints ----


def random_model(folder: Path) -> Path:
    """Qwen3 of about 100 M random weights: hidden 768, 16 layers, 12 and 4 heads; the starter's tokens."""
    if (folder / "penstock.json").exists():
        return folder
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=768, num_hidden_layers=16, num_attention_heads=12, num_key_value_heads=4, head_dim=64,
        intermediate_size=2048, vocab_size=2048, tie_word_embeddings=True, max_position_embeddings=2048,
        eos_token_id=2039, pad_token_id=2038,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        (folder / name).write_bytes((STARTER / name).read_bytes())
    count = sum(parameter.numel() for parameter in model.parameters())
    manifest = {
        "name": folder.name,
        "scheme": "BF16",
        "bits_per_weight": 16.0,
        "parameters": count,
        "size_bytes": 2 * count,
    }
    (folder / "penstock.json").write_text(json.dumps(manifest))
    return folder


def compressed(parent: Path, model: str, case: tuple[str, ...], work: Path) -> Path:
    out = work / "-".join((model, *case))
    if not out.exists():
        recipe, *changes = case
        changes += () if model == "starter" else HARDLY_ANY_DATA
        command = [str(COMPRESS), "compress", str(parent), "--recipe", recipe, "--out", str(out), "--quiet"]
        command += [part for change in changes for part in ("--set", change)]
        command += [] if model == "starter" else ["--no-quality"]
        subprocess.run(command, check=True)
    return out


# ---- engines ----


class Stack:
    """One `penstock up`: an engine behind a gateway on `url`."""

    def __init__(self, engine: str, checkpoint: Path, run: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.mark = uuid.uuid4().hex
        self.log = run.with_suffix(".log").open("wb")
        command = [
            str(UP),
            "up",
            "--engine",
            engine,
            "--model",
            str(checkpoint),
            "--name",
            "m",
            "--port",
            str(self.port),
        ]
        command += ["--run-dir", str(run), *ENGINE_ARGS[engine]]
        self.process = subprocess.Popen(
            command, stdout=self.log, stderr=self.log, env=os.environ | {MARK: self.mark}, start_new_session=True
        )

    def wait(self) -> None:
        deadline = time.monotonic() + 600
        while True:
            with suppress(OSError):
                if urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ready", timeout=10).status == 200:
                    return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"it did not come up: {self.log.name}")
            time.sleep(0.5)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(120)
        self.log.close()

    def ask(self, path: str, **body: Any) -> dict[str, Any]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/{path}", json.dumps({"model": "m", "temperature": 0} | body).encode(),
            {"content-type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=600) as answer:  # noqa: S310
            found: dict[str, Any] = json.load(answer)
        return found

    def tokens_a_second(self, streams: int, tokens: int) -> float:
        """Of `streams` answers at once, from the first request to the last token."""

        def one(number: int) -> int:
            answer = self.ask("completions", prompt=f"{number} Once", max_tokens=tokens, ignore_eos=True)
            made: int = answer["usage"]["completion_tokens"]
            return made

        began = time.perf_counter()
        with ThreadPoolExecutor(streams) as pool:
            made = sum(pool.map(one, range(streams)))
        return made / (time.perf_counter() - began)

    def memory_bytes(self) -> int:
        """Proportional share of all processes but ours, the gateway and the stack: of the engine."""
        total = 0
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, StopIteration, ValueError):
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                if not self._is_ours(entry) or b"gateway" in words or b" up " in words or b"guard" in words:
                    continue
                rollup = (entry / "smaps_rollup").read_text().splitlines()
                total += 1024 * int(next(line for line in rollup if line.startswith("Pss:")).split()[1])
        return total

    def _is_ours(self, entry: Path) -> bool:
        """Marked, or a child (vLLM's write over their environment) of one that is."""
        for _ in range(8):
            if f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                return True
            parent = (entry / "stat").read_bytes().rpartition(b")")[2].split()[1].decode()
            if parent in ("0", "1"):
                return False
            entry = Path("/proc") / parent
        return False


@contextmanager
def up(engine: str, checkpoint: Path, run: Path) -> Iterator[Stack]:
    stack = Stack(engine, checkpoint, run)
    try:
        stack.wait()
        stack.tokens_a_second(8, 8)  # kernels warm up
        yield stack
    finally:
        stack.stop()


def in_turn(parent: Stack, child: Stack, single: int, eight: int, rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for number in range(rounds):
        pair = (("parent", parent), ("child", child))
        for streams, tokens in ((1, single), (8, eight)):
            for name, stack in pair if number % 2 else reversed(pair):
                found.setdefault(f"{name} {streams}", []).append(stack.tokens_a_second(streams, tokens))
    return found


def accuracy(stack: Stack) -> float:
    """Exact answers to held-out questions of the families that the starter is good at."""
    rows = [json.loads(line) for line in TASKS.read_text("utf-8").splitlines()]
    rows = [one for family in FAMILIES for one in [one for one in rows if one["family"] == family][:PER_FAMILY]]

    def is_right(one: dict[str, Any]) -> bool:
        answer = stack.ask("chat/completions", messages=one["messages"], max_tokens=48)
        return bool((answer["choices"][0]["message"]["content"] or "").strip() == one["answer"])

    with ThreadPoolExecutor(8) as pool:
        return sum(pool.map(is_right, rows)) / len(rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="served.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, default=ROOT / ".cache/served", help="checkpoints and rows")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/compression-served.md")
    parser.add_argument("--models", nargs="+", default=list(TOKENS), choices=list(TOKENS))
    parser.add_argument("--engines", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--page-only", action="store_true", help="write the page from the rows that are there")
    return parser


if __name__ == "__main__":
    main()
