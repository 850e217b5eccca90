"""`penstock openvino-engine`: a real engine on CPU from plain wheels, with an OpenAI HTTP server."""

import argparse
import logging
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from openvino_engine.convert import ConversionError, SafetensorsError, convert
from openvino_engine.engine import EngineOptions
from openvino_engine.gguf_tokenizer import TokenizerError
from openvino_engine.pipeline import PipelineOptions
from openvino_engine.server import ServeOptions, serve

_EPILOG = """examples:
  penstock openvino-engine serve --model model_repo/checkpoints/starter --served-model-name penstock-starter
  penstock openvino-engine serve --model qwen3-0.6b-q8_0.gguf --port 8102 --kv-cache-gb 4
  penstock openvino-engine convert model_repo/checkpoints/starter starter.gguf

A model is a Hugging Face folder (Llama or Qwen3, f32/f16/bf16 safetensors; converted once into the cache), a .gguf
file, or an OpenVINO IR folder. Routes: /v1/chat/completions /v1/completions /v1/models /health /metrics /version.
Stop with Ctrl-C or SIGTERM: running answers finish first, a second signal does not wait."""


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; 0 when it ended well, 1 on a failure, 2 on a wrong command line."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    # asyncio warns about every write to a client that has left; that is an abort here, counted in /metrics.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    options = _parser().parse_args(argv)
    try:
        if options.command == "convert":
            convert(options.checkpoint, options.out)
            sys.stdout.write(f"wrote {options.out} ({options.out.stat().st_size:,} bytes)\n")
            return 0
        return serve(_serve_options(options), _version())
    except (ConversionError, SafetensorsError, TokenizerError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="penstock openvino-engine",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="serve | convert")
    _add_serve(
        commands.add_parser("serve", help="serve a model", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    )
    into = commands.add_parser("convert", help="write a Hugging Face checkpoint as GGUF")
    into.add_argument("checkpoint", type=Path, help="folder with config.json, *.safetensors and tokenizer.json")
    into.add_argument("out", type=Path, help="GGUF file to write")
    return parser


def _add_serve(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", type=Path, required=True, help="Hugging Face folder, .gguf file or OpenVINO IR folder")
    add("--served-model-name", help="public name; the folder's or file's name if left out")
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=_whole(1, 65_535), default=8101, help="port to listen on")
    add("--cache-dir", type=Path, default=Path.home() / ".cache/penstock/openvino", help="where conversions are kept")
    add("--max-model-len", type=_whole(2, 1 << 24), help="context in tokens; the model's own if left out")
    add("--max-num-seqs", type=_whole(1, 4096), default=256, help="answers computed together")
    add(
        "--max-queue", type=_whole(0, 100_000), default=1024, help="answers that may wait; beyond, 503 with Retry-After"
    )
    add(
        "--max-batched-tokens", type=_whole(16, 65_536), default=512, help="tokens a step; long prompts are cut into it"
    )
    add("--kv-cache-gb", type=_whole(1, 4096), default=1, help="KV cache in GiB")
    add("--kv-blocks", type=_whole(4, 1 << 24), help="KV cache in blocks of 32 tokens, in place of --kv-cache-gb")
    add(
        "--precision",
        choices=("f32", "bf16", "auto"),
        default="f32",
        help="arithmetic; f32 equals other engines' greedy",
    )
    add("--threads", type=_whole(1, 1024), help="threads that compute; the library's choice if left out")
    add("--no-prefix-caching", action="store_true", help="do not keep the KV cache of earlier prompts")
    guessing = parser.add_mutually_exclusive_group()
    guessing.add_argument("--draft", type=Path, help="small model of the same vocabulary for speculative decoding")
    guessing.add_argument(
        "--prompt-lookup",
        action="store_true",
        help="speculative decoding without a draft: guess what the text said before",
    )
    add("--draft-tokens", type=_whole(1, 16), default=4, help="tokens guessed at a time")
    add("--grammar-timeout-s", type=float, default=5.0, help="longest compilation of a schema, regex or grammar")
    add("--body-limit-mb", type=_whole(1, 1024), default=16, help="largest request body in MiB")
    add("--grace-s", type=float, default=30.0, help="how long running answers may go on after SIGTERM")


def _whole(low: int, high: int) -> "type[int]":
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be from {low} to {high}")
        return value

    parse.__name__ = "number"
    return parse  # type: ignore[return-value]


def _serve_options(options: argparse.Namespace) -> ServeOptions:
    pipeline = PipelineOptions(
        precision=options.precision,
        kv_cache_gb=options.kv_cache_gb,
        kv_blocks=options.kv_blocks,
        threads=options.threads,
        max_num_seqs=options.max_num_seqs,
        max_batched_tokens=options.max_batched_tokens,
        prefix_caching=not options.no_prefix_caching,
        prompt_lookup=options.prompt_lookup,
    )
    engine = EngineOptions(
        model=options.model,
        cache_dir=options.cache_dir,
        draft=options.draft,
        draft_tokens=options.draft_tokens,
        max_model_len=options.max_model_len,
        max_waiting=options.max_queue,
        grammar_timeout_s=options.grammar_timeout_s,
        pipeline=pipeline,
    )
    return ServeOptions(
        engine=engine,
        name=options.served_model_name,
        host=options.host,
        port=options.port,
        grace_s=options.grace_s,
        body_limit_bytes=options.body_limit_mb << 20,
    )


def _version() -> str:
    try:
        return version("penstock")
    except PackageNotFoundError:
        return "0"


if __name__ == "__main__":
    sys.exit(main())
