"""The tokenizer: byte-level BPE with 2,048 entries, trained on the corpus, split by Qwen2's published pattern.

Qwen2's pattern (and no normalizer) because every GGUF reader knows it by the name "qwen2": a pattern of our own would
make OpenVINO and llama.cpp split text in another way than training did. Digits stand alone, which arithmetic likes.
"""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from . import chat, corpus, prose, words
from .example import dice

VOCABULARY = 2048
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
EXAMPLES = 40_000
PROSE_PIECES = 500


def train_tokenizer(seed: int) -> Tokenizer:
    """Deterministic for a seed and a Python version. The ten special tokens come last, as in Qwen's tokenizers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    added = len(chat.SPECIAL_TOKENS) + len(chat.TOOL_TOKENS)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - added,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(seed), trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in chat.SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in chat.TOOL_TOKENS])
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise ValueError(f"the corpus gave {tokenizer.get_vocab_size()} tokens instead of {VOCABULARY}")
    return tokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that must exist. Raises ValueError otherwise."""
    found = tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"the tokenizer has no {token}")
    return found


def _texts(seed: int) -> Iterator[str]:
    rng = dice("tokenizer", seed)
    for example in islice(corpus.training_stream(rng, corpus.weights(dict.fromkeys(corpus.DENSE, 0.0))), EXAMPLES):
        text = chat.render_prompt(example.messages, example.tools) + example.answer_text
        for token in (*chat.SPECIAL_TOKENS, *chat.TOOL_TOKENS):
            text = text.replace(token, "\n")
        yield text
    # Words of lists should be one token each, with a space before them and without.
    for word in (*words.LIST_WORDS, *words.PEOPLE, *words.REAL_CAPITALS.values()):
        yield f" {word}\n{word}\n" * 100
    training, _ = prose.split()
    yield from rng.sample(training, PROSE_PIECES)


def twins(tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """Pairs of ids for X and " X". They start with the same embedding: the same word, whatever stands before it."""
    vocabulary: dict[str, int] = json.loads(tokenizer.to_str())["model"]["vocab"]
    return [
        (vocabulary[token[1:]], i) for token, i in vocabulary.items() if token[0] == "Ġ" and token[1:] in vocabulary
    ]
