"""What an engine can do, as data: one table for request checks, the configuration check and the docs.

Apart from the backends so that whoever asks "can this engine serve that checkpoint?" reads a value and starts nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from gateway.backends.constraint import ConstraintKind


class Tested(StrEnum):
    """How we know: the real engine on CPU, on GPU, or a server that behaves as its contract says."""

    CPU = "real, on CPU"
    GPU = "real, on GPU"
    CONTRACT = "contract"


class Adapters(StrEnum):
    """LoRA: none, named per request but loaded at start, or loaded and unloaded while the engine runs."""

    NONE = "no"
    STATIC = "at start"
    DYNAMIC = "at run time"


class Shape(StrEnum):
    """How a checkpoint's weights may be built that a loader must know of. Zeros stored densely (unstructured pruning)
    and layers that were all pruned alike need nothing: they are dense."""

    SPARSE_24 = "2:4 compressed"
    PER_LAYER = "sizes that differ by layer"
    LOW_RANK = "low-rank factors"
    SLICED = "sliced (SliceGPT)"
    PREFIX = "prefix vectors"  # prefix tuning, P-tuning v2
    BOTTLENECK = "bottleneck adapters"


SCHEMES = (
    "DENSE", "W8A8", "W8A16", "W4A16", "W4A16_ASYM", "W3A16", "W3A16_ASYM", "W2A16", "W2A16_ASYM", "FP8",
    "FP8_DYNAMIC", "FP8_BLOCK", "NVFP4", "NVFP4A16", "MXFP4", "MXFP4A16", "KV_FP8", "FP6", "SPQR",
    "GGUF_F16", "GGUF_Q8_0", "GGUF_Q4_0", "GGUF_Q4_1", "IR_INT8", "IR_INT4",
)  # fmt: skip
"""Number formats that are judged by name; of any other nobody can tell. DENSE: weights in 16 or 32 bits."""


@dataclass(frozen=True, slots=True)
class EngineMetrics:
    """Where the engine's own gauges are: `path` of the Prometheus page, then series names, labels included.

    None: the engine does not say. Sources: contracts cited in each backend.
    """

    path: str | None = None
    queued: str | None = None
    running: str | None = None
    kv_usage: str | None = None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """`checkpoints`: it loads the deployment's `checkpoint` itself, not a conversion of which nobody can tell;
    `needs_checkpoint`: the gateway itself needs its tokenizer and chat template.

    `quantization`: values of `quantization_config.quant_method` it loads; `architectures`: `config.json`
    architectures it is limited to. Both None when it knows more than can be listed, or nobody can tell.
    `schemes`: number formats it has kernels for, and where those run (`CPU`, `GPU`, narrower where it matters); None
    when nobody can tell.
    `shapes`: what its loader takes beside them; `concurrent`: it works on more than one request at a time.
    `vision`: it reads image parts, with a model that can.

    `logprobs`: may answers carry them; `top_logprobs`: how many alternatives a token (0: only the chosen one).
    """

    tested: Tested
    constraints: frozenset[ConstraintKind] = frozenset()
    tools: bool = False
    vision: bool = False
    logprobs: bool = False
    top_logprobs: int = 0
    adapters: Adapters = Adapters.NONE
    quantization: frozenset[str] | None = frozenset()
    schemes: Mapping[str, str] | None = None
    shapes: frozenset[Shape] = frozenset()
    architectures: frozenset[str] | None = None
    checkpoints: bool = True
    needs_checkpoint: bool = False
    concurrent: bool = True
    metrics: EngineMetrics = EngineMetrics()
