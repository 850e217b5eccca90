"""The responses this gateway process remembers: for `previous_response_id`, GET and DELETE.

In memory, so gone with the process and not known to other gateways; bounded by count, bytes and age, the oldest go
first. What one API key stored does not exist for another.
"""

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.core.errors import NotFound


@dataclass(frozen=True, slots=True)
class Stored:
    """`body`: the response as it was answered; `context`: the items it answered to, those of earlier turns first;
    `output`: what it said. Items are JSON."""

    body: bytes
    context: tuple[bytes, ...]
    output: tuple[bytes, ...]
    stored_s: float

    @property
    def size_bytes(self) -> int:
        return len(self.body) + sum(map(len, self.context)) + sum(map(len, self.output))


class ResponseStore:
    """`limit_count` responses of `limit_bytes` together (0 of either: none are kept), each for `keep_s` seconds."""

    def __init__(self, limit_count: int = 1000, limit_bytes: int = 64 * 2**20, keep_s: float = 3600.0) -> None:
        self._limit_count = limit_count
        self._limit_bytes = limit_bytes
        self._keep_s = keep_s
        self._stored: OrderedDict[tuple[str | None, str], Stored] = OrderedDict()
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._stored)

    def put(self, key_name: str | None, response_id: str, body: bytes, context: list[bytes], output: list[Any]) -> None:
        stored = Stored(body, tuple(context), tuple(map(msgspec.json.encode, output)), time.monotonic())
        self._stored[key_name, response_id] = stored
        self.size_bytes += stored.size_bytes
        self._forget()

    def get(self, key_name: str | None, response_id: str) -> Stored:
        """Raises NotFound."""
        self._forget()
        stored = self._stored.get((key_name, response_id))
        if stored is None:
            raise _unknown(response_id)
        return stored

    def delete(self, key_name: str | None, response_id: str) -> None:
        """Raises NotFound."""
        self.get(key_name, response_id)
        self._drop((key_name, response_id))

    def _forget(self) -> None:
        oldest_s = time.monotonic() - self._keep_s
        while self._stored:
            key, stored = next(iter(self._stored.items()))
            is_too_much = len(self._stored) > self._limit_count or self.size_bytes > self._limit_bytes
            if not is_too_much and stored.stored_s > oldest_s:
                return
            self._drop(key)

    def _drop(self, key: tuple[str | None, str]) -> None:
        self.size_bytes -= self._stored.pop(key).size_bytes


def _unknown(response_id: str) -> NotFound:
    return NotFound(
        f"The response {response_id[:128]!r} is not stored here: unknown, deleted, forgotten, or another key's.",
        param="response_id",
    )
