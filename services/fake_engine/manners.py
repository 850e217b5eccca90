"""Frames as SGLang and MNN write them: the same answer in their own words.

Apart from frames.py, which is what the others have in common. Sources: SGLang 0.5.23
`srt/entrypoints/openai/serving_chat.py`; MNN `apps/mnncli/src/mnncli_server.cpp`.
"""

import itertools
import time
from collections.abc import Callable
from typing import Any

from fake_engine.answer import Answer, Chunk
from fake_engine.frames import Frames, encode

MNN_USAGE = {"prompt_tokens": 10, "completion_tokens": 7, "total_tokens": 17}


class SGLangFrames(Frames):
    """Keys are there also when they are null; `matched_stop` beside the finish reason; `sglext` between the lines."""

    def _choice(self, index: int, key: str, said: Any, reason: str | None) -> dict[str, Any]:
        choice = super()._choice(index, key, said, reason)
        if isinstance(said, dict) and "tool_calls" not in said:
            defaults = {"role": None, "content": None, "reasoning_content": None, "tool_calls": None}
            choice[key] = defaults | said if key == "delta" else {"reasoning_content": None, "tool_calls": None} | said
        return {**choice, "matched_stop": 2 if reason == "stop" else None}

    def extra_events(self, event: Callable[[bytes], bytes]) -> list[bytes]:
        details = {"cached_tokens_details": {"device": 0, "host": 0}}
        ids = encode({**self._base, "choices": [], "sglext": {"output_ids": [1, 2]}})
        return [
            event(encode({**self._base, "choices": [], "usage": None, "sglext": details})),
            b"event: sglext_ids\n" + event(ids),
        ]


class MnnFrames(Frames):
    """No role; no usage in streams, a constant in bodies; a new id with every frame; "" for "not finished yet"."""

    has_roles = False
    sends_usage = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._numbers = itertools.count(int(time.time()))

    def part(self, index: int, chunk: Chunk, reason: str | None, with_role: bool, so_far: int) -> bytes:  # noqa: ARG002
        return self._event(chunk.text, reason or "")

    def finish(self, index: int, reason: str, so_far: int) -> bytes:  # noqa: ARG002
        return self._event("", reason)

    def _event(self, text: str, reason: str) -> bytes:
        choice = {"delta": {"content": text}, "finish_reason": reason, "index": 0}
        frame = {**self._base, "choices": [choice], "id": f"chatcmpl-{next(self._numbers)}"}
        return encode(dict(sorted(frame.items())))

    def whole(self, answer: Answer, chunks: list[Chunk]) -> bytes:  # noqa: ARG002
        text = "".join(chunk.text for chunk in chunks if chunk.kind == "content")
        message = {"content": text, "role": "assistant"}
        choice = {"finish_reason": "stop", "index": 0, "message": message}
        frame = {**self._base, "choices": [choice], "id": f"chatcmpl{next(self._numbers)}", "usage": MNN_USAGE}
        return encode(dict(sorted(frame.items())))


MANNERS: dict[str, type[Frames]] = {"plain": Frames, "sglang": SGLangFrames, "mnn": MnnFrames}
