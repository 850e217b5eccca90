"""One answer as it grows: tokens or text in, text that may be shown out, and the reason why it ended.

Pure, so that the rules (stop strings, stop tokens, least and most tokens, characters) do not depend on a server. Stop
strings are found here whatever the engine does with them: the cut is exact, and a stream never shows the beginning of
one.
"""

from collections.abc import Sequence
from typing import NamedTuple

from gateway.backends.triton.asked import Ending
from gateway.backends.triton.checkpoint import Checkpoint
from gateway.backends.triton.text import Detokenizer, encode, overlap


class Step(NamedTuple):
    """What one response of an engine brings, read by a contract: token ids, or text with the number of its tokens.

    `tokens` None: the engine does not count. `finish`: its own word, where it has one.
    """

    ids: Sequence[int] | None = None
    text: str = ""
    tokens: int | None = None
    logprobs: Sequence[float] = ()
    finish: str | None = None


class Answer:
    """`take` every step, `recount` and `end` when the engine says no more; over once `finish` is set.

    `tokens` and `logprobs` are the last step's, as far as they belong to the answer; the end token does.
    """

    __slots__ = (
        "_checkpoint", "_counts", "_detokenizer", "_end_is_counted", "_ending", "_ends", "_held", "_max_tokens",
        "_pieces", "_texts", "count", "finish", "logprobs", "stop_reason", "tokens",
    )  # fmt: skip

    def __init__(
        self,
        ending: Ending,
        checkpoint: Checkpoint,
        max_tokens: int,
        *,
        skip_special: bool = True,
        end_is_counted: bool = False,
    ) -> None:
        tokens = checkpoint.tokens
        self._checkpoint = checkpoint
        self._ending = ending
        self._ends = ending.ids if ending.ignore_eos else ending.ids | checkpoint.eos_ids
        self._max_tokens = max_tokens
        self._pieces = tokens.pieces if skip_special else tokens.names
        self._detokenizer = Detokenizer(strip_first_space=tokens.strips_first_space)
        self._held = ""
        self._texts: list[str] = []
        self._counts = True
        self._end_is_counted = end_is_counted
        self.count = 0
        self.finish: str | None = None
        self.stop_reason: int | str | None = None
        self.tokens: list[int] = []
        self.logprobs: list[float] = []

    def take(self, step: Step) -> str:
        """The text that `step` lets out."""
        if step.ids is not None:
            return self._take_ids(step.ids, step.logprobs)
        self.tokens, self.logprobs = [], []
        if step.tokens is None:
            self._counts = False
            self._texts.append(step.text)
        else:
            self.count += step.tokens
        return self._release(step.text) if self._ending.strings and step.text else step.text

    def end(self, finish: str | None = None) -> str:
        """The engine is done: the text still held back. `finish` is its own reason, where it gives one."""
        if self.finish is None:
            self.finish = finish or ("length" if self.count >= self._max_tokens else "stop")
            is_left_out = not (self._counts and self._end_is_counted)
            if self.finish == "stop" and self.count < self._max_tokens and is_left_out:
                self.count += 1  # the end token: everybody counts it, also where the engine does not show it
        return self._flush()

    def _take_ids(self, ids: Sequence[int], logprobs: Sequence[float]) -> str:
        self.tokens, self.logprobs = [], []
        ending, feed = self._ending, self._detokenizer.feed
        texts: list[str] = []
        for place, token in enumerate(ids):
            self.count += 1
            self.tokens.append(token)
            if logprobs:
                self.logprobs.append(logprobs[place])
            if token in self._ends and self.count > ending.min_tokens:
                self.finish = "stop"
                self.stop_reason = token if token in ending.ids else None
                texts.append(self._flush())
                break
            text = feed(self._pieces[token])
            texts.append(self._release(text) if ending.strings and text else text)
            if self.finish is None and self.count >= self._max_tokens:
                self.finish = "length"
                texts.append(self._flush())
            if self.finish is not None:
                break
        return texts[0] if len(texts) == 1 else "".join(texts)

    def _release(self, text: str) -> str:
        ending = self._ending
        if self._counts and self.count <= ending.min_tokens:
            return text
        text = self._held + text
        hits = [(at, -len(stop), stop) for stop in ending.strings if (at := text.find(stop)) >= 0]
        if hits:
            at, _, stop = min(hits)
            self.finish, self.stop_reason, self._held = "stop", stop, ""
            return text[:at] + (stop if ending.include_string else "")
        keep = max([overlap(text, stop) for stop in ending.strings])
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _flush(self) -> str:
        if isinstance(self.stop_reason, str):
            return ""
        rest, self._held = self._held + self._detokenizer.flush(), ""
        return rest

    async def recount(self) -> None:
        """Once all steps were taken and before `end`: count the tokens where the engine did not."""
        if not self._counts:
            self.count = len(await encode(self._checkpoint.tokens, "".join(self._texts)))
