"""`penstock up` as a whole: real fake engines and the real gateway, real crashes and signals, nothing left behind."""

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from ports import free_port
from stack_under_test import ROOT, ask, stack_of, write_stack


@pytest.fixture
def port() -> int:
    return free_port()


def test_two_replicas_answer_through_the_gateway_and_sigterm_leaves_nothing(tmp_path: Path, port: int) -> None:
    with stack_of(tmp_path, str(write_stack(tmp_path, port, engine="replicas: 2"))) as stack:
        stack.wait_for(f"ready at http://127.0.0.1:{port}/v1")
        assert json.loads(ask(port))["choices"][0]["message"]["content"]
        assert len(stack.pids("fake_engine")) == 2
        stack.signal(signal.SIGTERM)
        assert stack.exit_code() == 0
        stack.assert_nothing_stays()
        assert stack.output.index("gateway: stopped") < stack.output.index("fake-1: stopping")


def test_the_grpc_door_is_open_when_it_is_asked_for(tmp_path: Path, port: int) -> None:
    rpc_port = free_port()
    with stack_of(tmp_path, str(write_stack(tmp_path, port)), "--grpc-port", str(rpc_port)) as stack:
        stack.wait_for("ready at")
        assert f"gRPC    127.0.0.1:{rpc_port}" in stack.output
        with grpc.insecure_channel(f"127.0.0.1:{rpc_port}") as channel:
            answer = HealthStub(channel).Check(HealthCheckRequest(service="fake"), timeout=60)
        assert answer.status == HealthCheckResponse.SERVING


def test_a_killed_engine_is_started_again(tmp_path: Path, port: int) -> None:
    with stack_of(tmp_path, str(write_stack(tmp_path, port))) as stack:
        stack.wait_for("ready at")
        [first] = stack.pids("fake_engine")
        os.kill(first, signal.SIGKILL)
        stack.wait_for("fake: restarting (killed by SIGKILL; out of memory?; again in 0.1 s (failure 1))")
        stack.wait_for("fake: ready", times=2)
        [second] = stack.pids("fake_engine")
        assert second != first
        assert ask_until_answered(port)
        assert stack.log("fake").count(b"--- penstock: start") == 2


def test_the_gateway_too_is_started_again(tmp_path: Path, port: int) -> None:
    with stack_of(tmp_path, str(write_stack(tmp_path, port))) as stack:
        stack.wait_for("ready at")
        os.kill(stack.pids("-m gateway serve")[0], signal.SIGKILL)
        stack.wait_for("gateway: ready", times=2)
        assert ask(port)


def test_an_engine_that_cannot_start_is_given_up_with_its_last_lines(tmp_path: Path, port: int) -> None:
    path = write_stack(tmp_path, port, shell="i=0; while [ $i -lt 30 ]; do i=$((i+1)); echo line-$i; done; exit 3")
    with stack_of(tmp_path, str(path)) as stack:
        assert stack.exit_code() == 1
        stack.assert_nothing_stays()
        assert "fake did not start: exit code 3; 2 failures in a row" in stack.output
        assert "    line-30" in stack.output
        assert "line-11\n" in stack.output
        assert "line-10\n" not in stack.output


def test_an_engine_that_fails_once_and_then_starts_is_served(tmp_path: Path, port: int) -> None:
    path = write_stack(tmp_path, port, shell='mkdir "$1/tried" 2>/dev/null && exit 9')
    with stack_of(tmp_path, str(path)) as stack:
        stack.wait_for("ready at")
        assert "fake: restarting (exit code 9" in stack.output
        assert ask(port)


def test_an_engine_that_is_lost_for_good_ends_the_stack(tmp_path: Path, port: int) -> None:
    path = write_stack(tmp_path, port, shell='mkdir "$1/tried" 2>/dev/null || exit 9', restart="max_failures: 3")
    with stack_of(tmp_path, str(path)) as stack:
        stack.wait_for("ready at")
        os.kill(stack.pids("fake_engine")[0], signal.SIGKILL)
        assert stack.exit_code() == 1
        assert "fake gave up: exit code 9; 3 failures in a row" in stack.output
        stack.assert_nothing_stays()


def test_a_lost_replica_leaves_the_other_serving(tmp_path: Path, port: int) -> None:
    path = write_stack(
        tmp_path, port, engine="replicas: 2", restart="max_failures: 1",
        shell='mkdir "$1/tried-$2" 2>/dev/null || exit 9',
    )  # fmt: skip
    with stack_of(tmp_path, str(path)) as stack:
        stack.wait_for("ready at")
        os.kill(stack.pids("fake_engine")[0], signal.SIGKILL)
        stack.wait_for("gave up")
        assert ask(port)
        assert stack.process.poll() is None


def test_an_engine_that_never_gets_ready_is_stopped_and_given_up(tmp_path: Path, port: int) -> None:
    path = write_stack(tmp_path, port, shell="exec sleep 600")
    profile = tmp_path / "profile.yaml"
    profile.write_text(profile.read_text().replace("timeout_s: 30", "timeout_s: 0.5"))
    with stack_of(tmp_path, str(path)) as stack:
        assert stack.exit_code() == 1
        assert "not ready after 0.5 s" in stack.output
        stack.assert_nothing_stays()


# Descendants that try to get away: another session, a double fork, deaf to SIGTERM.
RUNAWAYS = """trap '' TERM
setsid sleep 600 &
(setsid sh -c 'trap "" TERM; while :; do sleep 600; done' &)
trap - TERM"""


def test_kill_9_of_the_stack_leaves_nothing(tmp_path: Path, port: int) -> None:
    with stack_of(tmp_path, str(write_stack(tmp_path, port, shell=RUNAWAYS))) as stack:
        stack.wait_for("ready at")
        assert len(stack.pids("sleep 600")) >= 2
        stack.signal(signal.SIGKILL)
        stack.assert_nothing_stays()


def test_kill_9_of_the_whole_process_group_leaves_nothing(tmp_path: Path, port: int) -> None:
    with stack_of(tmp_path, str(write_stack(tmp_path, port, shell=RUNAWAYS))) as stack:
        stack.wait_for("ready at")
        stack.signal_group(signal.SIGKILL)
        stack.assert_nothing_stays()


def test_descendants_of_a_stopped_engine_go_with_it(tmp_path: Path, port: int) -> None:
    with stack_of(tmp_path, str(write_stack(tmp_path, port, shell=RUNAWAYS))) as stack:
        stack.wait_for("ready at")
        stack.signal(signal.SIGINT)
        assert stack.exit_code() == 0
        stack.assert_nothing_stays()


def test_a_killed_guard_takes_its_engine_along_and_the_engine_comes_back(tmp_path: Path, port: int) -> None:
    with stack_of(tmp_path, str(write_stack(tmp_path, port, shell="sleep 600 &"))) as stack:
        stack.wait_for("ready at")
        [guard] = [pid for pid, line in stack.marked().items() if "guard.py" in line and "script.sh" in line]
        old = set(stack.pids("fake_engine") + stack.pids("sleep 600"))
        os.kill(guard, signal.SIGKILL)
        stack.wait_for("fake: ready", times=2)
        assert not old & set(stack.marked())
        assert ask_until_answered(port)


def test_under_nohup_a_hang_up_changes_nothing(tmp_path: Path, port: int) -> None:
    up = [sys.executable, "-m", "stack", str(write_stack(tmp_path, port)), "--run-dir", str(tmp_path / "run")]
    with stack_of(tmp_path, command=["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *up]) as stack:
        stack.wait_for("ready at")
        stack.signal(signal.SIGHUP)
        stack.signal_group(signal.SIGHUP)
        assert ask(port)
        stack.signal(signal.SIGTERM)
        assert stack.exit_code() == 0
        assert "stopping (SIGTERM)" in stack.output


def test_a_mistake_of_the_gateways_part_is_told_while_a_set_up_runs(tmp_path: Path, port: int) -> None:
    path = write_stack(tmp_path, port, gateway="sevrer: {}")
    with (tmp_path / "profile.yaml").open("a") as profile:
        profile.write("setup: [sleep, 600]\n")
    with stack_of(tmp_path, str(path)) as stack:
        assert stack.exit_code() == 1
        assert "sevrer" in stack.output
        stack.assert_nothing_stays()


def test_a_set_up_that_fails_is_told_with_what_it_said(tmp_path: Path, port: int) -> None:
    path = write_stack(tmp_path, port)
    with (tmp_path / "profile.yaml").open("a") as profile:
        profile.write('setup: [sh, -c, "echo no space; exit 4"]\n')
    with stack_of(tmp_path, str(path)) as stack:
        assert stack.exit_code() == 1
        assert "setup-fake failed, exit code 4:\n    no space" in stack.output
        assert "fake: starting" not in stack.output


def test_a_long_set_up_is_seen_at_work_and_a_quick_one_is_not_mentioned(tmp_path: Path, port: int) -> None:
    path = write_stack(tmp_path, port)
    with (tmp_path / "profile.yaml").open("a") as profile:
        profile.write(
            'setup: [sh, -c, \'test -e "$0/done" || { echo step one; sleep 2; touch "$0/done"; }\', "{checkpoint}"]\n'
        )
    with stack_of(tmp_path, str(path)) as stack:
        stack.wait_for("fake: starting")
        assert "setup-fake | step one" in stack.output
        assert "setup-fake: running" in stack.output
        assert "setup-fake: done (after " in stack.output
        stack.signal(signal.SIGTERM)
        assert stack.exit_code() == 0
    for _ in range(10):  # on a busy machine a quick one may have been long
        with stack_of(tmp_path, str(path)) as again:
            again.wait_for("fake: starting")
            if "setup-fake" not in again.output:
                return
    pytest.fail("a set-up with nothing to do is mentioned")


def test_a_stop_while_an_engine_is_starting_leaves_nothing(tmp_path: Path, port: int) -> None:
    with stack_of(tmp_path, str(write_stack(tmp_path, port, shell="sleep 600"))) as stack:
        stack.wait_for("fake: starting")
        stack.signal(signal.SIGTERM)
        assert stack.exit_code() == 0
        stack.assert_nothing_stays()


def test_a_second_ctrl_c_kills_at_once(tmp_path: Path, port: int) -> None:
    path = write_stack(tmp_path, port, shell="trap '' TERM; echo deaf; while :; do sleep 600; done")
    profile = tmp_path / "profile.yaml"
    profile.write_text(profile.read_text().replace("grace_s: 5", "grace_s: 600"))
    with stack_of(tmp_path, str(path), "--logs", "all") as stack:
        stack.wait_for("| deaf")
        stack.signal(signal.SIGINT)
        stack.signal(signal.SIGINT)  # what make or a terminal sends twice at once counts as one
        stack.wait_for("fake: stopping")
        time.sleep(0.6)
        assert stack.process.poll() is None
        stack.signal(signal.SIGINT)
        assert stack.exit_code() == 130
        stack.assert_nothing_stays()


def test_the_gateway_drains_a_stream_before_its_engine_is_stopped(tmp_path: Path, port: int) -> None:
    with stack_of(tmp_path, str(write_stack(tmp_path, port))) as stack:
        stack.wait_for("ready at")
        script = '{"fake": {"ttft_s": 0.3, "itl_s": 0.1, "tokens": 15}}'
        body = {"model": "fake", "stream": True, "messages": [{"role": "user", "content": script}]}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.readline()
            stack.signal(signal.SIGTERM)
            rest = answer.read().decode()
        assert rest.count('"content":') >= 14
        assert rest.rstrip().endswith("data: [DONE]")
        assert stack.exit_code() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_under_make_a_signal_to_the_process_group_leaves_nothing(tmp_path: Path, port: int, number: int) -> None:
    make = [
        "make", "-C", str(ROOT), "serve", f"STACK={write_stack(tmp_path, port)}", f"ARGS=--run-dir {tmp_path / 'run'}",
        "SERVE_STAMP=", f"BIN={Path(sys.executable).parent}",
    ]  # fmt: skip
    with stack_of(tmp_path, command=make) as stack:
        stack.wait_for("ready at")
        stack.signal_group(number)
        stack.exit_code()
        stack.assert_nothing_stays()
        assert "fake: stopped" in stack.output
        assert "killing" not in stack.output


def test_a_taken_port_is_named_with_its_holder(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken: int = holder.getsockname()[1]
        with stack_of(tmp_path, str(write_stack(tmp_path, taken))) as stack:
            assert stack.exit_code() == 1
            assert f"port {taken} on 127.0.0.1 is taken by " in stack.output
            assert f"(pid {os.getpid()})" in stack.output
            assert "--port" in stack.output


def test_a_taken_engine_port_is_named_before_anything_starts(tmp_path: Path, port: int) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken: int = holder.getsockname()[1]
        with stack_of(tmp_path, str(write_stack(tmp_path, port, engine=f"port: {taken}"))) as stack:
            assert stack.exit_code() == 1
            assert f"port {taken} on 127.0.0.1 is taken" in stack.output
            assert "engines.fake.port" in stack.output
            assert "starting" not in stack.output


def test_a_mistake_in_the_gateways_part_is_told_before_engines_are_waited_for(tmp_path: Path, port: int) -> None:
    path = write_stack(tmp_path, port, shell="sleep 600", gateway="sevrer: {}")
    with stack_of(tmp_path, str(path)) as stack:
        assert stack.exit_code() == 1
        assert "sevrer" in stack.output
        stack.assert_nothing_stays()


def test_a_checkpoint_the_engine_cannot_serve_is_told_before_the_engine_is_started(tmp_path: Path, port: int) -> None:
    path = write_stack(tmp_path, port, shell="sleep 600")
    (tmp_path / "checkpoint" / "penstock.json").write_text('{"method": "slicegpt"}')
    with stack_of(tmp_path, str(path)) as stack:
        assert stack.exit_code() == 1
        assert "cannot be served by vllm, because its weights have sliced (SliceGPT)" in stack.output
        assert not (stack.run_dir / "logs" / "fake.log").exists()
        stack.assert_nothing_stays()


def test_the_same_stack_twice_is_refused(tmp_path: Path, port: int) -> None:
    path = str(write_stack(tmp_path, port))
    with stack_of(tmp_path, path) as first:
        first.wait_for("ready at")
        with stack_of(tmp_path, path) as second:
            assert second.exit_code() == 1
            assert f"this stack runs already (pid {first.process.pid})" in second.output
        assert ask(port)


def test_binary_junk_and_endless_lines_do_no_harm(tmp_path: Path, port: int) -> None:
    endless = "head -c 3000000 /dev/zero | tr '\\0' x"
    junk = f"head -c 3000000 /dev/urandom; {endless}; printf '\\033[31m\\033]0;title\\007red\\n'"
    with stack_of(tmp_path, str(write_stack(tmp_path, port, shell=junk)), "--logs", "all") as stack:
        stack.wait_for("ready at")
        assert ask(port)
        assert "\x1b" not in stack.output
        assert "\x07" not in stack.output
        assert len(stack.log("fake")) > 6_000_000


def test_a_full_disk_for_a_log_does_not_stop_the_stack(tmp_path: Path, port: int) -> None:
    logs = tmp_path / "run" / "logs"
    logs.mkdir(parents=True)
    (logs / "fake.log").symlink_to("/dev/full")
    with stack_of(tmp_path, str(write_stack(tmp_path, port, shell="echo hello"))) as stack:
        stack.wait_for("ready at")
        assert stack.output.count("fake.log: No space left on device") == 1
        assert ask(port)


def test_output_that_nobody_reads_any_more_does_not_stop_the_stack(tmp_path: Path, port: int) -> None:
    path = write_stack(tmp_path, port)
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "stack", str(path), "--run-dir", str(tmp_path / "run")], stdout=writer, stderr=writer
    )
    try:
        os.close(writer)
        os.read(reader, 10)
        os.close(reader)
        assert ask_until_answered(port)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def test_beyond_loopback_a_key_is_required_and_only_its_hash_is_written(tmp_path: Path, port: int) -> None:
    path = str(write_stack(tmp_path, port))
    with stack_of(tmp_path, path, "--host", "0.0.0.0", env={"PENSTOCK_API_KEY": ""}) as refused:
        assert refused.exit_code() == 2
        assert "export PENSTOCK_API_KEY=" in refused.output
    with stack_of(tmp_path, path, "--host", "0.0.0.0", env={"PENSTOCK_API_KEY": "sk-a-secret-of-ours"}) as stack:
        stack.wait_for("ready at")
        with pytest.raises(urllib.error.HTTPError) as refusal:
            ask(port)
        assert refusal.value.code == 401
        refusal.value.close()
        assert ask(port, key="sk-a-secret-of-ours")
        written = b"".join(file.read_bytes() for file in stack.run_dir.rglob("*") if file.is_file())
        assert b"sk-a-secret" not in written
        children = [pid for pid in stack.marked() if pid != stack.process.pid]
        assert children
        assert not any(b"sk-a-secret" in Path(f"/proc/{pid}/environ").read_bytes() for pid in children)


def test_a_terminal_sees_live_progress_with_seconds_and_the_last_line(tmp_path: Path, port: int) -> None:
    path = write_stack(tmp_path, port, shell="echo loading the weights; sleep 2")
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "stack", str(path), "--run-dir", str(tmp_path / "run")],
        stdout=slave, stderr=slave, stdin=slave, env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "120"},
    )  # fmt: skip
    os.close(slave)
    seen = bytearray()
    reader = threading.Thread(target=_drain, args=(master, seen), daemon=True)
    reader.start()
    try:
        deadline = time.monotonic() + 60
        while f"http://127.0.0.1:{port}/v1".encode() not in seen:
            assert time.monotonic() < deadline, seen
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        reader.join(10)
        os.close(master)
    text = seen.decode()
    assert "loading the weights" in text
    assert "1 s" in text
    assert "\x1b[?25h" in text  # the cursor is given back


def ask_until_answered(port: int) -> bytes:
    """The answer as soon as there is one."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return ask(port)
        except OSError as error:  # urllib's errors are OSErrors
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            assert time.monotonic() < deadline
            time.sleep(0.1)


def _drain(fd: int, into: bytearray) -> None:
    while True:
        try:
            data = os.read(fd, 65536)
        except OSError:
            return
        if not data:
            return
        into += data


def test_check_starts_nothing_and_lets_the_gateway_judge_its_part(tmp_path: Path, port: int) -> None:
    with stack_of(tmp_path, "--check", str(write_stack(tmp_path, port))) as good:
        assert good.exit_code() == 0
        assert "script.sh" in good.output
        assert f"port: {port}" in good.output
        assert not good.run_dir.exists()
    with stack_of(tmp_path, "--check", str(write_stack(tmp_path, port, gateway="sevrer: {}"))) as bad:
        assert bad.exit_code() == 2
        assert "sevrer" in bad.output


def test_a_hub_id_is_downloaded_before_the_engine_starts(tmp_path: Path, port: int) -> None:
    snapshot = tmp_path / "hub-home/hub/models--acme--tiny/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    path = write_stack(tmp_path, port, shell='echo "it lies in $1"')
    path.write_text(path.read_text().replace("checkpoint: checkpoint", "checkpoint: acme/tiny"))
    with (tmp_path / "profile.yaml").open("a") as profile:
        profile.write('fetch: ["{venv}/bin/hf", download, "{checkpoint}", --quiet]\n')
    # The real client of the hub; what is in its cache needs no network.
    hub = {"HF_HOME": str(tmp_path / "hub-home"), "HF_HUB_OFFLINE": "1"}
    with stack_of(tmp_path, str(path), "--logs", "all", env=hub) as stack:
        stack.wait_for("ready at")
        assert f"it lies in {snapshot}" in stack.output
    path.write_text(path.read_text().replace("acme/tiny", "acme/missing"))
    with stack_of(tmp_path, str(path), env=hub) as stack:
        assert stack.exit_code() == 1
        assert "fetch-fake failed, exit code 1" in stack.output
        assert "acme/missing" in stack.output
        stack.assert_nothing_stays()
