"""Asks the grammar process whether a constraint compiles, with a deadline and a memory of answers."""

import asyncio
import contextlib
import sys
from collections import OrderedDict
from pathlib import Path

import gguf
import msgspec
import numpy as np

from openvino_engine.constraint import Constraint
from openvino_engine.errors import ApiError, engine_failed, invalid

_REMEMBERED = 512
_START_TIMEOUT_S = 60.0
_TINY_HIDDEN = 32


class GrammarChecker:
    """One worker process, started at the first constrained request and again after a deadline killed it."""

    def __init__(self, tokenizer_path: Path, tiny_model: Path, *, timeout_s: float) -> None:
        self._argv = [sys.executable, "-m", "openvino_engine.grammar_worker", str(tokenizer_path), str(tiny_model)]
        self._timeout_s = timeout_s
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        self._known: OrderedDict[bytes, str | None] = OrderedDict()

    async def check(self, constraint: Constraint, param: str) -> None:
        """Return when the constraint compiles. Raises ApiError 400 with the library's reason when it does not."""
        line = msgspec.json.encode(constraint)
        if line not in self._known:
            async with self._lock:
                if line not in self._known:
                    self._remember(line, await self._ask(line))
        self._known.move_to_end(line)
        reason = self._known[line]
        if reason is not None:
            raise invalid(param, f"{param!r} cannot be turned into a grammar: {reason}", code="invalid_grammar")

    async def aclose(self) -> None:
        """End the worker and wait for it."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def _remember(self, line: bytes, reason: str | None) -> None:
        self._known[line] = reason
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    async def _ask(self, line: bytes) -> str | None:
        process = await self._worker()
        assert process.stdin is not None
        assert process.stdout is not None
        answered = False
        try:
            async with asyncio.timeout(self._timeout_s):
                process.stdin.write(line + b"\n")
                await process.stdin.drain()
                reply = await process.stdout.readline()
                answered = bool(reply)
        except TimeoutError:
            return f"it takes longer than {self._timeout_s:g} s to compile; make it smaller"
        except OSError:
            pass
        finally:
            if not answered:
                await self.aclose()
        if not answered:
            return "it is too large or too deep to compile"
        reason: str | None = msgspec.json.decode(reply)["reason"]
        return reason

    async def _worker(self) -> asyncio.subprocess.Process:
        if self._process is not None and self._process.returncode is None:
            return self._process
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *self._argv, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL
        )
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                ready = await self._process.stdout.readline()
        except TimeoutError:
            ready = b""
        if not ready:
            await self.aclose()
            raise grammar_process_failed()
        return self._process


def grammar_process_failed() -> ApiError:
    """500: the worker itself does not start, so no constraint can be checked."""
    return engine_failed("the grammar checker did not start; see the engine's log")


def write_tiny_model(out: Path, rows: int) -> None:
    """A one-layer GGUF of zeros with the same vocabulary size: enough for the library to compile grammars against."""
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(64)
    writer.add_embedding_length(_TINY_HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(_TINY_HIDDEN)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-6)
    square = np.zeros((_TINY_HIDDEN, _TINY_HIDDEN), dtype=np.float16)
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    for name in names:
        writer.add_tensor(f"blk.0.{name}.weight", square)
    ones = np.ones(_TINY_HIDDEN, dtype=np.float32)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", ones)
    writer.add_tensor("token_embd.weight", np.zeros((rows, _TINY_HIDDEN), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
