"""Every knob of the gateway: its default, its unit, what it does. One YAML file; unknown keys are refused.

Order of precedence: command-line arguments, environment (`PENSTOCK_SERVER__PORT=9000`), YAML, defaults.
Collections are maps by name, so that environment, `helm --set` and diffs reach one entry.
"""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from gateway.core.yaml_file import read_yaml

Seconds = Annotated[float, Field(gt=0)]
Name = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\s\x00-\x1f\x7f]+$")]
_PATHS = (("telemetry", "access_log_path"), ("models", "*", "deployments", "*", "checkpoint"))
"""Relative to the file that names them. An adapter's path is not here: it is the engine's, not ours."""
VISIBLE = r"^[!-~]*$"
"""What goes into the head of a request to an engine: no line ends, no spaces."""


class ConfigError(Exception):
    """A configuration that cannot be used; the message lists every fault with its path."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerSettings(_Strict):
    host: str = Field("127.0.0.1", description="Address to listen on. Other than loopback requires auth.keys.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    body_limit_bytes: int = Field(32 * 2**20, gt=0, description="Larger request bodies are refused with 413.")
    header_limit_bytes: int = Field(64 * 2**10, ge=1024, description="Larger request headers are refused with 431.")
    json_depth_limit: int = Field(128, ge=8, le=512, description="Deeper nested JSON is refused with 400.")
    receive_timeout_s: Seconds = Field(60.0, description="A request must be complete within this time.")
    keep_alive_s: int = Field(75, gt=0, description="Idle client connections are closed after this time.")
    send_timeout_s: Seconds = Field(60.0, description="A client that reads nothing for so long loses its stream.")
    drain_timeout_s: int = Field(600, gt=0, description="After SIGTERM running streams may take this long.")
    backlog: int = Field(4096, gt=0, description="Connections the kernel queues before they are accepted.")


class RpcSettings(_Strict):
    """The gRPC door. Limits and timeouts of `server` hold here too."""

    host: str = Field("127.0.0.1", description="Address to listen on. Other than loopback requires auth.keys.")
    port: int | None = Field(
        None, ge=0, le=65535, description="Port of the gRPC door; 0 picks a free one. Off when absent."
    )
    keepalive_s: Seconds = Field(60.0, description="A connection silent for so long is asked whether it is alive.")
    keepalive_timeout_s: Seconds = Field(20.0, description="One that does not answer within this time is closed.")


class KeySettings(_Strict):
    sha256: str = Field(pattern=r"^[0-9a-fA-F]{64}$", description="SHA-256 of the key (`penstock gateway key`).")
    admin: bool = Field(False, description="Whether it opens /admin (adapters), besides /v1.")


class AuthSettings(_Strict):
    keys: dict[Name, KeySettings] = Field({}, description="API keys by the name that appears in the access log.")


class ReplicaSettings(_Strict):
    url: str = Field(description="Base URL of the engine, without /v1; grpc://host:8001 for Triton.")
    max_in_flight: int = Field(1024, gt=0, description="Requests at once; more wait in the deployment's queue.")
    api_key: str | None = Field(None, pattern=VISIBLE, description="Key the gateway presents to the engine.")

    @field_validator("url")
    @classmethod
    def _is_a_base_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https", "grpc") or not parts.hostname or not re.fullmatch(VISIBLE, url):
            raise ValueError(f"{url!r} is not an http(s) or grpc URL, such as http://127.0.0.1:8101")
        try:
            is_reachable = parts.port != 0
        except ValueError:
            is_reachable = False
        if not is_reachable:
            raise ValueError(f"{url!r} has a port that is none: 1 to 65535")
        if parts.username is not None:
            raise ValueError("a base URL names no user; what the engine asks for goes into api_key")
        if parts.query or parts.fragment:
            raise ValueError("a base URL has no query and no fragment")
        url = url.rstrip("/")
        if url.endswith("/v1"):
            raise ValueError("leave out the /v1: the gateway adds it")
        return url


class DeploymentSettings(_Strict):
    engine: str = Field(description="How to speak to it; `penstock gateway engines` lists them, plugged-in ones too.")
    model: Name | None = Field(None, description="The name the engine knows the model by; default: the public name.")
    checkpoint: Path | None = Field(
        None,
        description="Folder of the checkpoint (config.json, tokenizer, chat template) that the engine serves, relative "
        "to this file: checked against what the engine can load. Needed for triton, whose prompts the gateway writes.",
    )
    hardware: Literal["cpu", "gpu"] | None = Field(
        None, description="What its replicas run on, where that is known: kernels differ, and the check names them."
    )
    replicas: dict[Name, ReplicaSettings] = Field(min_length=1, description="Running engines, by name.")
    weight: float = Field(1.0, ge=0, description="Share of the model's traffic among its deployments.")
    policy: Literal["least_request", "round_robin"] = Field("least_request", description="Which replica answers.")
    deadline_s: Seconds = Field(600.0, description="The whole request, queueing included.")
    connect_timeout_s: Seconds = Field(5.0, description="To connect to a replica.")
    first_token_timeout_s: Seconds = Field(120.0, description="To the first content (or the whole plain answer).")
    idle_timeout_s: Seconds = Field(60.0, description="Between two pieces of a stream.")
    probe_interval_s: Seconds = Field(2.0, description="Between two health probes of a replica.")
    max_waiting: int = Field(1024, ge=0, description="Requests that may wait for a slot; more get 429.")
    queue_timeout_s: Seconds = Field(30.0, description="How long a request may wait for a slot.")
    warm_up: Literal["chat", "completions", "embeddings", "none"] | None = Field(
        None,
        description="The request whose answer makes a replica ready; default: completions, else what the engine has.",
    )


class AdapterSettings(_Strict):
    path: str = Field(min_length=1, max_length=4096, description="Where the engine finds it, as the engine sees files.")


class ModelSettings(_Strict):
    deployments: dict[Name, DeploymentSettings] = Field(min_length=1, description="What runs for this model.")
    aliases: list[Name] = Field([], description="Further names clients may ask for.")
    adapters: dict[Name, AdapterSettings] = Field(
        {}, description="LoRA adapters by the name clients ask for; every replica loads them before it is ready."
    )


class VisionSettings(_Strict):
    image_limit_bytes: int = Field(10 * 2**20, gt=0, description="Larger images are refused with 400.")
    images_per_request: int = Field(16, ge=0, description="More images are refused with 400; 0 refuses all.")
    media_types: list[Literal["image/png", "image/jpeg", "image/gif", "image/webp"]] = Field(
        ["image/png", "image/jpeg", "image/gif", "image/webp"], description="What a data: URL may hold."
    )
    allowed_hosts: list[Name] = Field(
        [], description="Hosts from which engines may fetch images by http(s) URL; none unless named, all public."
    )


class ResponsesSettings(_Strict):
    store_count: int = Field(1000, ge=0, description="Responses this process remembers; 0 remembers none.")
    store_bytes: int = Field(64 * 2**20, ge=0, description="Their size together; the oldest are forgotten first.")
    store_ttl_s: Seconds = Field(3600.0, description="A response is forgotten after this time.")


class TelemetrySettings(_Strict):
    access_log: bool = Field(True, description="One JSON line a request.")
    access_log_path: Path | None = Field(
        None, description="File for the access log, relative to this file; default: standard output."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Of the gateway's messages.")
    otlp_endpoint: str | None = Field(
        None, description="OTLP/HTTP base URL (http://collector:4318) to send traces to; off when absent."
    )
    trace_sample_ratio: float = Field(1.0, ge=0, le=1, description="Share of requests traced without a parent.")


class Settings(BaseSettings):
    """The whole configuration of one gateway."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix="PENSTOCK_",
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
    )

    server: ServerSettings = ServerSettings()
    rpc: RpcSettings = RpcSettings()
    auth: AuthSettings = AuthSettings()
    models: dict[Name, ModelSettings] = Field(min_length=1, description="Models by public name.")
    max_attempts: int = Field(2, ge=1, le=5, description="Replicas a request may be tried on before it fails.")
    telemetry: TelemetrySettings = TelemetrySettings()
    vision: VisionSettings = VisionSettings()
    responses: ResponsesSettings = ResponsesSettings()

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        seen = set(self.models)
        for name, model in self.models.items():
            for kind, others in (("aliases", model.aliases), ("adapters", model.adapters)):
                for other in others:
                    if other in seen:
                        raise ValueError(f"models.{name}.{kind}: {other!r} names two models")
                    seen.add(other)
        return self

    @model_validator(mode="after")
    def _is_not_open_to_the_world(self) -> Self:
        hosts = {"server.host": self.server.host} | ({} if self.rpc.port is None else {"rpc.host": self.rpc.host})
        for name, host in hosts.items():
            if not self.auth.keys and not is_loopback(host):
                raise ValueError(
                    f"{name} {host!r} is reachable from elsewhere, but auth.keys is empty; "
                    "make a key with `penstock gateway key` and put its sha256 under auth.keys, or listen on 127.0.0.1"
                )
        return self


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def load(path: Path, overrides: dict[str, Any] | None = None) -> Settings:
    """Read a configuration. `overrides` (arguments, by section) win over everything; a relative path in the file is
    relative to the file. Raises ConfigError."""
    try:
        data = read_yaml(path, _PATHS)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must be a mapping with `models:`; docs/gateway.md has an example")

    class Layered(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            arguments = InitSettingsSource(settings_cls, overrides or {})
            return arguments, env_settings, init_settings  # the file comes in as init values

    try:
        return Layered(**data)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{path}: {line}" for line in _faults(error))) from error


def _faults(error: ValidationError) -> list[str]:
    lines = []
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"]) or "configuration"
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            message = "no such key; see docs/gateway.md for those that exist"
        lines.append(f"{where}: {message}")
    return lines
