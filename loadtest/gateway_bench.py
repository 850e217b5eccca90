"""`make bench-gateway`: what the gateway costs, next to nginx, in interleaved rounds; and whether it leaks.

Drives the gateway bench harness (a mock engine and a load client in C, bench.py around them): it starts
nginx and our gateway with authentication, routing, metrics and access log on, measures both in turn and
prints CPU per request and per streamed event as ratios. `--soak N` then sends N more requests through the
gateway and prints its memory on the way. Absolute figures depend on the machine, ratios much less.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

PORT, MOCK_PORT = 9300, 9100
KEY = "sk-bench"
NEEDED = {"gcc": "gcc", "nginx": "nginx-light", "taskset": "util-linux"}
CONFIG = """\
server: {{host: 127.0.0.1, port: {port}}}
auth: {{keys: {{bench: {{sha256: {sha256}}}}}}}
telemetry: {{access_log_path: {access_log}}}
models:
  mock:
    deployments:
      main:
        engine: vllm
        replicas: {{a: {{url: "http://127.0.0.1:{mock}", max_in_flight: 8192}}}}
"""


def main(argv: list[str] | None = None) -> int:
    args, for_harness = _parser().parse_known_args(argv)
    if (fault := _what_is_missing(args.harness)) is not None:
        print(f"bench-gateway: {fault}", file=sys.stderr)  # noqa: T201
        return 2
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
        work = Path(name)
        config = work / "gateway.yaml"
        sha256 = hashlib.sha256(KEY.encode()).hexdigest()
        config.write_text(CONFIG.format(port=PORT, mock=MOCK_PORT, sha256=sha256, access_log=work / "access.log"))
        serve = [sys.executable, "-m", "gateway", "serve", "--config", str(config)]
        try:
            code = _measure(args.harness, work, serve, for_harness)
            if code == 0 and args.soak:
                _soak(work, serve, args.soak)
        except KeyboardInterrupt:
            return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make bench-gateway",
        description="CPU per request and per streamed event of the gateway, as ratios to nginx.",
        epilog="All other options go to the harness: --rounds, --scale, --scenarios, --streams, --peers, ...",
    )
    default = os.environ.get("GATEWAY_BENCH", Path(__file__).parents[2] / "shared" / "gateway_bench")
    parser.add_argument("--harness", type=Path, default=Path(default), help="folder with bench.py, mock.c, lg.c")
    parser.add_argument("--soak", type=int, default=200_000, help="requests of the memory check; 0 skips it")
    return parser


def _what_is_missing(harness: Path) -> str | None:
    if not (harness / "bench.py").is_file():
        return f"the bench harness is not at {harness}; name its folder in GATEWAY_BENCH"
    missing = [package for program, package in NEEDED.items() if shutil.which(program) is None]
    return f"please install: apt-get install -y {' '.join(missing)}" if missing else None


def _measure(harness: Path, work: Path, serve: list[str], for_harness: list[str]) -> int:
    command = [
        sys.executable, str(harness / "bench.py"), "--workdir", str(work / "run"),
        "--add", "penstock", str(PORT), " ".join(serve), "--header", f"penstock=Authorization: Bearer {KEY}",
        *for_harness,
    ]  # fmt: skip
    return subprocess.run(command, check=False).returncode  # noqa: S603


def _soak(work: Path, serve: list[str], requests: int) -> None:
    """Memory of the gateway while it answers `requests` requests, every other tenth of them streamed."""
    run = work / "run"
    print(f"\nMemory over {requests:,} requests\n\n| requests | RSS MB |\n|--:|--:|")  # noqa: T201
    mock = subprocess.Popen([run / "mock", str(MOCK_PORT), "32768", "mock"])  # noqa: S603
    gateway = subprocess.Popen(serve, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
    try:
        _wait_ready()
        for step in range(11):
            print(f"| {step * requests // 10:,} | {_rss_bytes(gateway.pid) / 1e6:.1f} |", flush=True)  # noqa: T201
            if step < 10:
                _send(run, requests // 10, streamed=step % 2 == 1)
    finally:
        for process in (gateway, mock):
            process.send_signal(signal.SIGKILL)
            process.wait()


def _wait_ready() -> None:
    for _ in range(200):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/ready", timeout=5):
                return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError("the gateway did not become ready")


def _send(run: Path, requests: int, *, streamed: bool) -> None:
    command = [
        str(run / "lg"), "-p", str(PORT), "-P", "/v1/chat/completions", "-c", "32", "-n", str(requests), "-t", "600",
        "-b", str(run / f"body_penstock_s{'s' if streamed else 'n'}.json"), "-H", f"Authorization: Bearer {KEY}",
        *(["-s"] if streamed else []),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    result = json.loads(done.stdout)
    if result["err"] or result["ok"] != requests:
        raise RuntimeError(f"{result['err']} of {requests} requests failed: {result['errbody']}")


def _rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main())
