"""Token ids to text and back, exactly: ids become bytes by a table, bytes become text by one incremental decoder.

Pieces of a stream then join to the whole text and no piece ends inside a character; decoding each token alone, or
asking a library for the text of a growing list, promises neither.
"""

import asyncio
import codecs
import json
import re
from collections.abc import Iterable

from tokenizers import Tokenizer

TOOL_MARKS = frozenset({"<tool_call>", "</tool_call>"})
"""Stay text even where a tokenizer calls them special: the parser of tool calls reads them."""
IN_THREAD_ABOVE = 8192
"""Characters. Shorter ones are tokenized (about 2 ms) before a thread would have answered a busy loop."""
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class Tokens:
    """A Hugging Face tokenizer.json.

    `pieces`: id -> bytes of text, empty for special tokens; `names`: the same with special tokens spelled out.
    """

    def __init__(self, tokenizer: Tokenizer, rows: int) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        content = json.loads(tokenizer.to_str())
        decoder = json.dumps(content.get("decoder"))
        is_byte_level = "ByteLevel" in decoder
        self.strips_first_space = not is_byte_level and '"Strip"' in decoder
        self.rows = max(rows, tokenizer.get_vocab_size())
        alphabet = _byte_alphabet()
        self.names = [b""] * self.rows
        for token, index in tokenizer.get_vocab(with_added_tokens=False).items():
            self.names[index] = _byte_level(token, alphabet) if is_byte_level else _sentencepiece(token)
        self.pieces = list(self.names)
        for added in content.get("added_tokens", []):
            name = added["content"].encode()
            is_text = not added["special"] or added["content"] in TOOL_MARKS
            self.names[added["id"]], self.pieces[added["id"]] = name, name if is_text else b""

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Special tokens written in the text become control tokens, as engines read them."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        pieces = self.pieces
        return b"".join([pieces[token] for token in ids]).decode("utf-8", "replace")

    def id_of(self, token: str | None) -> int | None:
        return self._tokenizer.token_to_id(token) if token else None


async def encode(tokens: Tokens, text: str, *, add_special_tokens: bool = False) -> list[int]:
    """The same beside the event loop, where the text is so long that it would hold everybody up."""
    if len(text) <= IN_THREAD_ABOVE:
        return tokens.encode(text, add_special_tokens=add_special_tokens)
    return await asyncio.to_thread(tokens.encode, text, add_special_tokens=add_special_tokens)


class Detokenizer:
    """Bytes of one answer to text."""

    __slots__ = ("_decode", "_strips")

    def __init__(self, *, strip_first_space: bool) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._strips = strip_first_space

    def feed(self, piece: bytes) -> str:
        """The characters that `piece` completes."""
        if self._strips and piece:
            self._strips = False
            piece = piece.removeprefix(b" ")
        return self._decode(piece)

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that never finished."""
        return self._decode(b"", final=True)


def overlap(text: str, mark: str) -> int:
    """Length of the longest proper beginning of `mark` that ends `text`."""
    for size in range(min(len(mark) - 1, len(text)), 0, -1):
        if text.endswith(mark[:size]):
            return size
    return 0


def _byte_alphabet() -> dict[str, int]:
    """The printable stand-ins for the 256 bytes (github.com/openai/gpt-2, encoder.py, bytes_to_unicode)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = {chr(byte): byte for byte in shown}
    hidden = [byte for byte in range(256) if byte not in shown]
    return alphabet | {chr(256 + place): byte for place, byte in enumerate(hidden)}


def _byte_level(token: str, alphabet: dict[str, int]) -> bytes:
    try:
        return bytes([alphabet[char] for char in token])
    except KeyError:
        return token.encode()


def _sentencepiece(token: str) -> bytes:
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(match[1], 16)]) if match else token.replace("▁", " ").encode()
