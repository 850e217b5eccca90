"""Log-probabilities in chat's form and in that of legacy completions."""

from typing import Any

from openvino_engine.scorer import Score
from openvino_engine.sequence import Delta


def scores_of(delta: Delta) -> list[Score]:
    """The sampler's own numbers as scores without alternatives."""
    return [Score(logprob, ()) for logprob in delta.logprobs]


def chat_entries(names: list[bytes], tokens: list[int], scores: list[Score]) -> list[dict[str, Any]]:
    """`choices[].logprobs.content` of chat: one entry a token, with its bytes and its alternatives."""
    return [
        _entry(names[token], score.logprob)
        | {"top_logprobs": [_entry(names[other], logprob) for other, logprob in score.top]}
        for token, score in zip(tokens, scores, strict=True)
    ]


def _entry(name: bytes, logprob: float) -> dict[str, Any]:
    return {"token": name.decode("utf-8", errors="replace"), "logprob": logprob, "bytes": list(name)}


class LegacyLogprobs:
    """`choices[].logprobs` of completions: four parallel lists, offsets counted in characters of the text."""

    def __init__(self, names: list[bytes]) -> None:
        self._names = names
        self._offset = 0

    def take(self, ids: list[int], scores: list[Score | None]) -> dict[str, Any]:
        """The lists for the next tokens; offsets go on where the last ones ended. No score is the prompt's first."""
        tokens = [self._text(token) for token in ids]
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token)
        logprobs = [None if score is None else score.logprob for score in scores]
        tops = [self._top(token, score) for token, score in zip(tokens, scores, strict=True)]
        return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}

    def _top(self, token: str, score: Score | None) -> dict[str, float] | None:
        if score is None:
            return None
        # OpenAI's promise: the chosen token is always among them.
        return {self._text(other): logprob for other, logprob in reversed(score.top)} | {token: score.logprob}

    def _text(self, token: int) -> str:
        return self._names[token].decode("utf-8", errors="replace")
