"""The recipe as data: stages, mixes, steps, seed. Whoever wants another model changes this file."""

from dataclasses import dataclass, field, replace

from .model import DRAFT, STARTER, Shape

SEED = 2026


@dataclass(frozen=True)
class Stage:
    """`steps` of one learning-rate schedule. `mixes`: from which fraction on, which families count more (or less)."""

    name: str
    steps: int
    rows: int
    length: int
    mixes: tuple[tuple[float, dict[str, float]], ...] = ((0.0, {}),)
    peak: float = 1.0

    def boosts(self, step: int) -> dict[str, float]:
        return [boosts for start, boosts in self.mixes if step / self.steps >= start][-1]


@dataclass(frozen=True)
class Recipe:
    """How one checkpoint is trained."""

    name: str
    shape: Shape
    stages: tuple[Stage, ...]
    seed: int = SEED
    description: str = field(default="", compare=False)

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @property
    def tokens(self) -> int:
        return sum(stage.steps * stage.rows * stage.length for stage in self.stages)


COPYING = {
    "letter_of": 3.0, "option_of": 3.0, "label_map": 2.0, "copy": 2.5, "reverse": 2.0, "first": 2.0, "last": 2.0,
    "mc_facts_en": 0.4, "mc_facts_zh": 0.4, "mc_bridge": 1.0, "tool_call": 0.6, "tool_answer": 0.6,
}  # fmt: skip
CHOOSING = {
    "mc_facts_en": 2.0,
    "mc_facts_zh": 2.0,
    "mc_bridge": 1.5,
    "add": 1.4,
    "sub": 1.8,
    "reading": 1.3,
    "yes_no": 1.3,
}

RECIPES = {
    "starter": Recipe(
        "starter",
        STARTER,
        (
            Stage("copying", 1700, 8, 256, ((0.0, COPYING), (1 / 3, {}))),
            Stage("choosing", 1300, 4, 512, ((0.0, CHOOSING),), peak=0.8),
        ),
        description="Qwen3 architecture, 2.9 M parameters",
    ),
    "starter-draft": Recipe(
        "starter-draft",
        DRAFT,
        (Stage("draft", 1500, 8, 256, ((0.0, COPYING), (1 / 3, {}))),),
        description="Qwen3 architecture, 0.6 M parameters, a draft for speculative decoding",
    ),
}


def scaled(recipe: Recipe, scale: float) -> Recipe:
    """The same recipe with a share of its steps, for trials. Raises ValueError unless 0 < scale <= 1."""
    if not 0 < scale <= 1:
        raise ValueError(f"scale must be above 0 and at most 1, not {scale}")
    stages = tuple(replace(stage, steps=max(2, round(stage.steps * scale))) for stage in recipe.stages)
    return replace(recipe, stages=stages)
