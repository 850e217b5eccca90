"""Measures what the engines' powers are worth here, and prints it as the table of docs/powers.md.

    .venv/bin/python services/vllm/powers.py                      # all of PROFILES, a minute each
    .venv/bin/python services/vllm/powers.py openvino/cpu vllm/cpu-powers

Starts each profile as `penstock up --engine PROFILE` does, asks through the gateway, reads the engine's own counters.
Standard library only: it runs wherever the stack runs. Wall times: run it on a machine that does nothing else.
"""

import argparse
import contextlib
import json
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MODEL = "penstock-starter"
STARTER = ROOT / "model_repo/checkpoints/starter"
PROFILES = (
    "openvino/cpu", "openvino/draft", "openvino/prompt-lookup",
    "vllm/cpu-powers", "vllm/cpu-draft", "vllm/cpu-ngram",
)  # fmt: skip
LIST = "pear apple fig plum lime kiwi date melon "
QUESTIONS = (
    "What is the capital of France?",
    "What is 7 + 8?",
    "Copy this: bell, fox, bell, fox, bell, fox",
    "Copy this: north, river, stone, north, river, stone",
    "Sort: pear, apple, fig, lime",
    "法国的首都是哪里？",
)
STREAMS, TOKENS, REPEATS = 8, 200, 5


@dataclass(frozen=True)
class Served:
    """A gateway and the engine behind it, by their addresses."""

    gateway: str
    engine: str

    def ask(self, text: str, max_tokens: int, **fields: Any) -> tuple[float, int]:
        """(TTFT in seconds, tokens of the answer) of one streamed request."""
        body = {
            "model": MODEL, "messages": [{"role": "user", "content": text}], "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True}, "max_tokens": max_tokens, **fields,
        }  # fmt: skip
        request = urllib.request.Request(  # noqa: S310
            f"{self.gateway}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        first_s, tokens, started_s = 0.0, 0, time.monotonic()
        with urllib.request.urlopen(request, timeout=300) as answer:  # noqa: S310
            for line in answer:
                if not line.startswith(b"data: {"):
                    continue
                chunk = json.loads(line[6:])
                if not first_s and chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                    first_s = time.monotonic() - started_s
                if chunk.get("usage"):
                    tokens = chunk["usage"]["completion_tokens"]
        return first_s, tokens

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"{self.engine}/metrics", timeout=30) as page:  # noqa: S310
            lines = page.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(rf"{re.escape(name)}[{{ ]", line))


@contextlib.contextmanager
def served(profile: str) -> Iterator[Served]:
    """The profile behind a gateway; RuntimeError with the stack's words when it does not come up."""
    port, engine_port = _free_port(), _free_port()
    starter = {"profile": profile, "checkpoint": str(STARTER), "model": MODEL, "port": engine_port}
    stack = {"engines": {"engine": starter}, "gateway": {"server": {"host": "127.0.0.1", "port": port}}}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "stack.yaml").write_text(json.dumps(stack), encoding="utf-8")
        command = [sys.executable, "-m", "stack", f"{folder}/stack.yaml", "--run-dir", f"{folder}/run"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # noqa: S603
        try:
            _wait_for(process, "ready at")
            yield Served(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{engine_port}")
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(process: "subprocess.Popen[str]", words: str) -> None:
    said: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line)
        if words in line:
            threading.Thread(target=process.stdout.read, daemon=True).start()  # so that its pipe never fills
            return
    raise RuntimeError("the stack did not come up:\n" + "".join(said[-30:]))


def prefix_caching(one: Served) -> dict[str, str]:
    """TTFT of a prompt of about 1,200 tokens: never seen, and with all but its end seen before."""
    new, seen = [], []
    for number in range(REPEATS):
        prompt = f"List {number}: " + LIST * 90
        new.append(one.ask(f"{prompt} First?", 1)[0])
        seen.append(one.ask(f"{prompt} Last?", 1)[0])
    return {"TTFT, new prompt": _ms(new), "TTFT, prefix cached": _ms(seen)}


def batching(one: Served) -> dict[str, str]:
    """Output tokens per second: 8 requests one after another, and 8 at once."""

    def request(number: int) -> int:
        return one.ask(f"Count up from {number}", TOKENS, ignore_eos=True)[1]

    request(99)
    started_s = time.monotonic()
    alone = sum(request(number) for number in range(STREAMS)) / (time.monotonic() - started_s)
    started_s = time.monotonic()
    with ThreadPoolExecutor(STREAMS) as pool:
        together = sum(pool.map(request, range(STREAMS))) / (time.monotonic() - started_s)
    return {"tokens/s, in a row": f"{alone:,.0f}", "tokens/s, 8 at once": f"{together:,.0f}"}


def guessing(one: Served) -> dict[str, str]:
    """Tokens a step over short greedy answers, and the share of guesses that were right where the engine says."""
    embedded = "penstock_engine_steps_total"
    before = one.metric(embedded) or one.metric("vllm:iteration_tokens_total_count")
    tokens = sum(one.ask(question, 32)[1] for question in QUESTIONS)
    steps = (one.metric(embedded) or one.metric("vllm:iteration_tokens_total_count")) - before
    found = {"tokens a step": f"{tokens / steps:.2f}"}
    if guessed := one.metric("vllm:spec_decode_num_draft_tokens_total"):
        found["guesses accepted"] = f"{one.metric('vllm:spec_decode_num_accepted_tokens_total') / guessed:.0%}"
    return found


def measure(profile: str) -> dict[str, str]:
    with served(profile) as one:
        for question in QUESTIONS[:2]:  # kernels warm up
            one.ask(question, 8)
        if profile.endswith(("/cpu", "/cpu-powers")):
            return guessing(one) | prefix_caching(one) | batching(one)
        return guessing(one) | batching(one)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "profiles", nargs="*", default=PROFILES, metavar="PROFILE", help="as for `penstock up --engine`"
    )
    rows = []
    for profile in parser.parse_args().profiles:
        print(f"{profile} ...", file=sys.stderr, flush=True)  # noqa: T201
        rows.append({"profile": f"`{profile}`", **measure(profile)})
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for cells in (columns, ["---"] * len(columns), *([row.get(name, "") for name in columns] for row in rows)):
        print("| " + " | ".join(cells) + " |")  # noqa: T201
    return 0


def _ms(seconds: list[float]) -> str:
    return f"{1000 * statistics.median(seconds):.0f} ms"


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
