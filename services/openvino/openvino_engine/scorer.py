"""Log-probabilities that the library's sampler does not give: alternatives of every token, and those of the prompt.

The same weights are opened a second time as a plain stateful model, at the first request that asks, and read along
behind the answer. Its numbers are the model's own (before temperature, penalties and grammars), like the sampler's.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import openvino
from openvino_engine.pipeline import precision_properties

# Logits of a chunk are chunk × vocabulary floats: 64 × 150,000 is 38 MB.
_CHUNK = 64


@dataclass(frozen=True, slots=True)
class Score:
    """One token as the model sees it: its log-probability and the most likely (id, log-probability) pairs."""

    logprob: float
    top: tuple[tuple[int, float], ...]


class Scorer:
    """Opens the model when it is first needed. One thread computes; memory for the weights is spent a second time."""

    def __init__(self, ir_folder: Callable[[], Path], precision: str) -> None:
        self._ir_folder = ir_folder
        self._precision = precision
        self._model: Any = None
        self._lock = threading.Lock()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scorer")

    async def session(self, prompt: list[int], top: int) -> "ScoringSession":
        """A reader that stands behind ``prompt`` and gives ``top`` alternatives a token."""
        session = ScoringSession(self, top)
        await session.start(prompt)
        return session

    def close(self) -> None:
        """Stop the thread; a computation that runs is awaited."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    async def run(self, work: Callable[[], Any]) -> Any:
        """Compute on the scorer's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def request(self) -> Any:
        """A fresh state of the model. Called on the scorer's thread."""
        with self._lock:
            if self._model is None:
                xml = self._ir_folder() / "openvino_model.xml"
                self._model = openvino.Core().compile_model(str(xml), "CPU", precision_properties(self._precision))
        return self._model.create_infer_request()


class ScoringSession:
    """The model's state behind one answer."""

    def __init__(self, scorer: Scorer, top: int) -> None:
        self._scorer = scorer
        self._top = top
        self._request: Any = None
        self._read = 0
        self._next_V: npt.NDArray[np.float64] | None = None  # log-probabilities of the token to come
        self.prompt: list[Score | None] = []

    async def start(self, prompt: list[int]) -> None:
        """Read the prompt; ``prompt`` then holds its scores, None for the first token."""

        def work() -> None:
            self._request = self._scorer.request()
            self.prompt = [None, *self._advance(prompt)[1:]]

        await self._scorer.run(work)

    async def take(self, tokens: list[int]) -> list[Score]:
        """Scores of the next tokens of the answer."""
        scores: list[Score] = await self._scorer.run(lambda: self._advance(tokens))
        return scores

    def _advance(self, tokens: list[int]) -> list[Score]:
        scores: list[Score] = []
        for at in range(0, len(tokens), _CHUNK):
            part = tokens[at : at + _CHUNK]
            rows_NV = self._infer(part)
            before = [self._next_V if self._next_V is not None else rows_NV[0], *rows_NV[:-1]]
            scores += [self._score(row_V, token) for row_V, token in zip(before, part, strict=True)]
            self._next_V = rows_NV[-1]
        return scores

    def _infer(self, tokens: list[int]) -> npt.NDArray[np.float64]:
        end = self._read + len(tokens)
        self._request.infer(
            {
                "input_ids": np.array([tokens], dtype=np.int64),
                "attention_mask": np.ones((1, end), dtype=np.int64),
                "position_ids": np.arange(self._read, end, dtype=np.int64)[None],
                "beam_idx": np.zeros(1, dtype=np.int32),
            }
        )
        self._read = end
        logits_NV = self._request.get_output_tensor(0).data[0].astype(np.float64)
        peak_N1 = logits_NV.max(axis=-1, keepdims=True)
        sums_N1 = np.log(np.exp(logits_NV - peak_N1).sum(axis=-1, keepdims=True))
        rows_NV: npt.NDArray[np.float64] = logits_NV - peak_N1 - sums_N1
        return rows_NV

    def _score(self, row_V: npt.NDArray[np.float64], token: int) -> Score:
        count = min(self._top, len(row_V))
        ids = np.argpartition(row_V, -count)[-count:] if count else np.empty(0, dtype=np.int64)
        ranked = sorted(((int(i), float(row_V[i])) for i in ids), key=lambda pair: (-pair[1], pair[0]))
        return Score(float(row_V[token]), tuple(ranked))
