"""The two files a person writes: stack.yaml and an engine's launch profile, as strict models.

Apart from plan.py, which turns them into processes: here only shape and vocabulary are judged, nothing is looked up.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

PLACEHOLDERS = ("python", "root", "venv", "checkpoint", "name", "host", "port", "cache")
_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
Texts = str | list[str] | dict[str, str] | None


def _text(value: object) -> object:
    """YAML reads `1` and `0.5` as numbers; an argument and an environment variable are text."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


Text = Annotated[str, BeforeValidator(_text)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,38}[a-z0-9])?$")]
Port = Annotated[int, Field(ge=1, le=65535)]
PortName = Annotated[str, Field(pattern=r"^[a-z]{1,20}$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Ready(Strict):
    """When an engine counts as up."""

    path: str = Field("/health", pattern="^/", description="answers 200 once the engine can take requests")
    port: PortName | None = Field(None, description="one of `ports` that it is asked on; default: {port}")
    timeout_s: float = Field(300, gt=0, description="not ready after this long: stopped and counted as a failure")


class Stop(Strict):
    """How an engine is asked to leave."""

    signal: Literal["SIGTERM", "SIGINT"] = "SIGTERM"
    grace_s: float = Field(15, ge=0, description="then it and all its descendants are killed")


class Profile(Strict):
    """services/ENGINE/profiles/NAME.yaml: how to set up, launch, probe and stop one engine.

    A file may begin with `extends: OTHER`, a profile of the same folder, and hold only what differs (files.py).
    `setup`, `fetch`, `command` and `env` may hold {python} {root} {venv} {checkpoint} {name} {host} {port} {cache},
    and {port_NAME} for every NAME of `ports`; `url` may hold {host} and the ports.
    """

    engine: str = Field(description="the gateway's word for this kind of engine: openvino, vllm, openai, fake ...")
    description: str = Field(description="one line for a person who chooses a profile")
    venv: str | None = Field(None, description="the engine's own environment, relative to the project's root")
    ports: list[PortName] = Field(default_factory=list, description="further free ports, {port_NAME} each")
    url: str = Field("http://{host}:{port}", description="where the gateway reaches a replica")
    deployment: dict[str, Any] = Field(
        default_factory=dict, description="laid over the deployment that the gateway is told, e.g. {model: ensemble}"
    )
    setup: list[Text] | None = Field(None, description="argv run before every start: idempotent, quick when done")
    fetch: list[Text] | None = Field(None, description="argv that downloads a hub id and prints the folder")
    hub: bool = Field(False, description="the engine itself takes a hub id for {checkpoint}")
    command: list[Text] = Field(min_length=1, description="argv; an engine's `args` of the stack file are appended")
    env: dict[str, Text] = Field(default_factory=dict)
    ready: Ready = Ready()
    stop: Stop = Stop()

    @field_validator("url", "setup", "fetch", "command", "env")
    @classmethod
    def _known_placeholders(cls, value: Texts, info: ValidationInfo) -> Texts:
        ports = [port_key(name) for name in info.data.get("ports", [])]
        known = ["host", "port", *ports] if info.field_name == "url" else [*PLACEHOLDERS, *ports]
        texts = value.values() if isinstance(value, dict) else [value] if isinstance(value, str) else value or []
        for word in (word for text in texts for word in _PLACEHOLDER.findall(text)):
            if word not in known:
                raise ValueError(f"unknown placeholder {{{word}}}; known: {' '.join(known)}")
        return value

    @field_validator("ports")
    @classmethod
    def _each_port_once(cls, names: list[str]) -> list[str]:
        if len(set(names)) < len(names):
            raise ValueError("a name stands here twice")
        return names

    @field_validator("ready")
    @classmethod
    def _asked_on_a_known_port(cls, ready: Ready, info: ValidationInfo) -> Ready:
        names = info.data.get("ports", [])
        if ready.port is not None and ready.port not in names:
            raise ValueError(f"port {ready.port!r} is none of `ports`: {', '.join(names) or 'there are none'}")
        return ready

    @field_validator("deployment")
    @classmethod
    def _leaves_the_generated_keys(cls, deployment: dict[str, Any]) -> dict[str, Any]:
        for key in ("engine", "replicas"):
            if key in deployment:
                raise ValueError(f"{key!r} is filled in by the stack")
        return deployment


class Engine(Strict):
    """One entry of `engines:`: a checkpoint served by `replicas` processes of one profile."""

    profile: str = Field(description="ENGINE or ENGINE/PROFILE of services/, or a path to a profile file")
    checkpoint: str | None = Field(None, description="a folder or file, relative to the stack file; or a hub id")
    model: str | None = Field(None, min_length=1, description="the public model name; default: the checkpoint's own")
    replicas: int = Field(1, ge=1, le=64)
    port: Port | None = Field(
        None, description="of the first replica, the others follow; default: free ports from 8101"
    )
    args: list[Text] = Field(default_factory=list, description="appended to the profile's command")
    env: dict[str, Text] = Field(default_factory=dict, description="over the profile's env")


class Restart(Strict):
    """What happens to a process that ends by itself."""

    backoff_s: float = Field(1, ge=0, description="pause before the first restart, doubled for each further one")
    backoff_max_s: float = Field(30, ge=0)
    stable_s: float = Field(60, ge=0, description="ready for this long: earlier failures are forgotten")
    max_failures: int = Field(5, ge=1, description="failures in a row after which it is given up")
    max_failed_starts: int = Field(2, ge=1, description="the same for a process that never became ready")


class StackFile(Strict):
    """stack.yaml. `gateway` is the gateway's own configuration; `penstock gateway check` judges it."""

    name: Name | None = Field(None, description="names the run directory; default: the file's name")
    gateway: dict[str, Any] = Field(default_factory=dict)
    engines: dict[Name, Engine] = Field(min_length=1)
    restart: Restart = Restart()


def port_key(name: str) -> str:
    """The placeholder of one of a profile's `ports`."""
    return f"port_{name}"


def fill(text: str, values: dict[str, str]) -> str:
    """Replace the known {placeholders}; braces around anything else (JSON) stay."""
    return _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), text)
