"""Adapters at run time: on every replica or on none, one change at a time, and never an answer from the base."""

import hashlib
import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes import FakeHandle, start_fake
from gateway.settings import ConfigError, load
from gateways import KEY, KEY_SHA256, GatewayHandle, config, start_gateway
from peers import Peer

Fakes = tuple[FakeHandle, FakeHandle]
ASK = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}


@pytest.fixture(scope="module")
def engines() -> Iterator[Fakes]:
    with start_fake("--model", "m", "--enable-lora") as a, start_fake("--model", "m", "--enable-lora") as b:
        yield a, b


@pytest.fixture(scope="module")
def served(engines: Fakes) -> Iterator[GatewayHandle]:
    """One model with an alias; two deployments of one replica each."""
    settings = config(engines[0].url, max_attempts=1)
    model = settings["models"]["m"]
    model["aliases"] = ["alias"]
    model["deployments"]["second"] = model["deployments"]["main"] | {"replicas": {"r0": {"url": engines[1].url}}}
    settings["models"]["other"] = config(engines[1].url, deployment={"model": "m"})["models"]["m"]
    with start_gateway(settings) as handle:
        wait_until(lambda: all(s == "ready" for m in handle.get("/ready")[1]["models"].values() for s in states(m)))
        yield handle


@pytest.fixture
def gateway(served: GatewayHandle, engines: Fakes) -> Iterator[GatewayHandle]:
    yield served
    for engine in engines:
        engine.adapters()
        engine.reset_script()
    for adapter in served.get("/admin/adapters")[1]["data"]:
        assert admin(served, "DELETE", f"/{adapter['name']}").status_code == 204
    for engine in engines:
        engine.reset_stats()


def states(model: dict[str, Any]) -> list[str]:
    return list(model["replicas"].values())


def admin(gateway: GatewayHandle, method: str, under: str = "", key: str | None = None, **body: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.request(method, f"{gateway.url}/admin/adapters{under}", json=body or None, headers=headers, timeout=60)


def add(gateway: GatewayHandle, name: str, path: Path, model: str = "m", key: str | None = None) -> httpx.Response:
    return admin(gateway, "POST", key=key, name=name, model=model, path=str(path))


def ask(gateway: GatewayHandle, model: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{gateway.url}/v1/chat/completions", json={"model": model, **ASK, **fields}, timeout=60)


def listed(engine: FakeHandle) -> list[str]:
    """What the engine itself lists."""
    with urllib.request.urlopen(f"{engine.url}/v1/models", timeout=60) as answer:
        return [card["id"] for card in json.load(answer)["data"]]


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "it never came true"
        time.sleep(0.02)


def error(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


# ---- loading and unloading ----


def test_an_adapter_is_loaded_on_every_replica_of_every_deployment(
    gateway: GatewayHandle, engines: Fakes, tmp_path: Path
) -> None:
    answer = add(gateway, "tuned", tmp_path)
    assert answer.status_code == 201
    assert answer.json()["replicas"] == {"main/r0": "loaded", "second/r0": "loaded"}
    assert [listed(engine) for engine in engines] == [["m", "tuned"]] * 2
    assert [a["name"] for a in admin(gateway, "GET").json()["data"]] == ["tuned"]
    cards = {card["id"]: card for card in gateway.get("/v1/models")[1]["data"]}
    assert cards["tuned"]["parent"] == "m"
    assert cards["tuned"]["max_model_len"] == cards["m"]["max_model_len"]
    assert "parent" not in cards["m"]
    assert gateway.get("/v1/models/tuned")[1] == cards["tuned"]


def test_a_request_for_an_adapter_reaches_the_engine_by_that_name(
    gateway: GatewayHandle, engines: Fakes, tmp_path: Path
) -> None:
    add(gateway, "tuned", tmp_path)
    answers = [ask(gateway, "tuned") for _ in range(8)]
    assert {a.json()["model"] for a in answers} == {"tuned"}
    streamed = ask(gateway, "tuned", stream=True)
    assert '"model":"tuned"' in streamed.text
    assert {ask(gateway, "alias").json()["model"]} == {"alias"}
    asked = [
        request["body"]["model"] for e in engines for request in e.stats()["last_requests"] if "chat" in request["path"]
    ]
    assert sorted(asked) == ["m", *["tuned"] * 9]


def test_a_deleted_adapter_is_a_404_and_never_the_base(gateway: GatewayHandle, engines: Fakes, tmp_path: Path) -> None:
    add(gateway, "tuned", tmp_path)
    assert admin(gateway, "DELETE", "/tuned").status_code == 204
    assert error(ask(gateway, "tuned")) == (404, "model_not_found")
    assert [listed(engine) for engine in engines] == [["m"]] * 2
    assert gateway.get("/v1/models/tuned")[0] == 404
    assert error(admin(gateway, "DELETE", "/tuned")) == (404, "model_not_found")


def test_a_running_request_ends_with_the_adapter_it_began_with(
    gateway: GatewayHandle, engines: Fakes, tmp_path: Path
) -> None:
    add(gateway, "tuned", tmp_path)
    for engine in engines:
        engine.script({"itl_s": 0.05, "tokens": 20})
    body = {"model": "tuned", "stream": True, "messages": ASK["messages"]}
    with httpx.stream("POST", f"{gateway.url}/v1/chat/completions", json=body, timeout=60) as stream:
        lines = stream.iter_lines()
        next(lines)
        assert admin(gateway, "DELETE", "/tuned").status_code == 204
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert not any('"error"' in line for line in rest)


def test_a_request_that_waited_for_a_slot_while_its_adapter_was_deleted_is_a_404(tmp_path: Path) -> None:
    with start_fake("--model", "m", "--enable-lora") as fake:
        one = {"replicas": {"r0": {"url": fake.url, "max_in_flight": 1}}, "warm_up": "none", "queue_timeout_s": 600}
        with start_gateway(config(deployment=one)) as gateway, ThreadPoolExecutor(1) as pool:
            add(gateway, "tuned", tmp_path)
            with Peer(gateway.port) as first:
                first.chat({"hang": "before_headers"})
                fake.wait(lambda stats: stats["active"] == 1)
                second = pool.submit(ask, gateway, "tuned")
                wait_until(lambda: gateway.metric("penstock_requests_waiting") == 1)
                assert admin(gateway, "DELETE", "/tuned").status_code == 204
            assert error(second.result()) == (404, "model_not_found")
            assert fake.stats()["requests"] == 1


def test_sglang_is_asked_for_base_and_adapter_and_a_refusal_is_one(tmp_path: Path) -> None:
    with start_fake("--engine", "sglang", "--model", "m", "--enable-lora") as fake:
        with start_gateway(config(fake.url, deployment={"engine": "sglang"})) as gateway:
            assert error(add(gateway, "tuned", tmp_path / "nowhere")) == (400, "adapter_refused")
            assert add(gateway, "tuned", tmp_path).status_code == 201
            assert ask(gateway, "tuned").json()["model"] == "tuned"
            assert '"model":"tuned"' in ask(gateway, "tuned", stream=True).text
            assert ask(gateway, "m").json()["model"] == "m"
            assert admin(gateway, "DELETE", "/tuned").status_code == 204
            assert error(ask(gateway, "tuned")) == (404, "model_not_found")
        asked = [request["body"]["model"] for request in fake.stats()["last_requests"] if "chat" in request["path"]]
        assert asked == ["m:tuned", "m:tuned", "m"]


# ---- all or nothing ----


def test_a_failure_on_one_replica_undoes_the_others_and_says_where_and_why(
    gateway: GatewayHandle, engines: Fakes, tmp_path: Path
) -> None:
    engines[1].adapters(load_status=500)
    answer = add(gateway, "tuned", tmp_path)
    assert error(answer) == (502, "engine_failed")
    assert "second/r0: the adapter could not be loaded." in answer.json()["error"]["message"]
    assert "main/r0" not in answer.json()["error"]["message"]
    assert [listed(engine) for engine in engines] == [["m"]] * 2
    assert error(ask(gateway, "tuned")) == (404, "model_not_found")
    engines[1].adapters()
    assert add(gateway, "tuned", tmp_path).status_code == 201


def test_undoing_that_fails_is_said_and_the_adapter_is_still_not_served(
    gateway: GatewayHandle, engines: Fakes, tmp_path: Path
) -> None:
    engines[0].adapters(unload_status=500)
    engines[1].adapters(load_status=500)
    answer = add(gateway, "tuned", tmp_path)
    assert "Undoing it failed on main/r0" in answer.json()["error"]["message"]
    assert error(ask(gateway, "tuned")) == (404, "model_not_found")
    for engine in engines:
        engine.adapters()
    assert add(gateway, "tuned", tmp_path).status_code == 201  # what was left behind is no obstacle


def test_a_failed_delete_leaves_the_adapter_served_everywhere(
    gateway: GatewayHandle, engines: Fakes, tmp_path: Path
) -> None:
    add(gateway, "tuned", tmp_path)
    engines[1].adapters(unload_status=500)
    answer = admin(gateway, "DELETE", "/tuned")
    assert error(answer) == (502, "engine_failed")
    assert "second/r0" in answer.json()["error"]["message"]
    assert [listed(engine) for engine in engines] == [["m", "tuned"]] * 2
    assert {ask(gateway, "tuned").status_code for _ in range(6)} == {200}


def test_a_path_the_engine_does_not_find_is_the_callers_fault(gateway: GatewayHandle, tmp_path: Path) -> None:
    answer = add(gateway, "tuned", tmp_path / "nowhere")
    assert error(answer) == (400, "adapter_refused")
    assert "No adapter found for" in answer.json()["error"]["message"]
    assert ask(gateway, "m").status_code == 200


def test_an_engine_started_without_lora_says_how_to_start_it(fakes: Fakes, pair: GatewayHandle, tmp_path: Path) -> None:
    answer = add(pair, "tuned", tmp_path)
    assert error(answer) == (400, "adapter_refused")
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1" in answer.json()["error"]["message"]


def test_a_backend_that_cannot_load_adapters_refuses_before_any_engine_is_asked(engines: Fakes, tmp_path: Path) -> None:
    settings = config(engines[0].url)
    main = settings["models"]["m"]["deployments"]["main"]
    settings["models"]["m"]["deployments"]["plain"] = main | {"engine": "openai"}
    engines[0].reset_stats()
    with start_gateway(settings) as gateway:
        answer = add(gateway, "tuned", tmp_path)
    assert error(answer) == (400, "adapters_unsupported")
    assert "'plain' (openai)" in answer.json()["error"]["message"]
    assert not [path for path in engines[0].stats()["paths"] if "lora" in path]


# ---- names ----


@pytest.mark.parametrize("name", ["m", "alias", "other"])
def test_the_name_of_a_model_or_alias_is_taken(gateway: GatewayHandle, name: str, tmp_path: Path) -> None:
    assert error(add(gateway, name, tmp_path)) == (409, "name_taken")


def test_the_same_adapter_again_is_fine_and_another_of_its_name_is_not(
    gateway: GatewayHandle, engines: Fakes, tmp_path: Path
) -> None:
    assert add(gateway, "tuned", tmp_path).status_code == 201
    assert add(gateway, "tuned", tmp_path).status_code == 200
    assert error(add(gateway, "tuned", tmp_path.parent)) == (409, "name_taken")
    assert error(add(gateway, "tuned", tmp_path, model="other")) == (409, "name_taken")
    assert engines[0].stats()["paths"]["POST /v1/load_lora_adapter"] == 1


def test_an_unknown_model_and_bad_bodies_are_refused(gateway: GatewayHandle, tmp_path: Path) -> None:
    assert error(add(gateway, "tuned", tmp_path, model="nonesuch")) == (404, "model_not_found")
    for body in ({"name": "a", "model": "m"}, {"name": "a b", "model": "m", "path": "x"}, {"name": "a", "what": 1}):
        answer = admin(gateway, "POST", **body)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["type"] == "invalid_request_error"


def test_changes_are_made_one_at_a_time(gateway: GatewayHandle, engines: Fakes, tmp_path: Path) -> None:
    names = [f"a{n}" for n in range(6)]
    with ThreadPoolExecutor(12) as pool:
        same = list(pool.map(lambda _: add(gateway, "same", tmp_path).status_code, range(6)))
        others = list(pool.map(lambda name: add(gateway, name, tmp_path).status_code, names))
    assert sorted(same) == [200] * 5 + [201]
    assert others == [201] * 6
    assert [sorted(listed(engine)) for engine in engines] == [sorted(["m", "same", *names])] * 2
    assert engines[0].stats()["paths"]["POST /v1/load_lora_adapter"] == 7


def test_metrics_count_an_adapter_under_its_model_and_the_log_names_it(gateway: GatewayHandle, tmp_path: Path) -> None:
    add(gateway, "tuned", tmp_path)
    before = gateway.metric("penstock_requests_total", model="m", outcome="ok")
    ask(gateway, "tuned")
    wait_until(lambda: gateway.metric("penstock_requests_total", model="m", outcome="ok") == before + 1)
    assert "tuned" not in gateway.get("/metrics")[1]
    wait_until(lambda: gateway.access_lines()[-1].get("adapter") == "tuned")
    assert gateway.access_lines()[-1]["model"] == "m"


# ---- replicas that come and go ----


def test_adapters_of_the_configuration_are_there_before_the_replica_is(tmp_path: Path) -> None:
    with start_fake("--model", "m", "--enable-lora") as fake:
        fake.adapters(load_status=500)
        settings = config(fake.url)
        settings["models"]["m"]["adapters"] = {"tuned": {"path": str(tmp_path)}}
        with start_gateway(settings, ready=False) as gateway:
            wait_until(lambda: "could not load its adapters" in str(gateway.get("/ready")[1]))
            assert ask(gateway, "tuned").status_code == 503
            fake.adapters()
            gateway.wait_ready()
            assert ask(gateway, "tuned").json()["model"] == "tuned"


def test_a_replica_that_comes_back_has_the_adapters_before_its_first_request(tmp_path: Path) -> None:
    fake = start_fake("--model", "m", "--enable-lora")
    try:
        with start_gateway(config(fake.url)) as gateway:
            add(gateway, "tuned", tmp_path)
            fake.kill()
            wait_until(lambda: gateway.get("/ready")[0] == 503)
            assert error(ask(gateway, "tuned")) == (503, "no_ready_replica")
            assert error(add(gateway, "more", tmp_path)) == (503, "no_ready_replica")
            fake = start_fake("--model", "m", "--enable-lora", port=fake.port)
            gateway.wait_ready()
            assert listed(fake) == ["m", "tuned"]
            assert ask(gateway, "tuned").json()["model"] == "tuned"
    finally:
        fake.stop()


def test_an_engine_that_restarted_between_two_probes_gets_them_again(tmp_path: Path) -> None:
    fake = start_fake("--model", "m", "--enable-lora")
    try:
        with start_gateway(config(fake.url, deployment={"probe_interval_s": 1.5})) as gateway:
            add(gateway, "tuned", tmp_path)
            fake.kill()
            fake = start_fake("--model", "m", "--enable-lora", port=fake.port)
            wait_until(lambda: "tuned" in listed(fake))
            wait_until(lambda: ask(gateway, "tuned").status_code == 200)
    finally:
        fake.stop()


def test_one_that_is_down_gets_it_later_and_holds_nothing_up(tmp_path: Path) -> None:
    up, down = start_fake("--model", "m", "--enable-lora"), start_fake("--model", "m", "--enable-lora")
    try:
        with start_gateway(config(up.url, down.url)) as gateway:
            wait_until(lambda: states(gateway.get("/ready")[1]["models"]["m"]) == ["ready", "ready"])
            down.kill()
            wait_until(lambda: "down" in states(gateway.get("/ready")[1]["models"]["m"])[1])
            answer = add(gateway, "tuned", tmp_path)
            assert answer.json()["replicas"] == {"main/r0": "loaded", "main/r1": "waits: the replica is down"}
            down = start_fake("--model", "m", "--enable-lora", port=down.port)
            wait_until(lambda: states(gateway.get("/ready")[1]["models"]["m"]) == ["ready", "ready"])
            assert "tuned" in listed(down)
    finally:
        up.stop()
        down.stop()


def test_one_the_engine_has_already_is_taken_over_and_one_from_elsewhere_makes_way(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    with start_fake("--model", "m", "--enable-lora") as fake:
        for name, path in (("kept", tmp_path), ("moved", tmp_path)):
            order = {"lora_name": name, "lora_path": str(path)}
            httpx.post(f"{fake.url}/v1/load_lora_adapter", json=order).raise_for_status()
        settings = config(fake.url)
        settings["models"]["m"]["adapters"] = {
            "kept": {"path": str(tmp_path)},
            "moved": {"path": str(tmp_path / "new")},
        }
        with start_gateway(settings) as gateway:
            assert ask(gateway, "moved").status_code == 200
        roots = {c["id"]: c["root"] for c in httpx.get(f"{fake.url}/v1/models").json()["data"]}
        assert roots == {"m": "m", "kept": str(tmp_path), "moved": str(tmp_path / "new")}
        assert fake.stats()["paths"]["POST /v1/load_lora_adapter"] == 3


# ---- who may ----


def test_with_keys_only_an_admins_key_opens_the_admin_routes(engines: Fakes, tmp_path: Path) -> None:
    other = "sk-other"
    keys = {
        "boss": {"sha256": KEY_SHA256, "admin": True},
        "user": {"sha256": hashlib.sha256(other.encode()).hexdigest()},
    }
    with start_gateway(config(engines[0].url, auth={"keys": keys})) as gateway:
        assert error(add(gateway, "tuned", tmp_path)) == (401, "invalid_api_key")
        assert error(add(gateway, "tuned", tmp_path, key=other)) == (403, "admin_key_required")
        assert error(admin(gateway, "GET", key=other)) == (403, "admin_key_required")
        assert error(admin(gateway, "DELETE", "/tuned", key=other)) == (403, "admin_key_required")
        assert add(gateway, "tuned", tmp_path, key=KEY).status_code == 201
        assert admin(gateway, "DELETE", "/tuned", key=KEY).status_code == 204


# ---- configuration ----


def refused(tmp_path: Path, model: str) -> str:
    path = tmp_path / "gateway.yaml"
    path.write_text("models:\n  m:\n    deployments: {d: {engine: ENGINE, replicas: {r: {url: http://x}}}}\n" + model)
    with pytest.raises(ConfigError) as refusal:
        load(path)
    return str(refusal.value)


def test_a_configured_adapters_name_must_be_free(tmp_path: Path) -> None:
    assert "models.m.adapters: 'm' names two models" in refused(tmp_path, "    adapters: {m: {path: x}}\n")
    both = "    aliases: [a]\n    adapters: {a: {path: x}}\n"
    assert "models.m.adapters: 'a' names two models" in refused(tmp_path, both)
    assert "models.m.adapters.a.path" in refused(tmp_path, "    adapters: {a: {}}\n")


def test_an_engine_without_adapters_is_refused_with_the_configuration(tmp_path: Path) -> None:
    settings = config("http://127.0.0.1:1", deployment={"engine": "openai"})
    settings["models"]["m"]["adapters"] = {"tuned": {"path": "x"}}
    with pytest.raises(RuntimeError, match=r"models\.m\.adapters: the engine of its deployment 'main' \(openai\)"):
        start_gateway(settings, ready=False)
