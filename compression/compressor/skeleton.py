"""A model without its blocks: embeddings, final norm and head are there, blocks are made one at a time from the files.

Architectures come from transformers, built on the meta device: what is never loaded takes no memory.
"""

import copy
from collections.abc import Iterable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from compressor.block import Batch
from compressor.checkpoint.source import Source
from compressor.errors import BadCheckpointError
from compressor.families import Family
from compressor.passes import Rows


class _CapturedError(Exception):
    pass


class _Capture(nn.Module):
    """Stands where the first block is, and keeps what it is called with."""

    def forward(self, hidden: Tensor, **kwargs: Any) -> NoReturn:
        self.called = (hidden, kwargs)
        raise _CapturedError


class Skeleton:
    """Raises BadCheckpointError when the files and the architecture do not match."""

    def __init__(
        self, source: Source, family: Family, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        from transformers import AutoConfig

        self.source, self.family, self.device, self.dtype = source, family, device, dtype
        self.config = AutoConfig.from_pretrained(source.folder, attn_implementation="sdpa", dtype="float32")
        self.config.use_cache = False
        self.count = int(self.config.num_hidden_layers)
        self._first, self._model = self._on_meta()

    def block(self, index: int) -> nn.Module:
        """Block `index` with its weights."""
        name = self.family.block(index)
        with torch.device("meta"):
            block = type(self._first)(self.config, index)
        self._fill(block, name, self.source.read_module(name))
        return block.eval()

    @torch.no_grad()
    def embed(self, rows: Iterable[Rows]) -> list[Batch]:
        """What reaches the first block."""
        names = [self.family.embeddings, *filter(None, [self.family.positions])]
        extra = [name for name in ("model.decoder.project_in",) if self.source.names(name)]
        for name in [*names, *extra]:
            self._fill(self._model.get_submodule(name), name, self.source.read_module(name))
        capture = _Capture()
        self._model.get_submodule(self.family.blocks)[0] = capture
        batches = []
        for part in rows:
            try:
                self._model.get_decoder()(input_ids=part.ids_BT.to(self.device), use_cache=False)
            except _CapturedError:
                hidden, kwargs = capture.called
                batches.append(Batch(hidden, part.real_BT.to(self.device), kwargs))
        for name in names:
            self._model.get_submodule(name).to("meta")
        return batches

    @torch.no_grad()
    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Final norm and head over the last block's output: [B, T, vocabulary], float32."""
        norm, head = (self._model.get_submodule(name) for name in (self.family.final_norm, self.family.head))
        if any(parameter.is_meta for parameter in head.parameters()):
            self._fill(norm, self.family.final_norm, self.source.read_module(self.family.final_norm))
            own = self.source.read_module(self.family.head)
            self._fill(head, self.family.head, own or {"weight": self.source.read(f"{self.family.embeddings}.weight")})
        return torch.as_tensor(head(norm(hidden_BTD)).float())

    def outside(self) -> dict[str, Tensor]:
        """Everything that is in no block, as stored: embeddings, final norm, head."""
        prefix = f"{self.family.blocks}."
        return {name: self.source.read(name) for name in self.source.entries if not name.startswith(prefix)}

    def _on_meta(self) -> tuple[nn.Module, nn.Module]:
        from transformers import AutoModelForCausalLM

        config = copy.deepcopy(self.config)
        config.num_hidden_layers = 1
        types = getattr(config, "layer_types", None)
        if types:
            if len(set(types)) > 1:
                raise BadCheckpointError("its blocks are of several kinds (layer_types): the compressor takes one kind")
            config.layer_types = types[:1]
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                # Rotary tables are computed, not stored: on meta they would be empty.
                if "Rotary" in type(child).__name__:
                    setattr(module, name, type(child)(config=self.config).to(self.device))
        return model.get_submodule(self.family.blocks)[0], model.eval()

    def _fill(self, module: nn.Module, name: str, tensors: dict[str, Tensor]) -> None:
        wanted = {key: part.shape for key, part in module.state_dict().items()}
        for key, shape in wanted.items():
            if key not in tensors:
                raise BadCheckpointError(
                    f"{self.source.folder} has no tensor {name}.{key}, which its config.json asks for"
                )
            if tensors[key].shape != shape:
                raise BadCheckpointError(
                    f"tensor {name}.{key} has shape {list(tensors[key].shape)}, and config.json asks for {list(shape)}"
                )
        if unknown := sorted(set(tensors) - set(wanted)):
            raise BadCheckpointError(f"tensor {name}.{unknown[0]} is not one that config.json's architecture has")
        ready = {key: tensors[key].to(self.device, self.dtype) for key in wanted}
        module.load_state_dict(ready, assign=True)
        module.requires_grad_(False)
