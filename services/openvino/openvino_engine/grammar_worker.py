"""The process that compiles a grammar first, so that a bad one never reaches the engine.

The library compiles grammars inside step(): an invalid one throws there and leaves the pipeline unusable, and a
vicious one compiles for minutes. Here it only costs this process, which has a tiny model of the same vocabulary.
Lines of JSON in (a Constraint), lines of JSON out ({"ok": true} or {"ok": false, "reason": ...}).
"""

import resource
import sys
from typing import Any

import msgspec
import numpy as np
import openvino_genai

import openvino
from openvino_engine.constraint import Constraint

_MEMORY_LIMIT_BYTES = 8 << 30


def main(argv: list[str] | None = None) -> int:
    """``argv``: tokenizer path (GGUF file or IR folder) and the tiny GGUF. Ends when stdin does."""
    tokenizer_path, model_path = sys.argv[1:] if argv is None else argv
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT_BYTES, _MEMORY_LIMIT_BYTES))
    tokenizer = openvino_genai.Tokenizer(tokenizer_path)
    pipeline = _pipeline(model_path, tokenizer)
    sys.stdout.write('{"ready":true}\n')
    sys.stdout.flush()
    for line in sys.stdin:
        reason = _check(pipeline, msgspec.json.decode(line, type=Constraint))
        if reason is not None:
            pipeline = _pipeline(model_path, tokenizer)
        sys.stdout.write(msgspec.json.encode({"ok": reason is None, "reason": reason}).decode() + "\n")
        sys.stdout.flush()
    return 0


def _pipeline(model_path: str, tokenizer: Any) -> Any:
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.num_kv_blocks = 16
    return openvino_genai.ContinuousBatchingPipeline(model_path, tokenizer, scheduler, "CPU")


def _check(pipeline: Any, constraint: Constraint) -> str | None:
    """None when the library accepts the grammar and can take two tokens of it; else its reason."""
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = 2
    prompt = openvino.Tensor(np.zeros((1, 1), dtype=np.int64))
    try:
        config.structured_output_config = constraint.config()
        handle = pipeline.add_request(0, prompt, config)  # a dropped handle cancels its request
        while pipeline.has_non_finished_requests():
            pipeline.step()
        del handle
    except (RuntimeError, MemoryError, ValueError, TypeError) as error:
        return _reason(str(error))
    return None


def _reason(text: str) -> str:
    """The library's last meaningful line, without the build machine's paths."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = lines[-1] if lines else "the grammar was refused"
    for mark in (".cc:", ".cpp:", ".h:"):
        head, found, tail = last.rpartition(mark)
        if found:
            last = tail.split(":", 1)[-1].strip() or head
    return last[-300:]


if __name__ == "__main__":
    sys.exit(main())
