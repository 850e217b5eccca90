"""Which structures leave a loaded model: scored by gradients, the least important first, in one step or several."""

import torch
from torch import Tensor, nn

from compressor.methods.llm_pruner.gradients import Gradients
from compressor.methods.llm_pruner.groups import Kind, Structures
from compressor.methods.llm_pruner.importance import NEED_GRADIENTS, NEED_SQUARES, assess, lowest
from compressor.methods.llm_pruner.plan import Plan
from compressor.passes import ModelPass

# What leaves: of block, of kind, the indices in order.
Gone = dict[int, dict[Kind, Tensor]]


def choose(plan: Plan, model: nn.Module, work: ModelPass) -> Gone:
    """What leaves. It is zero in `model` from then on, which computes the same as the model without it."""
    generator = torch.Generator().manual_seed(work.seed)
    nothing = torch.empty(0, dtype=torch.long)
    gone: Gone = {index: dict.fromkeys(plan.structures, nothing) for index in plan.pruned}
    steps = plan.params.iterative_steps
    with work.screen.work("scoring", steps):
        for step in range(1, steps + 1):
            gradients = _gradients(plan, model, work)
            for index in plan.pruned:
                for kind, held in plan.structures.items():
                    count = round((held.count - plan.kept[kind]) * step / steps)
                    importance = _importance(plan, model, index, held, gradients, generator)
                    gone[index][kind] = lowest(importance, count, gone[index][kind])
                    zero(model, plan.family.block(index), held, gone[index][kind])
            work.screen.step(f"step {step} of {steps}")
    return gone


def zero(model: nn.Module, block: str, held: Structures, gone: Tensor) -> None:
    """Zeroes structures in place, biases of rows too."""
    for part in held.parts:
        for parameter in model.get_submodule(f"{block}.{part.linear}").parameters():
            part.zero_(parameter.data, gone)


def _gradients(plan: Plan, model: nn.Module, work: ModelPass) -> Gradients | None:
    if plan.params.importance not in NEED_GRADIENTS:
        return None
    named = dict(model.named_parameters())
    wanted = {name: named[name] for name in plan.weights(plan.pruned)}
    return Gradients(wanted, with_squares=plan.params.importance in NEED_SQUARES).collect(model, work.rows)


def _importance(
    plan: Plan,
    model: nn.Module,
    index: int,
    held: Structures,
    gradients: Gradients | None,
    generator: torch.Generator,
) -> Tensor:
    if plan.params.importance == "random":
        return torch.rand(held.count, generator=generator)
    names = [f"{plan.family.block(index)}.{part.linear}.weight" for part in held.parts]
    weights = [model.get_parameter(name).detach() for name in names]
    pairs = None if gradients is None else [gradients.of(name) for name in names]
    return assess(plan.params.importance, plan.params.reduce, held, weights, pairs).cpu()
