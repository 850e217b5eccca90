"""The ladder of published figures on a user's own weights: OPT-125M, WikiText-2, windows of 2,048 tokens.

    python compression/bench/ladder.py WEIGHTS --text wiki.test.raw [--train wiki.train.raw] [--json ladder.json]

WEIGHTS is a folder with facebook/opt-125m as safetensors; the text files are WikiText-2's raw ones, joined here as in
GPTQ's protocol. Papers calibrated on C4, which is not at hand: expect our figures near theirs, not equal to them.
Minutes to an hour on a CPU; a rung that is there is not made again.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from compressor.calibration import SHIPPED
from compressor.checkpoint.manifest import read
from compressor.errors import CompressorError
from compressor.pipeline import Job, compress
from compressor.quality.measure import Settings, measure
from compressor.quality.tokens import JOIN, read_text
from compressor.recipe import parse
from compressor.screen import Screen

_ROW = {"scheme": "W4A16_ASYM", "group_size": -1}  # one scale and zero point an output row, as in GPTQ's tables


@dataclass(frozen=True, slots=True)
class Rung:
    """`published`: perplexity of OPT-125M in `source`; None where the papers name none."""

    name: str
    method: str | None
    published: float | None
    source: str
    params: dict[str, Any] = field(default_factory=dict)


_GPTQ, _SPARSE, _SLICE = "GPTQ, arXiv 2210.17323", "SparseGPT, arXiv 2301.00774", "SliceGPT, arXiv 2401.15024"
RUNGS = (
    Rung("dense", None, 27.66, _SPARSE),
    Rung("rtn-4", "rtn", 37.28, _GPTQ, _ROW),
    Rung("gptq-4", "gptq", 31.13, _GPTQ, _ROW),
    Rung("gptq-3", "gptq", 53.85, _GPTQ, _ROW | {"bits": 3}),
    Rung("magnitude-50", "magnitude", 193.0, _SPARSE, {"sparsity": 0.5}),
    Rung("sparsegpt-50", "sparsegpt", 36.85, _SPARSE, {"sparsity": 0.5}),
    Rung("sparsegpt-24", "sparsegpt", 60.4, _SPARSE, {"pattern": "2:4"}),
    Rung("slicegpt-20", "slicegpt", 34.53, _SLICE, {"sparsity": 0.2}),
)


def climb(
    weights: Path,
    text: Path,
    out: Path,
    screen: Screen,
    *,
    train: Path | None = None,
    ctx: int | None = None,
    samples: int = 128,
    rungs: Sequence[Rung] = RUNGS,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Make and measure each rung in `out`. Raises CompressorError."""
    out.mkdir(parents=True, exist_ok=True)
    ctx = ctx or min(2048, int(json.loads((weights / "config.json").read_text("utf-8"))["max_position_embeddings"]))
    joined = out / "wikitext-2-test.txt"
    joined.write_text(wikitext(text), "utf-8")
    rows = _calibration(train, out)
    settings = Settings(text=joined, ctx=ctx, per_family=0)
    found = []
    for rung in rungs:
        folder = weights if rung.method is None else out / rung.name
        if rung.method is not None and not folder.exists():
            compress(_job(rung, weights, folder, rows, ctx, samples, device), screen)
        quality = measure(folder, None, screen, torch.device(device), settings)
        assert quality is not None
        found.append(_result(rung, folder, quality))
        screen.say(f"{rung.name}: {found[-1]['perplexity']:.2f}, published {rung.published}")
    return found


def wikitext(path: Path) -> str:
    """A raw split as the data set's readers give it: a row a line with its line break, empty where the line is blank,
    rows joined by an empty line. Raises BadDataError."""
    lines = read_text(path).split("\n")
    return JOIN.join(f"{line}\n" if line.strip() else "" for line in lines[: -1 if not lines[-1] else None])


def _calibration(train: Path | None, out: Path) -> Path:
    """Rows of plain text: a model without a chat template takes no conversations."""
    path = out / "calibration.jsonl"
    if train is None:
        lines = SHIPPED.read_text("utf-8").splitlines()
        kept = [line for line in lines if "text" in json.loads(line)]
    else:
        kept = [json.dumps({"text": line.strip()}) for line in read_text(train).split("\n") if len(line) > 200]
    path.write_text("".join(f"{line}\n" for line in kept), "utf-8")
    return path


def _job(rung: Rung, weights: Path, folder: Path, rows: Path, ctx: int, samples: int, device: str) -> Job:
    value = {
        "name": rung.name,
        "method": rung.method,
        "params": rung.params,
        "calibration": {"file": str(rows), "samples": samples, "seq_len": ctx},
        "export": {"format": "dense"},
    }
    return Job(weights, parse(value, rung.name), folder, device=device, with_quality=False)


def _result(rung: Rung, folder: Path, quality: dict[str, Any]) -> dict[str, Any]:
    made = {} if rung.method is None else read(folder)
    return {
        "rung": rung.name,
        "perplexity": quality["perplexity"]["value"],
        "published": rung.published,
        "source": rung.source,
        "parameters": made.get("parameters"),
        "removed_parameters": made.get("removed_parameters"),
        "seconds": made.get("seconds"),
        "protocol": quality["perplexity"]["protocol"],
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    head = "| | perplexity | published | ours / published | source |\n|---|--:|--:|--:|---|\n"
    rows = [
        f"| {row['rung']} | {row['perplexity']:.2f} | {row['published'] or '–'} | "
        + (f"{row['perplexity'] / row['published']:.3f}" if row["published"] else "–")
        + f" | {row['source']} |"
        for row in results
    ]
    protocol = results[0]["protocol"]
    about = f"\nWikiText-2 test, {protocol['tokens']:,} tokens, windows of {protocol['ctx']}, BOS {protocol['bos']}."
    return head + "\n".join(rows) + about


def main() -> int:
    parser = argparse.ArgumentParser(description="OPT-125M's published perplexities beside ours.")
    add = parser.add_argument
    add("weights", type=Path, help="a folder with facebook/opt-125m: config.json, safetensors, tokenizer")
    add("--text", type=Path, required=True, help="wiki.test.raw of WikiText-2")
    add("--train", type=Path, help="wiki.train.raw to calibrate on; default: documentation that ships")
    add("--out", type=Path, default=Path("ladder"), help="where the checkpoints go (%(default)s)")
    add("--samples", type=int, default=128, help="calibration windows (%(default)s)")
    add("--ctx", type=int, help="tokens a window; default: 2,048 or the model's context")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--json", type=Path, help="results with their protocols")
    options = parser.parse_args()
    try:
        results = climb(
            options.weights,
            options.text,
            options.out,
            Screen(),
            train=options.train,
            ctx=options.ctx,
            samples=options.samples,
            device=options.device,
        )
    except CompressorError as error:
        sys.stderr.write(f"ladder: {error}\n")
        return error.exit_code
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    sys.stdout.write(f"{table(results)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
