"""LLM-Pruner: whole KV groups and MLP channels leave, those whose removal changes the loss least.

LLM-Pruner: On the Structural Pruning of Large Language Models, arXiv 2305.11627, block-wise. The model gets smaller and
faster on every engine. `widths: uniform` prunes all blocks alike, so that a stock config.json says it all; `per_layer`
spares the first and last blocks, as the paper does, and only Penstock's own loader can run the result (model.py).
What the paper does next, training with LoRA to recover, is fine-tuning of the checkpoint that this writes, whichever
tool does it; `calibration_perplexity` among the facts is without it.
The whole model is in memory, in float32, with its gradients: the one exception to going block by block.
"""

from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from compressor.methods import base
from compressor.methods.llm_pruner.choice import Gone, choose
from compressor.methods.llm_pruner.gradients import perplexity
from compressor.methods.llm_pruner.groups import Structures
from compressor.methods.llm_pruner.importance import NEED_GRADIENTS, NEED_SQUARES
from compressor.methods.llm_pruner.memory import need_memory, needed_bytes
from compressor.methods.llm_pruner.model import load_uneven
from compressor.methods.llm_pruner.plan import Plan, PrunerParams
from compressor.passes import ModelPass


class LLMPruner:
    name: ClassVar[str] = "llm-pruner"
    about: ClassVar[str] = "removes heads and MLP channels whose loss matters least; smaller and faster everywhere"
    source: ClassVar[str] = "LLM-Pruner: On the Structural Pruning of Large Language Models, arXiv 2305.11627"
    needs_inputs: ClassVar[bool] = True
    Params: ClassVar[type[base.Params]] = PrunerParams

    def __init__(self, params: PrunerParams) -> None:
        self._params = params

    @property
    def structure(self) -> str | None:
        return "sizes that differ by layer" if self._params.widths == "per_layer" else None

    def run(self, work: ModelPass) -> None:
        plan = Plan(self._params, work.source.config, work.family)
        if why := plan.why_attention_stays():
            work.screen.warn(f"attention stays whole: {why}")
        if plan.is_renamed:
            work.screen.say("written as Mistral, the same network: engines refuse a Llama of so many heads")
        need_memory(needed_bytes(work.source, plan.weights(plan.pruned), self._copies()), work.device)
        model = load_uneven(work.source).to(work.device)
        before = perplexity(model, work.rows)
        gone = choose(plan, model, work)
        after = perplexity(model, work.rows)
        work.facts |= plan.facts() | {"calibration_perplexity": {"before": round(before, 4), "after": round(after, 4)}}
        work.screen.say(f"removed {plan.removed_parameters():,} parameters: calibration {_told(before, after)}")
        if self._params.widths == "uniform":
            _tell_cost_of_uniform(plan, model, work, before)
        del model
        write(plan, gone, work)

    def _copies(self) -> int:
        """Of the weights to be scored, beside the model: gradients, their mean while the next ones come, squares."""
        if self._params.importance not in NEED_GRADIENTS:
            return 0
        return 3 if self._params.importance in NEED_SQUARES else 2


def narrow(tensors: Mapping[str, Tensor], structures: Iterable[tuple[Structures, Tensor]]) -> dict[str, Tensor]:
    """A block's tensors, by names relative to it, without the structures given by their indices."""
    narrowed = dict(tensors)
    for held, gone in structures:
        is_kept = torch.ones(held.count, dtype=torch.bool)
        is_kept[gone] = False
        kept = is_kept.nonzero().flatten()
        for part in held.parts:
            for leaf in ("weight", "bias"):
                if (name := f"{part.linear}.{leaf}") in narrowed:
                    narrowed[name] = part.take(narrowed[name], kept)
    return narrowed


def write(plan: Plan, gone: Gone, work: ModelPass) -> None:
    """The checkpoint without what leaves, in the dtype it was stored in, block by block."""
    source, family, blocks = work.source, work.family, plan.geometry.blocks
    outside = [name for name in source.entries if not name.startswith(f"{family.blocks}.")]
    work.sink.write("00000-outside", {name: source.read(name) for name in outside})
    with work.screen.work("blocks", blocks):
        for index in range(blocks):
            name = family.block(index)
            left = [(plan.structures[kind], indices) for kind, indices in gone.get(index, {}).items()]
            tensors = narrow(source.read_module(name), left)
            work.sink.write(f"{index + 1:05}", {f"{name}.{key}": tensor for key, tensor in tensors.items()})
            work.screen.step(f"block {index + 1} of {blocks}")
    work.sink.config = plan.new_config()


def _tell_cost_of_uniform(plan: Plan, model: nn.Module, work: ModelPass, before: float) -> None:
    """The same choice with the sensitive blocks put back: what pruning all blocks alike costs."""
    whole = [index for index in plan.pruned if index not in set(plan.inner)]
    if not plan.inner or not whole:
        return
    for name in plan.weights(whole):
        for full in (name, name.removesuffix("weight") + "bias"):
            if full in work.source.entries:
                model.get_parameter(full).data.copy_(work.source.read(full))
    sparing = perplexity(model, work.rows)
    work.facts["calibration_perplexity"]["sparing_first_and_last_blocks"] = round(sparing, 4)
    work.screen.say(
        f"widths: uniform prunes the sensitive first and last blocks too; with blocks {whole} whole, calibration "
        f"{_told(before, sparing)}, for {len(plan.inner) / plan.geometry.blocks:.0%} of the savings, on no engine"
    )


def _told(before: float, after: float) -> str:
    return f"perplexity {before:.2f} → {after:.2f}"
