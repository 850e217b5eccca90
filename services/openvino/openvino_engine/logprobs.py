"""Log-probabilities of the chosen tokens, in chat's form and in that of legacy completions."""

from typing import Any

from openvino_engine.sequence import Delta


def chat_logprobs(names: list[bytes], delta: Delta) -> dict[str, Any]:
    """`choices[].logprobs` of chat: one entry a token, with its bytes."""
    pairs = zip(delta.tokens, delta.logprobs, strict=True)
    return {"content": [_entry(names[token], logprob) for token, logprob in pairs], "refusal": None}


def _entry(name: bytes, logprob: float) -> dict[str, Any]:
    text = name.decode("utf-8", errors="replace")
    return {"token": text, "logprob": logprob, "bytes": list(name), "top_logprobs": []}


class LegacyLogprobs:
    """`choices[].logprobs` of completions: four parallel lists, offsets counted in characters of the text."""

    def __init__(self, names: list[bytes], offset: int = 0) -> None:
        self._names = names
        self._offset = offset

    def take(self, delta: Delta) -> dict[str, Any]:
        """The lists for one delta; offsets go on where the last delta ended."""
        tokens = [self._names[token].decode("utf-8", errors="replace") for token in delta.tokens]
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token)
        logprobs = list(delta.logprobs)
        tops = [{token: value} for token, value in zip(tokens, logprobs, strict=True)]
        return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}
