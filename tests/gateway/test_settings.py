"""A configuration is either understood whole or refused with every fault and its path."""

from pathlib import Path

import pytest

from gateway.settings import ConfigError, Settings, load

GOOD = """
models:
  m:
    deployments:
      main: {engine: vllm, replicas: {a: {url: "http://127.0.0.1:8101/"}}}
"""


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    def read(text: str, env: dict[str, str] | None = None, **overrides: object) -> Settings:
        for name, value in (env or {}).items():
            monkeypatch.setenv(name, value)
        path = tmp_path / "gateway.yaml"
        path.write_text(text)
        return load(path, overrides)

    return read


def test_the_smallest_configuration_is_a_model_with_one_replica(read) -> None:  # type: ignore[no-untyped-def]
    settings = read(GOOD)
    assert settings.server.host == "127.0.0.1"
    assert settings.models["m"].deployments["main"].replicas["a"].url == "http://127.0.0.1:8101"


def test_arguments_beat_the_environment_beats_the_file_beats_the_default(read) -> None:  # type: ignore[no-untyped-def]
    text = GOOD + "server: {port: 1, keep_alive_s: 2}\n"
    assert read(text).server.port == 1
    settings = read(text, {"PENSTOCK_SERVER__PORT": "3", "PENSTOCK_SERVER__BACKLOG": "9"})
    assert (settings.server.port, settings.server.keep_alive_s, settings.server.backlog) == (3, 2, 9)
    assert read(text, {"PENSTOCK_SERVER__PORT": "3"}, server={"port": 4}).server.port == 4


def test_grpc_is_off_unless_it_has_a_port_and_open_hosts_matter_only_then(read) -> None:  # type: ignore[no-untyped-def]
    assert read(GOOD + "rpc: {host: 0.0.0.0}").rpc.port is None
    assert read(GOOD, rpc={"port": 0}).rpc.port == 0


def test_one_replica_is_reached_by_its_path_in_the_environment(read) -> None:  # type: ignore[no-untyped-def]
    name = "PENSTOCK_MODELS__m__DEPLOYMENTS__main__REPLICAS__a__URL"
    settings = read(GOOD, {name: "http://10.0.0.1:1"})
    assert settings.models["m"].deployments["main"].replicas["a"].url == "http://10.0.0.1:1"


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        ("modles: {}", "modles", "no such key"),
        (GOOD + "server: {prot: 1}", "server.prot", "no such key"),
        (GOOD + "server: {port: 70000}", "server.port", "65535"),
        (GOOD + "server: {drain_timeout_s: soon}", "server.drain_timeout_s", "integer"),
        ("models: {}", "models", "at least 1"),
        ("models: {m: {deployments: {}}}", "models.m.deployments", "at least 1"),
        (GOOD.replace("http://127.0.0.1:8101/", "127.0.0.1:8101"), "replicas.a.url", "not an http(s) or grpc URL"),
        (GOOD.replace("8101/", "8101/v1"), "replicas.a.url", "/v1"),
        (GOOD.replace("8101", "99999"), "replicas.a.url", "port that is none"),
        (GOOD.replace("8101", "http"), "replicas.a.url", "port that is none"),
        (GOOD.replace(":8101", ":0"), "replicas.a.url", "port that is none"),
        (GOOD.replace("8101/", "8101/a b"), "replicas.a.url", "not an http(s) or grpc URL"),
        (GOOD.replace('8101/"', '8101", api_key: "a\\n"'), "replicas.a.api_key", "pattern"),
        (GOOD.replace("127.0.0.1", "me:secret@127.0.0.1"), "replicas.a.url", "names no user"),
        (GOOD.replace("vllm", "vllm, policy: magic"), "policy", "least_request"),
        (GOOD + "auth: {keys: {alice: {sha256: abc}}}", "auth.keys.alice.sha256", "pattern"),
        (GOOD + "server: {host: 0.0.0.0}", "configuration", "penstock gateway key"),
        (GOOD + "rpc: {host: 0.0.0.0, port: 8001}", "configuration", "rpc.host '0.0.0.0' is reachable from elsewhere"),
        (GOOD + "rpc: {prot: 1}", "rpc.prot", "no such key"),
        ("models:\n  m: 1\n  m: 2\n", "", "appears twice"),
        ("- a\n", "", "must be a mapping"),
        ("models: [", "", "not YAML"),
        ("[" * 3000, "", "not YAML"),
        ("models: {[m]: 1}", "", "is no name"),
        ("", "", "must be a mapping"),
    ],
)
def test_a_fault_is_named_with_its_path(read, text: str, path: str, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert path in str(caught.value)
    assert words in str(caught.value)


def test_all_faults_are_told_at_once(read) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError) as caught:
        read(GOOD + "server: {prot: 1, port: -1}\ntelemtry: {}\n")
    assert len(str(caught.value).splitlines()) == 3


def test_an_alias_cannot_name_two_models(read) -> None:  # type: ignore[no-untyped-def]
    other = GOOD.replace("models:\n  m:", "  n:\n    aliases: [m]")
    with pytest.raises(ConfigError, match="names two models"):
        read(GOOD + other)


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "none.yaml")


def test_paths_are_relative_to_the_file_that_names_them(read, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    text = GOOD.replace("vllm", "vllm, checkpoint: ../mine") + "telemetry: {access_log_path: access.log}\n"
    settings = read(text)
    assert settings.models["m"].deployments["main"].checkpoint == tmp_path / "../mine"
    assert settings.telemetry.access_log_path == tmp_path / "access.log"
    absolute = read(text.replace("../mine", "/mine")).models["m"].deployments["main"]
    assert absolute.checkpoint == Path("/mine")


def test_every_knob_has_a_description() -> None:
    schema = Settings.model_json_schema()
    for name, part in schema["$defs"].items():
        for key, field in part.get("properties", {}).items():
            assert field.get("description"), f"{name}.{key}"
