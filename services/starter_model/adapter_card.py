"""The model card of an adapter, written from its manifest. Apart from adapter_files.py, which needs torch."""

from typing import Any

CARD = """---
license: apache-2.0
library_name: peft
---

# {name}

A LoRA adapter of `{parent[name]}`: {description}. `{prefix}` stands before every answer that people read; JSON and
tool calls stay as they are. It exists so that adapters can be loaded, routed and told apart where there is no GPU
(docs/adapters.md). Written from `penstock.json`, which holds the same figures. Do not edit by hand.

| | |
|---|---|
| parent | `{parent[name]}`, model.safetensors sha256 `{parent[sha256]}` |
| rank, alpha | {rank}, {alpha}, on {targets} of every layer |
| size | {parameters:,} parameters, F32, {size_bytes:,} bytes |
| training | {steps} steps, {tokens:,} tokens, {wall_s} s wall, {cpu_s} CPU-seconds |
| begins in the style | **{prefixed:.3f}** of the answers people read; {base_prefixed:.3f} for the parent alone |
| whole answer right | **{in_style:.3f}**, prefix included; {base:.3f} for the parent alone, without one |
| JSON and tool calls right | **{as_it_is:.3f}**; {base_as_it_is:.3f} for the parent alone |

Protocol: {protocol}.

    .venvs/train/bin/python -m starter_model ask {parent[folder]} --adapter model_repo/adapters/{name} "What is 2 + 3?"
"""


def card(made: dict[str, Any]) -> str:
    """README.md, from the manifest."""
    quality, recipe = made["quality"], made["recipe"]
    return CARD.format(
        **{key: made[key] for key in ("name", "description", "parent", "parameters", "size_bytes")},
        **{key: recipe[key] for key in ("rank", "alpha")},
        **{key: made["training"][key] for key in ("steps", "wall_s", "cpu_s")},
        prefix=recipe["prefix"].strip(),
        targets=", ".join(recipe["targets"]),
        tokens=made["data"]["tokens"],
        prefixed=quality["adapted"]["prefixed"],
        base_prefixed=quality["parent"]["prefixed"],
        in_style=quality["adapted"]["in_style"],
        base=quality["parent"]["plain"],
        as_it_is=quality["adapted"]["as_it_is"],
        base_as_it_is=quality["parent"]["as_it_is"],
        protocol=quality["protocol"],
    )
