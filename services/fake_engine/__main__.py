"""`penstock fake-engine`: flags, one event loop, one line when ready, a clean end on SIGTERM and Ctrl-C."""

import argparse
import asyncio
import json
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from fake_engine.connection import Connection
from fake_engine.engine import Engine, Settings
from fake_engine.engines import ENGINES
from fake_engine.script import Fields, ScriptError, read_script

BACKLOG = 4096

EXAMPLES = """\
A script says how answers behave: all fields, units and defaults are in docs/engines/fake.md.
It comes from --script, from POST /_fake/script (for all requests, or the next `times`), or from the prompt:
a last user message that starts with {"fake": {...}} scripts its own request, through any gateway.

  # 200 tokens at 50 ms each after 0.3 s, two tokens in a chunk
  penstock fake-engine --port 8101 --model demo --ttft 0.3 --itl 0.05 --tokens 200 --tokens-per-chunk 2

  # the next request gets 503, then all is well again
  curl localhost:8101/_fake/script -d '{"error": {"status": 503, "retry_after": 1}, "times": 1}'

  # one request whose connection is reset after three chunks, in the middle of an event
  curl localhost:8101/v1/chat/completions -d '{"model": "demo", "stream": true, "messages": [{"role": "user",
    "content": "{\\"fake\\": {\\"die\\": {\\"at\\": 3, \\"how\\": \\"reset\\", \\"half_event\\": true}}} hello"}]}'
"""


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. Exit code 0, or 2 for a bad flag or a port that is taken."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        base = _base_script(options)
        read_script(base)
    except (ScriptError, OSError, ValueError) as error:
        parser.error(f"--script: {error}")
    if "times" in base:
        parser.error("--script: `times` is for POST /_fake/script; the script of the command line stays")
    engine = Engine(_settings(options), base)
    try:
        return int(_runner(options.no_uvloop)(_serve(engine, options)))
    except KeyboardInterrupt:
        return 0
    except OSError as error:
        print(f"fake engine: cannot listen on {options.host}:{options.port}: {error}", file=sys.stderr)  # noqa: T201
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="penstock fake-engine",
        description="A real, tiny OpenAI server with scripted timing, tokens and faults.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    add("--port", type=int, default=8000, help="port; 0 takes a free one and prints it (%(default)s)")
    add("--model", action="append", metavar="NAME", help="a model's name, repeatable (fake)")
    add("--engine", choices=sorted(ENGINES), default="vllm", help="whose errors and metrics to imitate (%(default)s)")
    add("--script", metavar="JSON", help="the script that applies when no other does: JSON, or @FILE")
    add("--ttft", type=float, metavar="S", help="script's ttft_s: seconds from the request to the first token")
    add("--itl", type=float, metavar="S", help="script's itl_s: seconds between chunks")
    add("--tokens", type=int, metavar="N", help="script's tokens: how many an answer has")
    add("--tokens-per-chunk", type=int, metavar="N", help="script's tokens_per_chunk")
    add("--max-model-len", type=int, default=32_768, metavar="N", help="context length in tokens (%(default)s)")
    add("--max-running", type=int, metavar="N", help="requests that run at once; more of them wait (no limit)")
    add("--max-queued", type=int, metavar="N", help="requests that may wait; more get 503 (no limit)")
    add("--kv-tokens", type=int, default=1_000_000, metavar="N", help="size of the pretended KV cache (%(default)s)")
    add("--embedding-size", type=int, default=64, metavar="N", help="numbers in an embedding (%(default)s)")
    add("--api-key", metavar="KEY", help="require `Authorization: Bearer KEY` under /v1")
    add("--deterministic", action="store_true", help="sglang: say that seeds are heeded")
    add("--enable-lora", action="store_true", help="offer the engine's routes to load and unload adapters")
    add("--idle-timeout-s", type=float, metavar="S", help="close a kept-alive connection after S idle seconds (never)")
    add("--startup-delay-s", type=float, default=0.0, metavar="S", help="seconds before the port opens (%(default)s)")
    add("--healthy-after-s", type=float, default=0.0, metavar="S", help="seconds that probes say 503 (%(default)s)")
    add("--no-uvloop", action="store_true", help="use asyncio's own loop even where uvloop is installed")
    return parser


def _base_script(options: argparse.Namespace) -> Fields:
    """Raises OSError or ValueError when --script cannot be read."""
    text: str = options.script or "{}"
    fields: Any = json.loads(Path(text[1:]).read_text("utf-8") if text.startswith("@") else text)
    if not isinstance(fields, dict):
        raise ValueError("want a JSON object")
    flags = {
        "ttft_s": options.ttft,
        "itl_s": options.itl,
        "tokens": options.tokens,
        "tokens_per_chunk": options.tokens_per_chunk,
    }
    return {**fields, **{name: value for name, value in flags.items() if value is not None}}


def _settings(options: argparse.Namespace) -> Settings:
    return Settings(
        models=tuple(options.model or ("fake",)),
        engine=options.engine,
        max_model_len=options.max_model_len,
        embedding_size=options.embedding_size,
        max_running=options.max_running,
        max_queued=options.max_queued,
        kv_capacity_tokens=options.kv_tokens,
        api_key=options.api_key,
        idle_timeout_s=options.idle_timeout_s,
        enable_lora=options.enable_lora,
        deterministic=options.deterministic,
    )


def _runner(without_uvloop: bool) -> Any:
    """`uvloop.run` where it is installed: half the CPU per event. `asyncio.run` serves the same."""
    if not without_uvloop:
        with suppress(ModuleNotFoundError):
            import uvloop

            return uvloop.run
    return asyncio.run


async def _serve(engine: Engine, options: argparse.Namespace) -> int:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    _raise_file_limit()
    if options.startup_delay_s and await _within(stopped, options.startup_delay_s):
        return 0
    server = await loop.create_server(lambda: Connection(engine), options.host, options.port, backlog=BACKLOG)
    port = server.sockets[0].getsockname()[1]
    if options.healthy_after_s:
        engine.health_status = 503
        loop.call_later(options.healthy_after_s, engine.becomes_healthy)
    host = f"[{options.host}]" if ":" in options.host else options.host
    print(f"fake engine ready on http://{host}:{port}", flush=True)  # noqa: T201
    await stopped.wait()
    server.close()
    for connection in list(engine.connections):
        connection.abort()
    return 0


async def _within(event: asyncio.Event, seconds: float) -> bool:
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()


def _raise_file_limit() -> None:
    """Thousands of streams are thousands of sockets: take what the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
