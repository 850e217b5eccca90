"""How the engine starts, fills up, breaks and ends."""

import concurrent.futures
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from openvino_engine.convert import convert, convert_cached
from openvino_engine.export_ir import export_ir
from openvino_process import NAME, running_engine
from ports import free_port
from tiny_checkpoints import write_checkpoint

pytestmark = pytest.mark.engine

# The real server with a pipeline whose step() throws when its time has come: FAILURES times, each after STEPS steps.
FAULTY = """
import sys
from openvino_engine import __main__ as program, server

class Faulty:
    def __init__(self, pipeline): self._pipeline, self._steps = pipeline, 0
    def __getattr__(self, name): return getattr(self._pipeline, name)
    def step(self):
        global left
        self._steps += 1
        if self._steps > STEPS and left:
            left -= 1
            raise RuntimeError("Check 'false' failed: a fault for the test")
        self._pipeline.step()

left = FAILURES
serve = server.serve
program.serve = lambda options, version: serve(options, version, lambda opener: lambda: Faulty(opener()))
sys.exit(program.main())
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "random", architecture="qwen3", context=8192)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


LONG: dict[str, Any] = {"max_tokens": 8000, "ignore_eos": True}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_lets_running_streams_finish_and_exits_zero(model: Path, cache: Path, number: signal.Signals) -> None:
    with running_engine(model, cache) as engine:
        body = {"model": NAME, "prompt": "x", "stream": True, "max_tokens": 1500, "ignore_eos": True}
        with engine.client.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            engine.process.send_signal(number)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert engine.process.wait(60) == 0
        with pytest.raises(httpx.ConnectError):
            engine.client.get("/health")


def test_a_stop_waits_no_longer_than_its_grace(model: Path, cache: Path) -> None:
    with running_engine(model, cache, "--grace-s", "1") as engine:
        body = {"model": NAME, "prompt": ["x"] * 64, "stream": True} | LONG
        with engine.client.stream("POST", "/v1/completions", json=body) as response:
            next(response.iter_lines())
            engine.process.send_signal(signal.SIGTERM)
            assert engine.process.wait(60) == 0


def test_no_process_is_left_behind(model: Path, cache: Path) -> None:
    with running_engine(model, cache) as engine:
        assert engine.chat(structured_outputs={"regex": "a"}).status_code == 200  # starts the grammar process
        group = engine.process.pid
        assert len(_members(group)) == 2
        engine.process.send_signal(signal.SIGTERM)
        assert engine.process.wait(60) == 0
        assert _members(group) == []


def test_the_grammar_process_ends_with_an_engine_that_is_killed(model: Path, cache: Path) -> None:
    with running_engine(model, cache) as engine:
        assert engine.chat(structured_outputs={"regex": "a"}).status_code == 200
        group = engine.process.pid
        engine.process.kill()
        engine.process.wait()
        deadline_s = time.monotonic() + 60
        while _members(group) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        assert _members(group) == []


def test_a_full_queue_is_a_503_that_says_when_to_come_back(model: Path, cache: Path) -> None:
    with running_engine(model, cache, "--max-num-seqs", "2", "--max-queue", "2") as engine:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            running = [pool.submit(engine.complete, max_tokens=3000, ignore_eos=True) for _ in range(4)]
            engine.wait_for("num_requests_waiting", 2)
            refused = engine.complete(max_tokens=1)
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "1"
            assert refused.json()["error"]["code"] == "server_is_overloaded"
            assert engine.metric("admission_rejections_total") == 1
            assert engine.metric("aborts_total") == 0
            assert [future.result().status_code for future in running] == [200] * 4
        assert engine.complete(max_tokens=1).status_code == 200
        impossible = engine.complete(["a"] * 5)
        assert (impossible.status_code, impossible.json()["error"]["param"]) == (400, "prompt")


def test_one_failed_step_costs_its_answers_and_nothing_else(model: Path, cache: Path) -> None:
    argv = [sys.executable, "-c", FAULTY.replace("FAILURES", "1").replace("STEPS", "20")]
    with running_engine(model, cache, "--max-num-seqs", "1", argv=argv) as engine:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            lost = pool.submit(engine.complete, max_tokens=100, ignore_eos=True)
            waiting = pool.submit(engine.complete, max_tokens=5, ignore_eos=True)
            replies = [lost.result(), waiting.result()]
        failed = [reply for reply in replies if reply.status_code == 500]
        assert [reply.json()["error"]["code"] for reply in failed] == ["engine_error"]
        engine.wait_for("pipeline_restarts_total", 1)  # counted once it is open again, which may be after both replies
        assert engine.client.get("/health").status_code == 200
        assert engine.complete(max_tokens=50, ignore_eos=True).status_code == 200


def test_a_failure_inside_a_stream_is_one_error_event_and_done(model: Path, cache: Path) -> None:
    argv = [sys.executable, "-c", FAULTY.replace("FAILURES", "1").replace("STEPS", "20")]
    with running_engine(model, cache, argv=argv) as engine:
        text = engine.complete(max_tokens=100, ignore_eos=True, stream=True).text
        blocks = [block.removeprefix("data: ") for block in text.split("\n\n") if block]
        assert blocks[-1] == "[DONE]"
        assert json.loads(blocks[-2])["error"].keys() == {"message", "type", "param", "code"}
        assert 2 < len(blocks) <= 22


def test_a_loop_that_keeps_failing_ends_the_process_with_a_failure(model: Path, cache: Path) -> None:
    argv = [sys.executable, "-c", FAULTY.replace("FAILURES", "99").replace("STEPS", "0")]
    with running_engine(model, cache, argv=argv) as engine:
        codes = []
        while engine.process.poll() is None and len(codes) < 50:
            try:
                codes.append(engine.complete(max_tokens=2).status_code)
            except httpx.TransportError:
                time.sleep(0.05)
        assert set(codes) == {500}
        assert engine.process.wait(60) == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--max-model-len", "99999"], "--max-model-len 99999 is beyond the model's 8192"),
        (["--precision", "f8"], "invalid choice: 'f8'"),
        (["--port", "0"], "must be from 1 to 65535"),
        (["--max-modellen", "5"], "unrecognized arguments"),
    ],
)
def test_a_wrong_flag_is_explained(model: Path, cache: Path, args: list[str], message: str) -> None:
    command = [
        sys.executable,
        "-m",
        "openvino_engine",
        "serve",
        "--model",
        str(model),
        "--cache-dir",
        str(cache),
        *args,
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode in (1, 2)
    assert message in run.stderr


def test_a_port_that_is_taken_is_an_error_and_no_hang(model: Path, cache: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        flags = ["--model", str(model), "--cache-dir", str(cache), "--port", port]
        run = subprocess.run(
            [sys.executable, "-m", "openvino_engine", "serve", *flags], capture_output=True, text=True, timeout=60
        )
    assert run.returncode == 3
    assert "address already in use" in run.stderr


def test_the_ready_line_says_where_and_how_much(model: Path, cache: Path) -> None:
    port = str(free_port())
    flags = ["--model", str(model), "--cache-dir", str(cache), "--port", port]
    process = subprocess.Popen(
        [sys.executable, "-m", "openvino_engine", "serve", *flags], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        with process.stdout:
            line = process.stdout.readline()
            process.terminate()
            rest = process.stdout.read()
        assert line.startswith(f"ready: random on http://127.0.0.1:{port}, context 8192, after ")
        assert (process.wait(60), rest) == (0, "")
    finally:
        process.kill()
        process.wait()


def test_help_teaches_with_examples() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "openvino_engine", "--help"], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0
    assert "examples:" in run.stdout
    assert "penstock openvino-engine serve --model" in run.stdout


def test_a_gguf_file_is_served_as_it_is(model: Path, cache: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "alone.gguf")
    with running_engine(model, cache) as folder, running_engine(tmp_path / "alone.gguf", tmp_path / "none") as file:
        replies = [engine.chat(temperature=0, max_tokens=20).json() for engine in (folder, file)]
        assert replies[0]["choices"] == replies[1]["choices"]
        assert replies[0]["usage"] == replies[1]["usage"]
        assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("guessing", ["draft", "prompt-lookup"])
def test_guessing_changes_the_speed_and_not_the_greedy_text(
    guessing: str, model: Path, cache: Path, tmp_path: Path
) -> None:
    args = ["--prompt-lookup"]
    if guessing == "draft":
        draft = write_checkpoint(tmp_path / "draft", architecture="qwen3", layers=1, heads=2, kv_heads=1, seed=9)
        args = ["--draft", str(draft)]
    with running_engine(model, cache) as plain, running_engine(model, cache, *args) as drafted:
        for prompt in ("hello", "the quick brown", [60, 61, 62]):
            replies = [engine.complete(prompt, temperature=0, max_tokens=40).json() for engine in (plain, drafted)]
            assert replies[0]["choices"] == replies[1]["choices"]
            assert replies[0]["usage"] == replies[1]["usage"]
        shaped = drafted.chat(structured_outputs={"regex": "[ab]{12}"}, temperature=0).json()
        assert set(shaped["choices"][0]["message"]["content"]) <= {"a", "b"}
        assert drafted.complete(temperature=0, max_tokens=30, stop="\n", n=3).status_code == 200


def test_a_small_context_is_kept(model: Path, cache: Path) -> None:
    with running_engine(model, cache, "--max-model-len", "64") as engine:
        assert engine.client.get("/v1/models").json()["data"][0]["max_model_len"] == 64
        assert engine.complete([60] * 64).json()["error"]["code"] == "context_length_exceeded"
        assert engine.chat(ignore_eos=True).json()["usage"]["total_tokens"] == 64


def test_a_context_beyond_the_kv_cache_is_lowered_and_never_promised(model: Path, cache: Path) -> None:
    with running_engine(model, cache, "--kv-blocks", "32") as engine:
        assert engine.client.get("/v1/models").json()["data"][0]["max_model_len"] == 1024
        assert engine.complete([60] * 1000, max_tokens=24, ignore_eos=True).status_code == 200
        with concurrent.futures.ThreadPoolExecutor(16) as pool:  # five times what the cache holds: taken in turns
            fields: dict[str, Any] = {"max_tokens": 300, "ignore_eos": True, "temperature": 0}
            together = list(pool.map(lambda i: engine.complete([60 + i] * 40, **fields).json(), range(16)))
        alone = [engine.complete([60 + i] * 40, **fields).json() for i in range(16)]
        assert [reply["choices"] for reply in together] == [reply["choices"] for reply in alone]
    wrong = ["--model", str(model), "--cache-dir", str(cache), "--kv-blocks", "32", "--max-model-len", "2048"]
    run = subprocess.run(
        [sys.executable, "-m", "openvino_engine", "serve", *wrong], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 1
    assert "does not fit the KV cache of 1024 tokens" in run.stderr


def test_an_openvino_ir_folder_answers_like_the_gguf_it_came_from(model: Path, cache: Path, tmp_path: Path) -> None:
    folder = export_ir(convert_cached(model, cache), tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"):
        shutil.copy(model / name, folder / name)
    with running_engine(model, cache) as original, running_engine(folder, cache) as exported:
        fields: dict[str, Any] = {"temperature": 0, "max_tokens": 30, "logprobs": True, "top_logprobs": 2}
        replies = [engine.chat(**fields).json()["choices"][0] for engine in (original, exported)]
        assert replies[0]["message"] == replies[1]["message"]
        shaped = exported.chat(structured_outputs={"regex": "[ab]{5}"}).json()["choices"][0]["message"]["content"]
        assert set(shaped) <= {"a", "b"}


def _members(group: int) -> list[int]:
    """Processes of a process group that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found
