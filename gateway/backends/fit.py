"""Whether a deployment can work at all: its engine against its checkpoint, and against its own settings.

Asked before anything starts, by `penstock gateway check` and `serve`: a wrong match is one line with the key that
is wrong, not an engine that falls over a minute later. All answers come from the engines' `capabilities`.
"""

from collections.abc import Iterator
from urllib.parse import urlsplit

from gateway.backends.base import Backend
from gateway.backends.capabilities import SCHEMES as KNOWN
from gateway.backends.capabilities import Capabilities
from gateway.backends.checkpoint import CheckpointError, CheckpointFacts, read_facts
from gateway.core.call import Endpoint
from gateway.settings import DeploymentSettings

SCHEMES = {"triton": ("grpc", "http", "https")}


def can_serve(facts: CheckpointFacts, capabilities: Capabilities, hardware: str | None = None) -> str | None:
    """Why not: the rest of "this checkpoint cannot be served by that engine, because"; None when it can, or when
    nobody can tell. `hardware`: "cpu" or "gpu", where it is known what the engine runs on."""
    if not (capabilities.checkpoints and facts.is_known):
        return None
    if facts.fault is not None:
        return facts.fault
    known = capabilities.architectures
    if known is not None and facts.architectures and known.isdisjoint(facts.architectures):
        return f"it is a {facts.architectures[0]}, and the engine loads {', '.join(sorted(known))} only"
    methods = capabilities.quantization
    if facts.quantization is not None and methods is not None and facts.quantization not in methods:
        able = f"loads {', '.join(sorted(methods))}" if methods else "loads weights in full precision only"
        return f"it is quantized as {facts.quantization}, and the engine {able}"
    unserved = _without_kernels(facts.schemes, capabilities, hardware)
    if unserved is not None:
        return unserved
    foreign = facts.shapes - capabilities.shapes
    if foreign:
        return f"its weights have {min(foreign)}, which the engine's loader does not know"
    return None


def _without_kernels(schemes: frozenset[str], capabilities: Capabilities, hardware: str | None) -> str | None:
    able = capabilities.schemes
    if able is None:
        return None
    here = sorted(scheme for scheme, where in able.items() if hardware is None or hardware.upper() in where)
    for scheme in sorted(schemes & set(KNOWN)):
        if scheme not in able:
            return f"the engine has no kernels for {scheme}; it has them for {', '.join(here)}"
        if scheme not in here:
            return f"the engine's kernels for {scheme} run on {able[scheme]} only; here it runs {', '.join(here)}"
    return None


def misfits(engine: type[Backend], settings: DeploymentSettings) -> Iterator[tuple[str, str]]:
    """What cannot work, as (key of the deployment, why)."""
    yield from _checkpoint(engine, settings)
    if settings.warm_up not in (None, "none") and Endpoint[str(settings.warm_up).upper()] not in engine.fields:
        offered = ", ".join(endpoint.name.lower() for endpoint in engine.fields)
        yield "warm_up", f"{engine.kind} does not offer {settings.warm_up}; it has {offered}"
    schemes = SCHEMES.get(engine.kind, ("http", "https"))
    for name, replica in settings.replicas.items():
        if urlsplit(replica.url).scheme not in schemes:
            yield f"replicas.{name}.url", f"{engine.kind} is spoken to over {' or '.join(schemes)}, not {replica.url!r}"


def _checkpoint(engine: type[Backend], settings: DeploymentSettings) -> Iterator[tuple[str, str]]:
    folder = settings.checkpoint
    if folder is None:
        if engine.capabilities.needs_checkpoint:
            yield (
                "checkpoint",
                f"is missing: for {engine.kind} the gateway writes the prompts, with its tokenizer",
            )
        return
    try:
        reason = can_serve(read_facts(folder), engine.capabilities, settings.hardware)
    except CheckpointError as error:
        yield "checkpoint", str(error)
        return
    if reason is not None:
        yield "checkpoint", f"{folder} cannot be served by {engine.kind}, because {reason}"
