"""Text to token ids and back, exactly.

Ids become bytes through a table, and bytes become text through one incremental UTF-8 decoder per answer: pieces of a
stream then always join to the whole text, and no piece ends inside a character. Library detokenizers promise neither.
"""

import codecs
import json
import re
from typing import Protocol

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from openvino_engine.gguf_tokenizer import PRE_TOKENIZERS, TokenizerError

# Markers of tool calls stay text even where a tokenizer calls them special: the parser of tool calls reads them.
TOOL_MARKERS = frozenset({"<tool_call>", "</tool_call>"})
_BYTE_TOKEN = re.compile(r"^<0x([0-9A-F]{2})>$")


class TextTokenizer(Protocol):
    """What the server needs of a tokenizer."""

    pieces: list[bytes]  # id -> bytes of text; empty for special tokens
    names: list[bytes]  # id -> bytes, special tokens spelled out
    strips_first_space: bool

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of ``text``. Special tokens written in the text become control tokens, as in vLLM."""
        ...


class FastTokenizer:
    """A Hugging Face tokenizer.json. ``rows`` is the model's vocabulary size, which may be larger."""

    def __init__(self, tokenizer: Tokenizer, rows: int) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        content = json.loads(tokenizer.to_str())
        decoder = json.dumps(content.get("decoder"))
        byte_level = "ByteLevel" in decoder
        self.strips_first_space = not byte_level and '"Strip"' in decoder
        table = _byte_level_alphabet()
        self.names = [b""] * rows
        for token, index in content["model"]["vocab"].items():
            if index < rows:
                self.names[index] = _byte_level(token, table) if byte_level else _sentencepiece(token)
        self.pieces = list(self.names)
        for item in content.get("added_tokens", []):
            if item["id"] < rows:
                self.names[item["id"]] = item["content"].encode()
                visible = not item["special"] or item["content"] in TOOL_MARKERS
                self.pieces[item["id"]] = item["content"].encode() if visible else b""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids


def tokenizer_from_gguf(tokens: list[str], merges: list[str], types: list[int], pre: str) -> Tokenizer:
    """Rebuild a tokenizer from GGUF metadata. Raises TokenizerError for a pre-tokenizer that is not known."""
    if pre not in PRE_TOKENIZERS:
        raise TokenizerError(
            f"GGUF pre-tokenizer {pre!r} is not known ({', '.join(PRE_TOKENIZERS)} are): "
            "put the model's tokenizer.json beside the .gguf file"
        )
    vocab = {token: index for index, token in enumerate(tokens) if types[index] != 5}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    split = pre_tokenizers.Split(Regex(PRE_TOKENIZERS[pre]), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True) for t, kind in zip(tokens, types, strict=True) if kind == 3]
    )
    tokenizer.add_tokens([AddedToken(t) for t, kind in zip(tokens, types, strict=True) if kind == 4])
    return tokenizer


class Detokenizer:
    """Bytes of one answer to text, piece by piece."""

    def __init__(self, *, strip_first_space: bool = False) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strip = strip_first_space

    def feed(self, piece: bytes) -> str:
        """The characters that ``piece`` completes."""
        if self._strip and piece:
            piece = piece.removeprefix(b" ")
            self._strip = False
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that never finished."""
        return self._decoder.decode(b"", final=True)


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes (github.com/openai/gpt-2, encoder.py, bytes_to_unicode)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in printable}
    rest = (byte for byte in range(256) if byte not in printable)
    table.update({chr(256 + offset): byte for offset, byte in enumerate(rest)})
    return table


def _byte_level(token: str, table: dict[str, int]) -> bytes:
    try:
        return bytes(table[char] for char in token)
    except KeyError:
        return token.encode()


def _sentencepiece(token: str) -> bytes:
    match = _BYTE_TOKEN.match(token)
    return bytes([int(match[1], 16)]) if match else token.replace("▁", " ").encode()
