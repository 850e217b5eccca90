"""Outlier Weighed Layerwise sparsity: blocks whose scores have more outliers are pruned less (arXiv 2310.05175).

Apart from the methods that prune because it looks at every block before the first one is changed: the driver calls
`survey` with each dense block in a pass of its own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

from pydantic import Field, model_validator
from torch import Tensor

from compressor.methods.base import Params
from compressor.methods.sparsity import Pruning, Share


class Owl(Params):
    """What OWL takes; the defaults are the paper's."""

    limit: float = Field(0.08, gt=0, lt=0.5, description="a block's sparsity differs from the mean by at most this")
    outlier: float = Field(5.0, gt=1, description="a score is an outlier above this many times the block's mean score")


class OwlPruning(Pruning):
    """Parameters of the methods that look at inputs, and so can tell a block's outliers."""

    owl: Owl | None = Field(None, description="spread the sparsity over blocks by their outliers; {} for the defaults")

    @model_validator(mode="after")
    def _owl_needs_freedom(self) -> Self:
        if self.owl is None:
            return self
        if self.pattern is not None:
            raise ValueError(f"owl changes the sparsity from block to block, which {self.pattern} cannot: keep one")
        if not self.owl.limit <= self.sparsity <= 1 - self.owl.limit:
            raise ValueError(f"owl.limit {self.owl.limit:g} leads from sparsity {self.sparsity:g} out of 0 … 1")
        return self


@dataclass(slots=True)
class Survey:
    """What was seen of the blocks so far, and what follows for each of them."""

    params: OwlPruning
    outliers: dict[int, float] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)

    def add(self, index: int, scores: Iterable[Tensor]) -> None:
        """The Wanda scores [O, I] of all linears of block `index`."""
        assert self.params.owl is not None
        held = list(scores)
        self.outliers[index] = outlier_share(held, self.params.owl.outlier)
        self.sizes[index] = sum(score.numel() for score in held)

    def goal(self, index: int) -> Share:
        """What to zero in block `index`, once all blocks were seen."""
        if self.params.owl is None:
            return self.params.goal
        order = sorted(self.outliers)
        outliers, sizes = [self.outliers[one] for one in order], [self.sizes[one] for one in order]
        shares = spread(outliers, sizes, self.params.sparsity, self.params.owl.limit)
        return Share(dict(zip(order, shares, strict=True))[index])


def outlier_share(scores: Sequence[Tensor], outlier: float) -> float:
    """Share of a block's scores above `outlier` times their mean (section 3.2), over all its linears at once."""
    total = sum(int(score.numel()) for score in scores)
    mean = sum(float(score.double().sum()) for score in scores) / total
    return sum(int((score > outlier * mean).sum()) for score in scores) / total


def spread(outliers: Sequence[float], sizes: Sequence[int], sparsity: float, limit: float) -> list[float]:
    """Sparsity of each block: the more outliers the less is pruned, within `limit` of `sparsity`.

    Outlier shares are stretched to the range 0 … 2·limit, as the authors' code does: the shares themselves differ by
    thousandths. The mean weighted by `sizes` is `sparsity` exactly; to keep it, all differences are scaled down
    together where one would pass the limit.
    """
    low, high = min(outliers), max(outliers)
    if high == low:
        return [sparsity] * len(outliers)
    kept = [(share - low) / (high - low) * 2 * limit for share in outliers]
    center = sum(one * size for one, size in zip(kept, sizes, strict=True)) / sum(sizes)
    differences = [center - one for one in kept]
    scale = min(1.0, limit / max(abs(one) for one in differences))
    return [sparsity + one * scale for one in differences]
