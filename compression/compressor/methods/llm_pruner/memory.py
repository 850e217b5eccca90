"""Whether a whole model and its gradients fit: LLM-Pruner is the one method that needs them at once."""

import os
from collections.abc import Iterable
from pathlib import Path

import torch

from compressor.checkpoint.source import Source
from compressor.errors import CompressorError

_FLOAT_BYTES = 4


def needed_bytes(source: Source, changed: Iterable[str], copies: int) -> int:
    """A float32 model, and `copies` more (gradients, their sums) of the tensors `changed`."""
    sizes = {name: _count(entry.shape) for name, entry in source.entries.items()}
    return _FLOAT_BYTES * (sum(sizes.values()) + copies * sum(sizes[name] for name in changed))


def need_memory(needed: int, device: torch.device) -> None:
    """Raises CompressorError, before anything is loaded, when the device has less left than `needed` bytes."""
    free = available_bytes(device)
    if free is not None and free < needed:
        raise CompressorError(
            f"LLM-Pruner holds the whole model in memory, with gradients: about {needed / 1e9:,.1f} GB, and {device} "
            f"has {free / 1e9:,.1f} GB left. `importance: l1` needs no gradients, and slicegpt goes block by block"
        )


def available_bytes(device: torch.device) -> int | None:
    """Memory that can still be had, a container's limit included; None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    known = [value for value in (_system_bytes(), _container_bytes(Path("/sys/fs/cgroup"))) if value is not None]
    return min(known, default=None)


def _system_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pages = os.sysconf("SC_PHYS_PAGES") if "SC_PHYS_PAGES" in os.sysconf_names else 0
        return pages * os.sysconf("SC_PAGE_SIZE") or None


def _container_bytes(group: Path) -> int | None:
    try:
        limit, used = ((group / name).read_text("ascii").strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return None
    return None if limit == "max" else int(limit) - int(used)


def _count(shape: Iterable[int]) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count
