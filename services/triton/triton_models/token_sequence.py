"""One answer of the core model as it grows: token ids only, by TensorRT-LLM's rules of ending.

Apart from openvino_engine.sequence, which works on text: here stop words are runs of token ids and stay in the output,
and the end token is never part of it.
"""

from openvino_engine.sequence import Delta, StopRules


class TokenSequence:
    """``feed`` after every step. Stop words and the end token count only beyond ``rules.min_tokens``."""

    def __init__(self, rules: StopRules, stop_words: tuple[tuple[int, ...], ...]) -> None:
        self._rules = rules
        self._words = stop_words
        self._longest = max(map(len, stop_words), default=0)
        self._tail: tuple[int, ...] = ()
        self._count = 0

    def feed(self, ids: list[int], logprobs: list[float]) -> Delta:
        """The tokens to put out; a draft's surplus behind the end is dropped."""
        delta = Delta()
        for token, logprob in zip(ids, logprobs, strict=True):
            self._take(token, logprob, delta)
            if delta.finish is not None:
                break
        return delta

    def end(self, delta: Delta) -> Delta:
        """The engine ended it by a rule of its own."""
        delta.finish = "stop"
        return delta

    def _take(self, token: int, logprob: float, delta: Delta) -> None:
        rules = self._rules
        self._count += 1
        may_end = self._count > rules.min_tokens
        if may_end and token in rules.eos and not rules.ignore_eos:
            delta.finish = "stop"
            return
        delta.tokens.append(token)
        delta.logprobs.append(logprob)
        if self._longest:
            self._tail = (*self._tail, token)[-self._longest :]
            if may_end and any(self._tail[-len(word) :] == word for word in self._words):
                delta.finish = "stop"
        if delta.finish is None and self._count >= rules.max_tokens:
            delta.finish = "length"
