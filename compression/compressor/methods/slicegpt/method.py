"""SliceGPT: rotate the residual stream to its principal axes, delete the last ones. The sequential driver.

"SliceGPT: Compress Large Language Models by Deleting Rows and Columns" (arXiv 2401.15024), algorithm 1. One block at
a time: its inputs on the axes chosen so far, the signal between attention and MLP, new axes, and so on. Memory is one
block and the activations; axes are found on the signal that the sliced blocks before them really produce. A run that
was interrupted starts from the first block again: the axes are not on disk.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from compressor.block import Batch
from compressor.errors import BadCheckpointError
from compressor.families import Family, Group
from compressor.methods import base
from compressor.methods.slicegpt.basis import Basis, kept_width, principal, second_moments, turned
from compressor.methods.slicegpt.folding import fold, fold_reader, readers, writers
from compressor.methods.slicegpt.model import SlicedBlock, SlicedNorm, sliced_config
from compressor.passes import ModelPass
from compressor.skeleton import Skeleton

# Second moments of the stream [D, D] to the axes that stay.
Choose = Callable[[Tensor], Basis]


class SliceParams(base.Params):
    sparsity: float = Field(0.25, ge=0, lt=1, description="share of hidden dimensions to delete (of parameters: less)")
    multiple: int = Field(8, ge=1, description="what stays is rounded down to a multiple of this")
    signal: Literal["residual", "normalised"] = Field(
        "residual", description="where axes are found: before the norm (the authors' code) or at its output (the paper)"
    )
    orientation: Literal["principal", "random"] = Field(
        "principal", description="axes inside what stays: the principal ones, or turned at random (spreads outliers)"
    )
    damp: float = Field(0.01, ge=0, description="added to the second moments, as a share of their mean diagonal")


class SliceGPT:
    name: ClassVar[str] = "slicegpt"
    about: ClassVar[str] = "rotate the residual stream to its principal axes and delete the smallest"
    source: ClassVar[str] = "SliceGPT: Compress Large Language Models by Deleting Rows and Columns (arXiv 2401.15024)"
    needs_inputs: ClassVar[bool] = True
    Params: ClassVar[type[base.Params]] = SliceParams

    def __init__(self, params: base.Params) -> None:
        assert isinstance(params, SliceParams)
        self.params = params

    @property
    def structure(self) -> str | None:
        return "sliced (SliceGPT)"

    def run(self, work: ModelPass) -> None:
        _refuse_unknown(work.source.config)
        keep = kept_width(int(work.source.config["hidden_size"]), self.params.sparsity, self.params.multiple)
        generator = torch.Generator().manual_seed(work.seed)

        def choose(c_DD: Tensor) -> Basis:
            basis = principal(c_DD, keep, self.params.damp)
            return turned(basis, generator) if self.params.orientation == "random" else basis

        slice_model(work, keep, choose, is_normalised=self.params.signal == "normalised")


def slice_model(work: ModelPass, keep: int, choose: Choose, *, is_normalised: bool = False) -> None:
    """Read `work.source`, write the model sliced to `keep` dimensions, on axes that `choose` gives, to `work.sink`."""
    source, family = work.source, work.family
    dtype = torch.float64 if source.dtype is torch.float64 else torch.float32
    skeleton = Skeleton(source, family, work.device, dtype)
    width = int(source.config["hidden_size"])
    batches = _centered(skeleton.embed(work.rows), family)
    see = Sight(choose, SlicedNorm(width, 1e-6) if is_normalised else None)
    first = basis = see(batches)
    work.sink.write("00000-outside", _outside(skeleton, first, source.dtype))
    with work.screen.work("blocks", skeleton.count):
        for index in range(skeleton.count):
            block = dense_block(skeleton, index)
            batches, basis, kept = slice_block(block, family, batches, basis, see, is_last=index == skeleton.count - 1)
            name = family.block(index)
            tensors = {f"{name}.{key}": part.to(source.dtype) for key, part in block.state_dict().items()}
            work.sink.write(f"{index + 1:05}", tensors)
            work.facts.setdefault("kept_energy", {})[name] = [round(share, 6) for share in kept]
            work.screen.step(f"block {index + 1} of {skeleton.count}, kept {min(kept):.2%} of the signal")
    work.facts |= {"hidden_size": keep, "hidden_size_original": width}
    work.sink.config = sliced_config(source.config, family, keep)


def dense_block(skeleton: Skeleton, index: int) -> SlicedBlock:
    """A block with its norms folded, still of full width."""
    family, layer = skeleton.family, skeleton.block(index)
    block = SlicedBlock(layer, family, int(skeleton.source.config["hidden_size"]))
    for key, tensor in fold(layer.state_dict(), family).items():
        module, _, leaf = key.rpartition(".")
        setattr(block.get_submodule(module), leaf, nn.Parameter(tensor, requires_grad=False))
    return block


@torch.no_grad()
def slice_block(
    block: SlicedBlock, family: Family, batches: list[Batch], basis: Basis, see: "Sight", *, is_last: bool
) -> tuple[list[Batch], Basis, tuple[float, float]]:
    """Narrow a folded block of full width in place.

    `batches`: what reaches it, on the original axes [B, T, D]. `basis`: the axes its input is given on. Returns what
    leaves it on the original axes, the axes that is given on, and the shares of energy kept at attention and MLP.
    """
    attention, mlp = readers(family)
    _read_on(block, attention, basis)
    batches = [_through(batch, basis, partial(block.attend, **batch.kwargs)) for batch in batches]
    middle = see(batches)
    _write_on(block, writers(family)[0], middle)
    block.attn_shortcut = _shortcut(basis, middle, batches[0].hidden_BTD)
    _read_on(block, mlp, middle)
    batches = [_through(batch, middle, block.feed) for batch in batches]
    after = _original(middle) if is_last else see(batches)
    _write_on(block, writers(family)[1], after)
    block.mlp_shortcut = _shortcut(middle, after, batches[0].hidden_BTD)
    return batches, after, (basis.kept, middle.kept)


class Sight:
    """Looks at the stream and chooses axes. `norm`: seen through it, None for the stream itself."""

    def __init__(self, choose: Choose, norm: SlicedNorm | None = None) -> None:
        self._choose, self._norm = choose, norm

    def __call__(self, batches: list[Batch]) -> Basis:
        real = (batch.hidden_BTD[batch.real_BT] for batch in batches)
        return self._choose(second_moments(self._norm(x_TD) if self._norm else x_TD for x_TD in real))


def _through(batch: Batch, basis: Basis, add: Callable[[Tensor], Tensor]) -> Batch:
    """The stream after half a block that sees it on `basis` and adds to it on the original axes."""
    q_DK = basis.q_DK.to(batch.hidden_BTD.dtype)
    sliced_BTK = batch.hidden_BTD @ q_DK
    return replace(batch, hidden_BTD=sliced_BTK @ q_DK.T + add(sliced_BTK))


def _read_on(block: SlicedBlock, group: Group, basis: Basis) -> None:
    """W ← W·Q: the linears read the stream on the axes of `basis`."""
    for name in group.linears:
        linear = block.get_submodule(name)
        _put(linear, linear.weight @ basis.q_DK.to(linear.weight.dtype))


def _write_on(block: SlicedBlock, group: Group, basis: Basis) -> None:
    """W ← QᵀW, b ← bQ: the linears write the stream on the axes of `basis`."""
    for name in group.linears:
        linear = block.get_submodule(name)
        q_DK = basis.q_DK.to(linear.weight.dtype)
        bias = linear.bias
        _put(linear, q_DK.T @ linear.weight)
        if bias is not None:
            linear.bias = nn.Parameter(bias @ q_DK, requires_grad=False)


def _put(linear: nn.Module, w_OI: Tensor) -> None:
    linear.weight = nn.Parameter(w_OI.contiguous(), requires_grad=False)
    linear.out_features, linear.in_features = w_OI.shape


def _shortcut(before: Basis, after: Basis, like: Tensor) -> nn.Parameter:
    """Q_beforeᵀ·Q_after: the residual from one set of axes to the next."""
    return nn.Parameter((before.q_DK.T @ after.q_DK).to(like.dtype).contiguous(), requires_grad=False)


def _original(like: Basis) -> Basis:
    """The axes of the dense model, all of them: the head stays as it is."""
    return Basis(torch.eye(len(like.q_DK), dtype=torch.float64, device=like.q_DK.device), 1.0)


def _centered(batches: list[Batch], family: Family) -> list[Batch]:
    """LayerNorm models: embeddings and positions are mean-free from here on, and so is their sum."""
    if family.norm != "layer":
        return batches
    return [replace(batch, hidden_BTD=batch.hidden_BTD - batch.hidden_BTD.mean(-1, keepdim=True)) for batch in batches]


def _outside(skeleton: Skeleton, first: Basis, dtype: torch.dtype) -> dict[str, Tensor]:
    """Embeddings on the first axes; the head, untied, with the final norm in it."""
    family = skeleton.family
    told = {name: tensor.to(skeleton.device, skeleton.dtype) for name, tensor in skeleton.outside().items()}
    tensors = {name: tensor for name, tensor in told.items() if name.startswith(f"{family.head}.")}
    tensors.setdefault(f"{family.head}.weight", told[f"{family.embeddings}.weight"])
    fold_reader(tensors, family.head, told.get(f"{family.final_norm}.weight"), told.get(f"{family.final_norm}.bias"))
    if family.norm == "layer":
        tensors.setdefault(f"{family.head}.bias", torch.zeros_like(tensors[f"{family.head}.weight"][:, 0]))
    for name in filter(None, (family.embeddings, family.positions)):
        table_VD = told[f"{name}.weight"]
        if family.norm == "layer":
            table_VD = table_VD - table_VD.mean(-1, keepdim=True)
        tensors[f"{name}.weight"] = table_VD @ first.q_DK.to(table_VD.dtype)
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def _refuse_unknown(config: dict[str, Any]) -> None:
    width = config["hidden_size"]
    if not config.get("do_layer_norm_before", True) or config.get("word_embed_proj_dim", width) != width:
        raise BadCheckpointError("SliceGPT needs norms before every part of a block, and embeddings as wide as blocks")
