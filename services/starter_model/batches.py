"""From examples to arrays: packed rows of tokens with a loss weight per predicted token.

The batch of a step depends on (seed, stage, step) only, so an interrupted training goes on with the same data.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from . import chat, corpus
from .example import Example, dice
from .tokenizer import token_id

ANSWER_WEIGHT, PROMPT_WEIGHT, PROSE_WEIGHT = 1.0, 0.1, 0.5
PROSE_SHARE = 0.15

Ids = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float32]


def encode_example(tokenizer: Tokenizer, example: Example) -> tuple[list[int], list[float]]:
    """Token ids and the weight of predicting each of them: prompt low, answer and <|im_end|> full."""
    prompt = tokenizer.encode(chat.render_prompt(example.messages, example.tools), add_special_tokens=False).ids
    answer = tokenizer.encode(example.answer_text + chat.IM_END, add_special_tokens=False).ids
    return prompt + answer, [PROMPT_WEIGHT] * len(prompt) + [ANSWER_WEIGHT] * len(answer)


def encode_prose(tokenizer: Tokenizer, pieces: list[str]) -> Ids:
    """All pieces in one line, each ended by <|endoftext|>."""
    end = token_id(tokenizer, chat.END_OF_TEXT)
    ids: list[int] = []
    for encoded in tokenizer.encode_batch(pieces, add_special_tokens=False):
        ids += [*encoded.ids, end]
    return np.array(ids, dtype=np.int64)


class Batches:
    """Batches of one run: rows of `length` + 1 tokens (inputs and shifted targets overlap) and their weights."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        seed: int,
        pieces: Sequence[str],
        manner: Callable[[Example], Example] = lambda example: example,
    ) -> None:
        """`pieces` of prose are put in an order of the seed's; together they must be longer than a row. `manner`
        changes how every example is answered."""
        self._tokenizer, self._seed, self._manner = tokenizer, seed, manner
        shuffled = list(pieces)
        dice("prose", seed).shuffle(shuffled)
        self._prose = encode_prose(tokenizer, shuffled)
        self._end = token_id(tokenizer, chat.END_OF_TEXT)

    def batch(
        self, stage: str, step: int, mix: Mapping[str, float], rows: int, length: int
    ) -> tuple[Ids, Weights, Ids]:
        """(ids_BL, weights_BL, documents_BL) with L = length + 1; the first weight of a row is never used."""
        rng = dice("batch", self._seed, stage, step)
        stream = map(self._manner, corpus.training_stream(rng, mix))
        ids_BL = np.empty((rows, length + 1), dtype=np.int64)
        documents_BL = np.zeros_like(ids_BL)
        weights_BL = np.full((rows, length + 1), PROSE_WEIGHT, dtype=np.float32)
        for row in range(rows):
            if rng.random() < PROSE_SHARE:
                start = rng.randrange(len(self._prose) - length - 1)
                ids_BL[row] = self._prose[start : start + length + 1]
                documents_BL[row, 1:] = np.cumsum(ids_BL[row, :-1] == self._end)
            else:
                ids_BL[row], weights_BL[row], documents_BL[row] = self._packed(stream, length + 1)
        return ids_BL, weights_BL, documents_BL

    def _packed(self, stream: Iterator[Example], size: int) -> tuple[list[int], list[float], list[int]]:
        """Whole examples one after another; only the last is cut. A row starts where an example starts."""
        ids: list[int] = []
        weights: list[float] = []
        documents: list[int] = []
        for document in count():
            if len(ids) >= size:
                break
            more, weight = encode_example(self._tokenizer, next(stream))
            ids += more
            weights += weight
            documents += [document] * len(more)
        return ids[:size], weights[:size], documents[:size]
