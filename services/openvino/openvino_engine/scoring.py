"""Scores for the answers of one request: the sampler's where they suffice, else a session of the scorer each."""

from openvino_engine.logprobs import scores_of
from openvino_engine.scorer import Score, Scorer, ScoringSession
from openvino_engine.sequence import Delta


class Scoring:
    """``top`` alternatives a token; 0 takes the sampler's numbers and costs nothing."""

    def __init__(self, scorer: Scorer, prompts: list[list[int]], n: int, top: int) -> None:
        self._scorer = scorer
        self._prompts = prompts
        self._n = n
        self._top = top
        self._sessions: dict[int, ScoringSession] = {}

    async def take(self, index: int, delta: Delta) -> list[Score]:
        """Scores of a delta's tokens."""
        if not self._top:
            return scores_of(delta)
        return await (await self._session(index)).take(delta.tokens)

    async def prompt(self, index: int) -> list[Score | None]:
        """Scores of the answer's prompt, None for its first token."""
        return (await self._session(index)).prompt

    async def _session(self, index: int) -> ScoringSession:
        if index not in self._sessions:
            self._sessions[index] = await self._scorer.session(self._prompts[index // self._n], self._top)
        return self._sessions[index]
