"""From a stack file to processes: names, ports, command lines, and the gateway's configuration.

Apart from run.py so that `--check` and the tests can see the whole plan without starting anything. The only file this
touches is a checkpoint's manifest.
"""

import hashlib
import json
import re
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stack import ports
from stack.errors import StackError
from stack.files import read_profile
from stack.process import Spec
from stack.settings import Engine, Profile, StackFile, fill, port_key

API_KEY_VARIABLE = "PENSTOCK_API_KEY"
ENGINE_HOST = "127.0.0.1"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

Ports = dict[str, int]
"""One replica's, by placeholder: port, and port_NAME for every further one of its profile."""


@dataclass(frozen=True)
class Place:
    """Where things are: the project's root, the folder that relative paths of the stack file mean, the run folder."""

    root: Path
    base: Path
    run: Path

    @property
    def shelf(self) -> Path:
        return self.root / "services"

    @property
    def cache(self) -> Path:
        return self.root / ".cache"

    @property
    def logs(self) -> Path:
        return self.run / "logs"


@dataclass(frozen=True)
class ServedEngine:
    """One `engines:` entry with its profile read and its checkpoint found."""

    name: str
    entry: Engine
    profile: Profile
    checkpoint: str
    is_hub_id: bool
    model: str

    @property
    def needs_fetch(self) -> bool:
        return self.is_hub_id and not self.profile.hub

    def replica_name(self, index: int) -> str:
        return self.name if self.entry.replicas == 1 else f"{self.name}-{index + 1}"


def served_engines(stack: StackFile, place: Place) -> list[ServedEngine]:
    """Every engine of the file; raises StackError (exit code 2) when a profile or a checkpoint is not there."""
    return [_served(name, entry, place) for name, entry in stack.engines.items()]


def _served(name: str, entry: Engine, place: Place) -> ServedEngine:
    profile = read_profile(entry.profile, place.shelf, place.base)
    if entry.checkpoint is None:
        if any("{checkpoint}" in word for word in profile.command):
            raise StackError(f"engines.{name}.checkpoint: is missing, the profile {entry.profile} serves one", 2)
        return ServedEngine(name, entry, profile, "", False, entry.model or name)
    path = place.base / Path(entry.checkpoint).expanduser()
    if path.exists():
        return ServedEngine(name, entry, profile, str(path.resolve()), False, entry.model or model_name(path))
    if not _HUB_ID.fullmatch(entry.checkpoint):
        raise StackError(
            f"engines.{name}.checkpoint: {path} does not exist (a folder or a file, or a hub id owner/name)", 2
        )
    if not (profile.hub or profile.fetch):
        raise StackError(
            f"engines.{name}.checkpoint: {path} does not exist, and the profile {entry.profile} takes no hub ids", 2
        )
    return ServedEngine(name, entry, profile, entry.checkpoint, True, entry.model or entry.checkpoint.split("/")[1])


def model_name(checkpoint: Path) -> str:
    """The name in the checkpoint's manifest, or else the folder's or the file's."""
    try:
        manifest = json.loads((checkpoint / "penstock.json").read_text("utf-8"))
        name = manifest.get("name")
    except (OSError, ValueError, AttributeError):
        name = None
    return name if isinstance(name, str) and name else checkpoint.resolve().name.removesuffix(".gguf")


def require_free_ports(
    engines: list[ServedEngine], gateway: tuple[str, int], chosen: dict[str, list[Ports]], rpc: int | None = None
) -> None:
    """Raises StackError naming the first port that is taken now. `rpc`: of the gateway's gRPC door."""
    host, port = gateway
    ports.require_free(host, port, "choose another: --port, or gateway.server.port (make serve PORT=...)")
    if rpc:
        ports.require_free(host, rpc, "choose another: --grpc-port, or gateway.rpc.port")
    for engine in engines:
        for one in (port for replica in chosen[engine.name] for port in replica.values()):
            ports.require_free(ENGINE_HOST, one, f"choose another: engines.{engine.name}.port")


def choose_ports(
    engines: list[ServedEngine], gateway: tuple[str, int], claims: ports.Claims, rpc: int | None = None
) -> dict[str, list[Ports]]:
    """Ports for every replica: the file's, or the next free ones, held by `claims`; raises StackError when two are
    the same."""
    used: set[int] = {gateway[1], rpc or gateway[1]}
    chosen: dict[str, list[Ports]] = {}
    for engine in sorted(engines, key=lambda engine: engine.entry.port is None):  # fixed ports first
        first, count = engine.entry.port, engine.entry.replicas
        wanted = range(first, first + count) if first else claims.free_ports(ENGINE_HOST, count, used)
        for one in wanted:
            if one in used:
                raise StackError(f"engines.{engine.name}.port: {one} is used twice in this stack", 2)
            if one > 65535:
                raise StackError(f"engines.{engine.name}.port: {count} replicas from {first} go beyond port 65535", 2)
            used.add(one)
        chosen[engine.name] = [{"port": one} for one in wanted]
    for engine in engines:
        for replica in chosen[engine.name]:
            further = [port_key(name) for name in engine.profile.ports]
            replica |= dict(zip(further, claims.free_ports(ENGINE_HOST, len(further), used), strict=True))
            used.update(replica.values())
    return chosen


def values(
    engine: ServedEngine, place: Place, on: Ports | None = None, checkpoint: str | None = None
) -> dict[str, str]:
    """What the placeholders of the profile mean for one replica; before it has any, ports are 0."""
    unset = {"port": 0} | {port_key(name): 0 for name in engine.profile.ports}
    return {
        "python": sys.executable,
        "root": str(place.root),
        "venv": str(place.root / engine.profile.venv) if engine.profile.venv else sys.prefix,
        "checkpoint": checkpoint or engine.checkpoint,
        "name": engine.model,
        "host": ENGINE_HOST,
        "cache": str(place.cache),
    } | _texts(unset | (on or {}))


def replica_specs(
    engine: ServedEngine, place: Place, on_ports: list[Ports], environ: dict[str, str], checkpoint: str | None = None
) -> list[Spec]:
    """One process for every replica. `checkpoint`: where a fetched hub id lies now."""
    profile, entry = engine.profile, engine.entry
    specs = []
    for index, on in enumerate(on_ports):
        known = values(engine, place, on, checkpoint)
        specs.append(
            Spec(
                name=engine.replica_name(index),
                command=(*(fill(word, known) for word in profile.command), *entry.args),
                env=_environment(environ, {key: fill(text, known) for key, text in profile.env.items()} | entry.env),
                cwd=place.root,
                host=ENGINE_HOST,
                port=on["port"],
                ready_port=on[port_key(profile.ready.port)] if profile.ready.port else None,
                ready_path=profile.ready.path,
                ready_timeout_s=profile.ready.timeout_s,
                stop_signal=signal.Signals[profile.stop.signal],
                grace_s=profile.stop.grace_s,
            )
        )
    return specs


def gateway_address(stack: StackFile, host: str | None, port: int | None) -> tuple[str, int]:
    """Where the gateway listens: the command line, else the file, else 127.0.0.1:8000."""
    server = stack.gateway.get("server") or {}
    if not isinstance(server, dict):
        raise StackError("gateway.server: a mapping is meant, {host: ..., port: ...}", 2)
    chosen_host, chosen_port = host or server.get("host", "127.0.0.1"), port or server.get("port", 8000)
    if not isinstance(chosen_host, str) or not isinstance(chosen_port, int) or not 0 < chosen_port < 65536:
        raise StackError(
            f"gateway.server: host {chosen_host!r} or port {chosen_port!r} is none (a port is 1 to 65535)", 2
        )
    return chosen_host, chosen_port


def with_rpc(stack: StackFile, host: str, port: int | None) -> StackFile:
    """The stack with a gRPC door on `port`, on the host of the HTTP one unless the file names another."""
    if port is None:
        return stack
    rpc = {"host": host} | (stack.gateway.get("rpc") or {}) | {"port": port}
    return stack.model_copy(update={"gateway": stack.gateway | {"rpc": rpc}})


def rpc_port(stack: StackFile) -> int | None:
    """Where the gateway's gRPC door will be, if there is one; whether that can be is the gateway's to judge."""
    rpc = stack.gateway.get("rpc")
    port = rpc.get("port") if isinstance(rpc, dict) else None
    return port if isinstance(port, int) else None


def gateway_config(
    stack: StackFile,
    engines: list[ServedEngine],
    address: tuple[str, int],
    on_ports: dict[str, list[Ports]],
    key: str | None,
) -> dict[str, Any]:
    """The gateway's own YAML: the file's `gateway:` with the address, the key's hash and the engines filled in."""
    config: dict[str, Any] = json.loads(json.dumps(stack.gateway))  # a deep copy, plain types
    host, port = address
    config["server"] = (config.get("server") or {}) | {"host": host, "port": port}
    _require_keys(config, host, key)
    models = config.setdefault("models", {})
    for engine in engines:
        deployments = models.setdefault(engine.model, {}).setdefault("deployments", {})
        if engine.name in deployments:
            raise StackError(
                f"gateway.models.{engine.model}.deployments.{engine.name} is an engine's name too: rename one", 2
            )
        deployments[engine.name] = _deployment(engine, on_ports[engine.name])
    return config


def _deployment(engine: ServedEngine, on_ports: list[Ports]) -> dict[str, Any]:
    profile = engine.profile
    told: dict[str, Any] = {"engine": profile.engine, "model": engine.model}
    if engine.checkpoint and not engine.is_hub_id and Path(engine.checkpoint).is_dir():
        told["checkpoint"] = engine.checkpoint
    told |= profile.deployment
    told["replicas"] = {
        engine.replica_name(index): {"url": fill(profile.url, {"host": ENGINE_HOST} | _texts(on))}
        for index, on in enumerate(on_ports)
    }
    return told


def _texts(on: Ports) -> dict[str, str]:
    return {key: str(port) for key, port in on.items()}


def _require_keys(config: dict[str, Any], host: str, key: str | None) -> None:
    keys = (config.get("auth") or {}).get("keys") or {}
    if key:
        keys = keys | {"default": {"sha256": hashlib.sha256(key.encode()).hexdigest()}}
        config["auth"] = (config.get("auth") or {}) | {"keys": keys}
    if not keys and not ports.is_loopback(host):
        raise StackError(
            f"{host} is reachable from other machines, so an API key is needed. Make one and start again:\n"
            f"  export {API_KEY_VARIABLE}=sk-$(openssl rand -hex 24)\n"
            "or put hashed keys into the stack file (`penstock gateway key` makes one):\n"
            '  gateway: {auth: {keys: {alice: {sha256: "..."}}}}',
            2,
        )


def gateway_spec(config_path: Path, place: Place, address: tuple[str, int], environ: dict[str, str]) -> Spec:
    host, port = address
    return Spec(
        name="gateway",
        command=(sys.executable, "-m", "gateway", "serve", "--config", str(config_path)),
        env=_environment(environ, {}),
        cwd=place.root,
        host=ports.reachable(host),
        port=port,
        ready_path="/ready",
        ready_timeout_s=120,
        grace_s=30,
    )


def _environment(environ: dict[str, str], extra: dict[str, str]) -> dict[str, str]:
    """The user's environment without the key in clear, unbuffered, with the profile's own on top."""
    kept = {name: text for name, text in environ.items() if name != API_KEY_VARIABLE}
    return kept | {"PYTHONUNBUFFERED": "1"} | extra
