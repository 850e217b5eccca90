"""`penstock compress measure CHECKPOINT`: quality alone, as a few lines for people or as JSON."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from compressor.quality.measure import Settings, measure
from compressor.quality.prompts import STYLES
from compressor.screen import Screen

EPILOG = """\
examples:
  penstock compress measure starter-gptq-w4a16 --parent model_repo/checkpoints/starter
  penstock compress measure ./llama-w4 --parent ./llama --text wiki.test.txt --ctx 2048 --json quality.json
  penstock compress measure ./qwen-w4 --ceval ./ceval --cmmlu ./cmmlu --style opencompass

--text is joined as it is, tokenized once and cut into windows that do not overlap (GPTQ's protocol). The protocol of
every figure is in the JSON: figures of different protocols are not comparable.
"""


def main_measure(argv: list[str]) -> int:
    """Raises CompressorError."""
    options = _parser().parse_args(argv)
    settings = Settings(
        text=options.text,
        ctx=options.ctx,
        per_family=options.rows,
        ceval=options.ceval,
        cmmlu=options.cmmlu,
        style=options.style,
    )
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    screen = Screen(is_quiet=options.quiet)
    quality = measure(options.checkpoint, options.parent, screen, device, settings, options.cache)
    if quality is None:
        return 1
    if options.json is not None:
        options.json.write_text(json.dumps(quality, ensure_ascii=False, indent=2, allow_nan=False) + "\n", "utf-8")
    for line in lines(quality):
        sys.stdout.write(f"{line}\n")
    return 0


def lines(quality: dict[str, Any]) -> Iterator[str]:
    """The figures, parent's beside child's."""
    parent = quality.get("parent", {})
    if found := quality.get("perplexity"):
        protocol = found["protocol"]
        about = f"{protocol['dataset']}, {protocol['tokens']:,} tokens in windows of {protocol['ctx']}"
        yield f"perplexity  {found['value']:.3f}{_beside(parent, 'perplexity', 'value')}  ({about})"
    if found := quality.get("accuracy"):
        rows = found["protocol"]["rows"]
        yield f"accuracy    {found['mean']:.4f}{_beside(parent, 'accuracy', 'mean')}  ({rows:,} tasks)"
    if found := quality.get("kl"):
        yield f"KL          {found['mean']:.5f} nats a token"
        yield f"agreement   {quality['agreement']['value']:.2%} of greedy tokens"
    for name in ("ceval", "cmmlu"):
        if "macro" in (found := quality.get(name, {})):
            asked = f"{found['questions']:,} questions, {found['protocol']['prompt_style']}"
            yield f"{name:<11} {found['macro']:.2f} macro, {found['micro']:.2f} micro  ({asked})"


def _beside(parent: dict[str, Any], name: str, key: str) -> str:
    digits = 3 if name == "perplexity" else 4
    return f" (parent {parent[name][key]:.{digits}f})" if name in parent else ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="penstock compress measure",
        description="What a checkpoint is worth, and what it lost: perplexity, tasks, divergence, multiple choice.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="a checkpoint's folder")
    add("--parent", type=Path, metavar="DIR", help="what it was made of: divergence and loss are measured against it")
    add(
        "--text",
        type=Path,
        metavar="FILE",
        help='text or JSON lines of {"text"}; default: held-out Python documentation',
    )
    add(
        "--ctx",
        type=int,
        metavar="N",
        help="tokens a window; default: 2048 or the model's context, 256 on the default text",
    )
    add(
        "--rows",
        type=int,
        default=20,
        metavar="N",
        help="tasks of each family of the starter's, 0 for none (%(default)s)",
    )
    add("--ceval", type=Path, metavar="DIR", help="your C-Eval files: dev/ and val/")
    add("--cmmlu", type=Path, metavar="DIR", help="your CMMLU files: dev/ and test/")
    add("--style", choices=STYLES, default="official", help="of multiple-choice prompts (%(default)s)")
    add("--device", metavar="NAME", help="cpu, cuda; default: the GPU when there is one")
    add("--cache", type=Path, metavar="DIR", help="keep the parent's figures there for the next child")
    add("--json", type=Path, metavar="FILE", help="everything, with protocols")
    add("--quiet", action="store_true", help="the figures and nothing else")
    return parser
