"""What a person gets to read when stack.yaml or a profile is wrong, and what the two become when they are right."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack import plan
from stack.errors import StackError
from stack.files import find_profile, read_profile, read_stack
from stack.plan import Place, choose_ports, gateway_config, model_name, replica_specs, served_engines
from stack.ports import Claims
from stack.settings import Restart, StackFile, fill
from stack.supervisor import backoff_s

ROOT = Path(__file__).resolve().parents[2]
SHELF = ROOT / "services"
GOOD = "engines: {a: {profile: vllm/cpu, checkpoint: ckpt}}\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "engines: {a: {profile: x, checkpoint: y, replicass: 2}}",
            "engines.a.replicass: unknown key; did you mean replicas?",
        ),
        (GOOD + "restart: {backof_s: 1}", "restart.backof_s: unknown key; did you mean backoff_s?"),
        (GOOD + "zzz: 1", "zzz: unknown key; known here: name, gateway, engines, restart"),
        ("gateway: {}", "engines: is missing"),
        ("engines: {}", "engines: "),
        ("engines: {a: {checkpoint: y}}", "engines.a.profile: is missing"),
        ("engines: {A_b: {profile: x, checkpoint: y}}", "engines.A_b: a name is 1 to 40 of a-z 0-9"),
        ("engines: {a: {profile: x, checkpoint: y, replicas: 0}}", "engines.a.replicas: Input should be greater than"),
        ("engines: {a: {profile: x, checkpoint: y, port: 70000}}", "engines.a.port: "),
        ("engines: {a: {profile: x, checkpoint: y, args: [true]}}", "engines.a.args.0: "),
        ("engines: {a: {profile: x, checkpoint: y}, a: {profile: x, checkpoint: z}}", "'a' stands here twice"),
        ("engines: [", "is not YAML: "),
        ("- a", "holds no mapping; it begins with one of: name, gateway, engines, restart"),
        ("", "holds no mapping"),
        ("[" * 3000, "is not YAML"),
    ],
)
def test_a_wrong_stack_file_is_refused_with_the_key(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "stack.yaml"
    path.write_text(text)
    with pytest.raises(StackError) as refusal:
        read_stack(path)
    assert complaint in str(refusal.value)
    assert str(path) in str(refusal.value)
    assert refusal.value.exit_code == 2


def test_the_gateways_paths_are_relative_to_the_stack_file_too(tmp_path: Path) -> None:
    path = tmp_path / "stack.yaml"
    deployment = "{engine: vllm, checkpoint: ../mine}"
    path.write_text(
        GOOD
        + f"gateway: {{telemetry: {{access_log_path: a.log}}, models: {{m: {{deployments: {{d: {deployment}}}}}}}}}\n"
    )
    gateway = read_stack(path).gateway
    assert gateway["telemetry"]["access_log_path"] == str(tmp_path / "a.log")
    assert gateway["models"]["m"]["deployments"]["d"]["checkpoint"] == str(tmp_path / "../mine")


@pytest.mark.parametrize(
    ("content", "complaint"), [(None, "No such file"), (b"\xff\xfe\x00", "not UTF-8"), (b"\x00", "not YAML")]
)
def test_what_is_no_text_file_is_refused(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    path = tmp_path / "stack.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StackError, match=complaint):
        read_stack(path)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("comand: []", "comand: unknown key; did you mean command?"),
        ('env: {X: "{prot}"}', "unknown placeholder {prot}; known: python root venv"),
        ("stop: {signal: SIGKILL}", "stop.signal: Input should be 'SIGTERM' or 'SIGINT'"),
        ("ready: {path: health}", "ready.path: "),
        ("ready: {port: http}", "ready: port 'http' is none of `ports`: there are none"),
        ("ports: [http, grpc]\nready: {port: htttp}", "ready: port 'htttp' is none of `ports`: http, grpc"),
        ("ports: [http, http]", "ports: a name stands here twice"),
        ("ports: [HTTP]", "ports.0: "),
        ('url: "grpc://{host}:{port_grpc}"', "url: unknown placeholder {port_grpc}; known: host port"),
        ('ports: [http]\nenv: {X: "{port_metrics}"}', "unknown placeholder {port_metrics}; known: python root venv"),
        ("deployment: {replicas: {}}", "deployment: 'replicas' is filled in by the stack"),
    ],
)
def test_a_wrong_profile_is_refused_with_the_key(tmp_path: Path, line: str, complaint: str) -> None:
    (tmp_path / "p.yaml").write_text(f"engine: vllm\ndescription: d\ncommand: [x]\n{line}\n")
    with pytest.raises(StackError) as refusal:
        read_profile("p.yaml", SHELF, tmp_path)
    assert complaint in str(refusal.value)


def test_a_profile_that_extends_another_says_only_what_differs(tmp_path: Path) -> None:
    (tmp_path / "cpu.yaml").write_text("engine: vllm\ndescription: d\ncommand: [x, -a]\nenv: {A: 1, B: 1}\nhub: true\n")
    (tmp_path / "lora.yaml").write_text("extends: cpu\ndescription: with adapters\nargs: [-b]\nenv: {B: 2}\n")
    profile = read_profile("lora.yaml", SHELF, tmp_path)
    assert profile.command == ["x", "-a", "-b"]
    assert profile.env == {"A": "1", "B": "2"}
    assert (profile.engine, profile.description, profile.hub) == ("vllm", "with adapters", True)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("extends: none", "none.yaml: No such file"),
        ("extends: loop", "one step is the limit"),
        ("extends: base\ncomand: []", "comand: unknown key; did you mean command?"),
    ],
)
def test_a_profile_that_extends_wrongly_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "base.yaml").write_text("engine: vllm\ndescription: d\ncommand: [x]\n")
    (tmp_path / "loop.yaml").write_text("extends: base\n")
    (tmp_path / "p.yaml").write_text(f"{text}\n")
    with pytest.raises(StackError) as refusal:
        read_profile("p.yaml", SHELF, tmp_path)
    assert complaint in str(refusal.value)


@pytest.mark.parametrize(
    "path", sorted(SHELF.glob("*/profiles/*.yaml")), ids=lambda p: f"{p.parent.parent.name}/{p.stem}"
)
def test_every_shipped_profile_can_be_read_and_filled(path: Path, tmp_path: Path) -> None:
    (tmp_path / "ckpt").mkdir()
    entry = {"profile": f"{path.parent.parent.name}/{path.stem}", "checkpoint": "ckpt"}
    place = Place(ROOT, tmp_path, tmp_path / "run")
    [engine] = served_engines(StackFile.model_validate({"engines": {"a": entry}}), place)
    on = {"port": 8123} | {f"port_{name}": 8124 + index for index, name in enumerate(engine.profile.ports)}
    [spec] = replica_specs(engine, place, [on], {})
    line = " ".join(spec.command)
    assert (str(tmp_path / "ckpt") in line) == any("{checkpoint}" in word for word in engine.profile.command)
    assert "8123" in line
    assert not any(f"{{{word}}}" in line for word in ("checkpoint", "port", "host", "name", "venv", "python"))


@pytest.mark.parametrize("path", sorted((SHELF / "stack" / "examples").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_example_can_be_read(path: Path) -> None:
    assert read_stack(path).engines


def test_an_unknown_profile_names_the_known_ones() -> None:
    with pytest.raises(StackError, match=r"'vlllm'; known: .*triton/cpu, .*vllm/cpu, .*vllm/tensor-parallel"):
        find_profile("vlllm", SHELF, ROOT)


def test_braces_that_are_no_placeholder_stay() -> None:
    assert fill('{"a": {port}, "b": {c}}', {"port": "1"}) == '{"a": 1, "b": {c}}'


def test_numbers_in_args_and_env_are_text(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("engines: {a: {profile: x, checkpoint: y, args: [--n, 4, 0.5], env: {N: 1}}}")
    engine = read_stack(tmp_path / "s.yaml").engines["a"]
    assert engine.args == ["--n", "4", "0.5"]
    assert engine.env == {"N": "1"}


def test_a_missing_checkpoint_says_what_may_stand_there(tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"engines.a.checkpoint: .*/nowhere does not exist .*hub id owner/name"):
        _served(tmp_path, checkpoint="nowhere")


def test_only_a_profile_that_loads_one_needs_a_checkpoint(tmp_path: Path) -> None:
    assert _served(tmp_path, profile="fake_engine", checkpoint=None).model == "a"
    with pytest.raises(StackError, match=r"engines.a.checkpoint: is missing, the profile vllm/cpu serves one"):
        _served(tmp_path, checkpoint=None)


def test_a_hub_id_goes_to_vllm_as_it_is_and_names_the_model(tmp_path: Path) -> None:
    engine = _served(tmp_path, checkpoint="Qwen/Qwen3-0.6B")
    [spec] = replica_specs(engine, Place(ROOT, tmp_path, tmp_path), [{"port": 1}], {})
    assert "Qwen/Qwen3-0.6B" in spec.command
    assert engine.model == "Qwen3-0.6B"
    assert not engine.needs_fetch


def test_the_model_is_named_by_the_manifest_or_else_by_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "some-model"
    folder.mkdir()
    assert model_name(folder) == "some-model"
    assert model_name(tmp_path / "m.gguf") == "m"
    for manifest, name in [
        ('{"name": "penstock-starter"}', "penstock-starter"),
        ("[]", "some-model"),
        ("{", "some-model"),
    ]:
        (folder / "penstock.json").write_text(manifest)
        assert model_name(folder) == name


@pytest.fixture
def claims() -> Iterator[Claims]:
    with contextlib.closing(Claims()) as claims:
        yield claims


def test_two_stacks_that_start_at_once_choose_different_ports(tmp_path: Path, claims: Claims) -> None:
    """Neither of them listens yet."""
    engine = _served(tmp_path, replicas=2)
    with contextlib.closing(Claims()) as others:
        ours, theirs = (choose_ports([engine], ("127.0.0.1", 8000), one)["a"] for one in (claims, others))
    assert not {on["port"] for on in ours} & {on["port"] for on in theirs}


def test_replicas_get_consecutive_ports_and_the_others_step_aside(tmp_path: Path, claims: Claims) -> None:
    first = _served(tmp_path, replicas=3, port=18101)
    second = _served(tmp_path, name="b")
    chosen = choose_ports([second, first], ("127.0.0.1", 8000), claims)
    assert chosen["a"] == [{"port": 18101}, {"port": 18102}, {"port": 18103}]
    assert chosen["b"][0]["port"] >= 8101
    with pytest.raises(StackError, match=r"engines.b.port: 18102 is used twice"):
        choose_ports([first, _served(tmp_path, name="b", port=18102)], ("127.0.0.1", 8000), claims)
    with pytest.raises(StackError, match="beyond port 65535"):
        choose_ports([_served(tmp_path, replicas=3, port=65534)], ("127.0.0.1", 8000), claims)


def test_the_gateway_is_told_every_replica_and_keeps_what_the_file_says(tmp_path: Path) -> None:
    engine = _served(tmp_path, replicas=2, model="m")
    gateway = {"server": {"port": 1, "keep": 1}, "models": {"m": {"deployments": {"far": {"engine": "openai"}}}}}
    stack = StackFile.model_validate({"gateway": gateway, "engines": {"a": engine.entry.model_dump()}})
    config = gateway_config(stack, [engine], ("127.0.0.1", 8000), {"a": [{"port": 8101}, {"port": 8102}]}, None)
    assert config["server"] == {"host": "127.0.0.1", "port": 8000, "keep": 1}
    assert config["models"]["m"]["deployments"]["a"]["replicas"]["a-2"] == {"url": "http://127.0.0.1:8102"}
    assert "far" in config["models"]["m"]["deployments"]
    assert "auth" not in config


MANY_PORTS = """
engine: triton
description: d
ports: [http, metrics]
url: "grpc://{host}:{port}"
deployment: {model: ensemble, max_tokens_default: 5}
command: [x, "{port}", "{port_http}", "{port_metrics}"]
ready: {path: /v2/health/ready, port: http}
"""


def test_an_engine_with_several_ports_gets_free_ones_and_is_probed_on_the_one_it_names(
    tmp_path: Path, claims: Claims
) -> None:
    (tmp_path / "p.yaml").write_text(MANY_PORTS)
    first = _served(tmp_path, profile="p.yaml", replicas=2, port=18101)
    second = _served(tmp_path, name="b", profile="p.yaml", port=18103)
    chosen = choose_ports([first, second], ("127.0.0.1", 8000), claims)
    assert [on["port"] for on in chosen["a"]] == [18101, 18102]
    every = [port for replicas in chosen.values() for on in replicas for port in on.values()]
    assert len(every) == len(set(every)) == 9
    specs = replica_specs(first, Place(ROOT, tmp_path, tmp_path), chosen["a"], {})
    for spec, on in zip(specs, chosen["a"], strict=True):
        assert spec.command[1:] == tuple(str(on[key]) for key in ("port", "port_http", "port_metrics"))
        assert (spec.port, spec.ready_port) == (on["port"], on["port_http"])


def test_the_profile_says_how_the_gateway_reaches_the_engine_and_what_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(MANY_PORTS)
    engine = _served(tmp_path, profile="p.yaml", model="m")
    stack = StackFile.model_validate({"engines": {"a": engine.entry.model_dump()}})
    on = {"port": 8101, "port_http": 8102, "port_metrics": 8103}
    config = gateway_config(stack, [engine], ("127.0.0.1", 8000), {"a": [on]}, None)
    assert config["models"]["m"]["deployments"]["a"] == {
        "engine": "triton",
        "model": "ensemble",
        "checkpoint": str(tmp_path / "ckpt"),
        "max_tokens_default": 5,
        "replicas": {"a": {"url": "grpc://127.0.0.1:8101"}},
    }


def test_the_gateway_is_told_of_checkpoints_that_are_folders_here(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    entries = {"ckpt": str(tmp_path / "ckpt"), "m.gguf": None, "Qwen/Qwen3-0.6B": None}
    for checkpoint, told in entries.items():
        engine = _served(tmp_path, checkpoint=checkpoint, model="m")
        stack = StackFile.model_validate({"engines": {"a": engine.entry.model_dump()}})
        config = gateway_config(stack, [engine], ("127.0.0.1", 8000), {"a": [{"port": 1}]}, None)
        assert config["models"]["m"]["deployments"]["a"].get("checkpoint") == told


def test_a_key_is_told_as_its_hash_beside_the_files_own(tmp_path: Path) -> None:
    engine = _served(tmp_path)
    stack = StackFile.model_validate(
        {"gateway": {"auth": {"keys": {"bob": {"sha256": "00"}}}}, "engines": {"a": engine.entry.model_dump()}}
    )
    keys = gateway_config(stack, [engine], ("0.0.0.0", 8000), {"a": [{"port": 8101}]}, "secret")["auth"]["keys"]
    assert keys == {"bob": {"sha256": "00"}, "default": {"sha256": hashlib.sha256(b"secret").hexdigest()}}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "a.host.name"])
def test_without_a_key_only_loopback_is_served(tmp_path: Path, host: str) -> None:
    engine = _served(tmp_path)
    stack = StackFile.model_validate({"engines": {"a": engine.entry.model_dump()}})
    with pytest.raises(StackError, match="export PENSTOCK_API_KEY="):
        gateway_config(stack, [engine], (host, 8000), {"a": [{"port": 8101}]}, None)
    for loopback in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        assert gateway_config(stack, [engine], (loopback, 8000), {"a": [{"port": 8101}]}, None)


def test_the_command_line_wins_over_the_file_for_the_address() -> None:
    stack = StackFile.model_validate(
        {"gateway": {"server": {"port": 9}}, "engines": {"a": {"profile": "x", "checkpoint": "y"}}}
    )
    assert plan.gateway_address(stack, None, None) == ("127.0.0.1", 9)
    assert plan.gateway_address(stack, "::1", 10) == ("::1", 10)


def test_the_pause_doubles_up_to_its_cap() -> None:
    restart = Restart(backoff_s=1, backoff_max_s=30)
    assert [backoff_s(n, restart) for n in (1, 2, 3, 5, 6, 10_000)] == [1, 2, 4, 16, 30, 30]


def _served(folder: Path, name: str = "a", **entry: object) -> plan.ServedEngine:
    (folder / "ckpt").mkdir(exist_ok=True)
    stack = StackFile.model_validate({"engines": {name: {"profile": "vllm/cpu", "checkpoint": "ckpt"} | entry}})
    return served_engines(stack, Place(ROOT, folder, folder / "run"))[0]
