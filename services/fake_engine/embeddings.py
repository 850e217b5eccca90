"""Embeddings that depend on the text alone: the same text gives the same unit vector, in every process."""

import base64
import hashlib
import math
import struct
from typing import Any

import msgspec

from fake_engine.asked import Asked, TokenIds
from fake_engine.errors import RequestError


def embed(asked: Asked, size: int) -> bytes:
    """The whole body. Raises RequestError (400) when `dimensions` is more than the model's `size`."""
    dimensions = asked.dimensions or size
    if dimensions > size:
        raise RequestError(
            400, f"dimensions {dimensions} > {size}, the size of the model's vectors", param="dimensions"
        )
    data = [_entry(index, vector(text, size)[:dimensions], asked.base64) for index, text in enumerate(asked.inputs)]
    usage = {"prompt_tokens": asked.prompt_tokens, "total_tokens": asked.prompt_tokens, "completion_tokens": 0}
    return msgspec.json.encode({"object": "list", "data": data, "model": asked.model, "usage": usage})


def vector(text: str | TokenIds, size: int) -> list[float]:
    """`size` pseudo-random numbers in [-1, 1) from SHAKE-128 of the text."""
    source = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else repr(text).encode()
    numbers = struct.unpack(f"<{size}i", hashlib.shake_128(source).digest(4 * size))
    return [number / 2**31 for number in numbers]


def _entry(index: int, values: list[float], as_base64: bool) -> dict[str, Any]:
    norm = math.sqrt(sum(value * value for value in values)) or 1.0
    packed = struct.pack(f"<{len(values)}f", *(value / norm for value in values))
    embedding: Any = base64.b64encode(packed).decode() if as_base64 else struct.unpack(f"<{len(values)}f", packed)
    return {"object": "embedding", "index": index, "embedding": embedding}
