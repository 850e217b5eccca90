"""The model card, written from the manifest: a number stands in it only because it stands in penstock.json."""

from typing import Any

HEAD = """---
language: [en, zh]
license: apache-2.0
pipeline_tag: text-generation
---

# {name}

{description}. Trained from nothing by the recipe in services/starter_model (`make starter-model` runs it again);
docs/starter-model.md tells how it came about and what it did not learn. It exists so that serving, structured output,
tool calls, speculative decoding, fine-tuning and compression have something real to measure. It
knows forty invented countries, small arithmetic, word lists and a few tools. It is not an assistant: outside of its
families it makes things up.

Written from `penstock.json`, which holds the same figures and the recipe. Do not edit by hand.
"""

CLOSED = "known by heart: the phrasing is held out"


def card(manifest: dict[str, Any]) -> str:
    """README.md for one checkpoint."""
    quality = manifest["quality"]
    parts = [HEAD.format(**manifest), _facts(manifest), _quality(quality)]
    if "acceptance" in quality:
        parts.append(_acceptance(quality["acceptance"]))
    parts.append(_families(quality))
    return "\n".join(parts)


def _facts(m: dict[str, Any]) -> str:
    data, training = m["data"], m["training"]
    tools = ", ".join(f"{name} {number}" for name, number in m["tools"].items())
    rows = (
        ("parameters", f"{m['parameters']:,}"),
        ("weights", f"{m['scheme']}, {m['size_bytes']:,} bytes"),
        ("training", f"{training['steps']:,} steps, {data['tokens']:,} tokens, seed {data['seed']}"),
        ("time", f"{training['wall_s']:,} s wall, {training['cpu_s']:,} CPU-seconds"),
        ("data", data["description"]),
        ("data sha256", f"`{data['sha256']}`"),
        ("held out", data["held_out"]),
        ("made with", tools),
    )
    return "## How it was made\n\n| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows)


def _quality(quality: dict[str, Any]) -> str:
    prose = quality["prose"]
    return (
        "## Quality\n\n"
        f"- mean accuracy over {len(quality['families'])} families: **{quality['mean_accuracy']:.3f}** "
        f"({quality['protocol']}; evaluation seed {quality['seed']})\n"
        f"- perplexity on held-out prose: **{prose['perplexity']:.2f}** per token, "
        f"{prose['bits_per_byte']:.3f} bits per byte ({prose['protocol']}; {prose['tokens']:,} tokens)\n"
        f"- perplexity on held-out answers: {quality['answer_perplexity']:.3f}\n"
    )


def _acceptance(acceptance: dict[str, Any]) -> str:
    lines = "".join(
        f"| {name} | {acceptance[name]['rate']:.3f} | {acceptance[name]['tokens_per_round']:.2f} |\n"
        for name in ("tasks", "prose")
    )
    return (
        f"## As a draft for {acceptance['target']}, {acceptance['proposed_tokens']} tokens proposed\n\n"
        "| | accepted | tokens a round |\n|---|--:|--:|\n" + lines + f"\nProtocol: {acceptance['protocol']}.\n"
    )


def _families(quality: dict[str, Any]) -> str:
    rows = "".join(
        f"| {name} | {result['accuracy']:.3f} | {result['examples']} | {CLOSED if result['closed'] else ''} |\n"
        for name, result in quality["families"].items()
    )
    left_out = ", ".join(f"{name} {result['accuracy']:.3f}" for name, result in quality["left_out"].items())
    return (
        "## Accuracy per family\n\n| family | accuracy | held-out examples | |\n|---|--:|--:|---|\n"
        + rows
        + f"\nNever trained, left for fine-tuning experiments: {left_out}.\n"
    )
