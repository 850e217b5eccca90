"""The contract of a method. Two kinds: one block at a time (most), or the whole model at once (structure changes)."""

from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict

from compressor.block import Block
from compressor.numbers.grids import ScaleKind
from compressor.numbers.schemes import Scheme
from compressor.passes import ModelPass


class Params(BaseModel):
    """A method's parameters in a recipe: unknown keys are refused, every field has a description and a default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BlockMethod(Protocol):
    """Changes the linears of one block, given the inputs that reach it.

    `name`: in recipes; `about`: one line for people; `source`: title and arXiv id of the paper.
    `needs_inputs`: False when it looks at weights only, so that no calibration data is wanted. `scales`: what the
    layout stores plain scales as; set by the pipeline before the first block.
    A method that decides over all blocks before the first is changed has `needs_survey = True` and `survey(block)`,
    which is called with every block as it is in the parent, in a pass before.
    `scatters_groups = True`: inputs of a group are not successive, which a format's configuration may have to say.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    source: ClassVar[str]
    needs_inputs: ClassVar[bool]
    Params: ClassVar[type[Params]]
    scales: ScaleKind

    def __init__(self, params: Any) -> None: ...

    @property
    def scheme(self) -> Scheme | None:
        """What the weights are encoded in, None when they stay dense."""

    def apply(self, block: Block) -> None:
        """Change `block` in place. Raises CompressorError."""


class ModelMethod(Protocol):
    """Makes another model of a model: other widths, other heads, another architecture. Reads and writes checkpoints.

    `structure`: what a loader must know of the result, in the words of the engines' table ("sizes that differ by
    layer", "sliced (SliceGPT)", ...), or None.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    source: ClassVar[str]
    needs_inputs: ClassVar[bool]
    Params: ClassVar[type[Params]]

    def __init__(self, params: Any) -> None: ...

    @property
    def structure(self) -> str | None: ...

    def run(self, work: ModelPass) -> None:
        """Read `work.source`, write a whole dense checkpoint into `work.sink`, set its `config`.

        Raises CompressorError."""


Method = BlockMethod | ModelMethod
