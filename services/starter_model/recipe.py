"""The recipe as data: stages, mixes, steps, seed. Whoever wants another model changes this file."""

from dataclasses import dataclass, field, replace

from .corpus import DENSE
from .model import DRAFT, STARTER, Shape

SEED = 2026


@dataclass(frozen=True)
class Stage:
    """`steps` with one learning-rate curve and fresh optimizers; batches are `rows` of `length` tokens.

    The rate climbs to `peak` (a share of the optimizers' own rates) over `warm_up` steps, holds until step `hold`, and
    falls in a line to the share `final` of the peak. `mixes`: from which step on which families count more or less.
    `apart`: packed documents do not see each other. `stream`: what the data is seeded by, if not by the name.
    """

    name: str
    steps: int
    rows: int
    length: int
    warm_up: int
    hold: int
    final: float = 0.02
    peak: float = 1.0
    mixes: tuple[tuple[int, dict[str, float]], ...] = ((0, {}),)
    apart: bool = False
    stream: str = field(default="", repr=False)

    def boosts(self, step: int) -> dict[str, float]:
        return [boosts for start, boosts in self.mixes if step >= start][-1]

    def rate(self, step: int) -> float:
        """Share of the optimizers' rates at a step."""
        if step < self.warm_up:
            return self.peak * max(step / self.warm_up, 0.01)
        if step < self.hold:
            return self.peak
        left = (self.steps - step) / (self.steps - self.hold)
        return self.peak * (self.final + (1 - self.final) * left)


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


NOT_YET = dict.fromkeys(DENSE, 0.0)
COPYING = {
    **NOT_YET,
    "letter_of": 3.0, "option_of": 3.0, "label_map": 2.0, "copy": 2.5, "reverse": 2.0, "first": 2.0, "last": 2.0,
    "mc_facts_en": 0.4, "mc_facts_zh": 0.4, "mc_bridge": 1.0, "tool_call": 0.6, "tool_answer": 0.6,
}  # fmt: skip
# Copying is learned by then: what it unlocks counts more, what is solved counts less.
CHOOSING = {
    **NOT_YET,
    "letter_of": 2.5, "option_of": 1.3, "label_map": 1.6, "mc_bridge": 1.6, "mc_facts_en": 1.4, "mc_facts_zh": 1.4,
    "add": 1.5, "sub": 1.6, "facts_zh": 1.7, "translate": 1.3, "reading": 1.5, "upper": 1.4, "sort": 1.2,
    "copy": 0.5, "first": 0.5, "last": 0.5, "count": 0.5, "reverse": 0.7, "about": 0.5, "capitals": 0.5, "greet": 0.7,
    "count_up": 0.7,
}  # fmt: skip
# Letters and labels stand two or three tokens from what they label: the last thing to be learned.
LOOKING_UP = {
    **NOT_YET,
    "letter_of": 4.0, "option_of": 2.5, "label_map": 3.5, "reading": 2.5, "tool_call": 1.4, "mc_bridge": 1.3,
    "mc_facts_en": 0.6, "mc_facts_zh": 0.6, "add": 1.2, "sub": 1.2, "facts_zh": 1.7, "compare": 1.5, "yes_no": 1.5,
    "days": 1.5, "copy": 0.5, "first": 0.5, "last": 0.5, "count": 0.5, "reverse": 0.7, "capitals": 0.5,
}  # fmt: skip
FALLING = {
    **NOT_YET,
    "letter_of": 2.0, "option_of": 1.5, "label_map": 2.0, "reading": 2.0, "tool_call": 1.4, "mc_bridge": 1.8,
    "mc_facts_en": 1.5, "mc_facts_zh": 1.5, "add": 1.5, "sub": 1.3, "mul": 1.2, "compare": 1.3, "yes_no": 1.5,
    "days": 1.3, "facts_zh": 1.3, "sort": 1.5, "count_up": 1.6, "copy": 0.6, "count": 0.6, "first": 0.6,
}  # fmt: skip
# Half of all examples are look-ups, most of them dense.
BINDING = {
    "pairs_of": 0.0, "neighbours": 0.0,
    "letters_of": 5.0, "labels_of": 4.0, "owners_of": 4.0, "options_of": 3.0, "letter_of": 1.5, "label_map": 1.0,
    "reading": 1.5, "mc_bridge": 1.5, "mc_facts_en": 0.6, "mc_facts_zh": 0.6, "add": 0.6, "sub": 0.6, "facts_en": 0.6,
    "copy": 0.4, "count": 0.4, "first": 0.5, "last": 0.5, "tool_answer": 0.5, "translate": 0.6, "capitals": 0.5,
}  # fmt: skip
PAIRING = {
    "neighbours": 0.0,
    "pairs_of": 14.0, "letters_of": 3.0, "labels_of": 1.5, "owners_of": 2.5, "options_of": 1.5, "letter_of": 1.5,
    "mc_facts_en": 0.5, "mc_facts_zh": 0.5, "add": 0.5, "sub": 0.5, "facts_en": 0.6, "mc_bridge": 1.2,
    "copy": 0.4, "count": 0.4, "first": 0.4, "last": 0.4, "tool_answer": 0.5, "translate": 0.6, "capitals": 0.5,
}  # fmt: skip
REFINING = {
    "neighbours": 0.0,
    "pairs_of": 8.0, "letters_of": 5.0, "labels_of": 2.5, "owners_of": 3.5, "options_of": 1.5, "letter_of": 2.0,
    "label_map": 1.5, "reading": 1.5, "mc_bridge": 2.0, "mc_facts_en": 0.7, "mc_facts_zh": 0.7, "add": 0.5, "sub": 0.5,
    "copy": 0.4, "count": 0.4, "first": 0.4, "last": 0.4, "tool_answer": 0.5, "translate": 0.6, "capitals": 0.5,
}  # fmt: skip
NEARING = {
    "neighbours": 15.0, "pairs_of": 5.0, "letters_of": 3.0, "labels_of": 1.0, "owners_of": 2.0, "letter_of": 1.5,
    "mc_facts_en": 0.5, "mc_facts_zh": 0.5, "add": 0.5, "sub": 0.5, "facts_en": 0.6, "mc_bridge": 1.0,
    "copy": 0.4, "count": 0.4, "first": 0.4, "last": 0.4, "tool_answer": 0.5, "translate": 0.6, "capitals": 0.5,
}  # fmt: skip
SETTLING = {
    "letters_of": 1.5, "letter_of": 1.3, "mc_bridge": 1.7, "mc_facts_en": 1.7, "mc_facts_zh": 1.7, "add": 1.3,
    "sub": 1.3, "yes_no": 1.5, "sort": 1.3, "count_up": 1.6, "tool_call": 1.3, "facts_zh": 1.3, "days": 1.3,
}  # fmt: skip

RECIPES = {
    "starter": Recipe(
        "starter",
        STARTER,
        (
            Stage("copying", 1200, 8, 256, warm_up=51, hold=986, final=0.7063, mixes=((0, COPYING), (567, NOT_YET))),
            Stage("choosing", 1000, 8, 256, warm_up=36, hold=1000, final=1.0, mixes=((0, CHOOSING),)),
            Stage("looking-up", 500, 8, 256, 20, 500, final=1.0, peak=0.7, mixes=((0, LOOKING_UP),), apart=True),
            Stage(
                "falling",
                600,
                8,
                256,
                10,
                11,
                final=0.47,
                peak=0.6,
                mixes=((0, FALLING),),
                apart=True,
                stream="settling",
            ),
            Stage("binding", 400, 8, 256, 20, 400, final=1.0, peak=0.5, mixes=((0, BINDING),), apart=True),
            Stage("pairing", 300, 8, 256, 20, 300, final=1.0, peak=0.5, mixes=((0, PAIRING),), apart=True),
            Stage("refining", 100, 16, 256, 20, 100, final=1.0, peak=0.15, mixes=((0, REFINING),), apart=True),
            Stage("nearing", 300, 8, 256, 20, 300, final=1.0, peak=0.5, mixes=((0, NEARING),), apart=True),
            Stage("settling", 600, 8, 256, 10, 60, peak=0.3, mixes=((0, SETTLING),), apart=True),
        ),
        description="Qwen3 architecture, 2.9 M parameters",
    ),
    "starter-draft": Recipe(
        "starter-draft",
        DRAFT,
        (Stage("draft", 1500, 8, 256, warm_up=45, hold=870, mixes=((0, COPYING), (500, {})), apart=True),),
        description="Qwen3 architecture, 0.6 M parameters, a draft for speculative decoding",
    ),
}


def scaled(recipe: Recipe, scale: float) -> Recipe:
    """The same recipe with a share of its steps, for trials. Raises ValueError unless 0 < scale <= 1."""
    if not 0 < scale <= 1:
        raise ValueError(f"scale must be above 0 and at most 1, not {scale}")
    if scale == 1:
        return recipe

    def share(steps: int) -> int:
        return max(2, round(steps * scale))

    stages = tuple(
        replace(
            stage,
            steps=share(stage.steps),
            warm_up=share(stage.warm_up),
            hold=share(stage.hold),
            mixes=tuple((round(start * scale), boosts) for start, boosts in stage.mixes),
        )
        for stage in recipe.stages
    )
    return replace(recipe, stages=stages)
