"""The endpoints vLLM has besides OpenAI's three: Responses and Messages of plain text, token counts, rerank and score.

Tokens, times and faults are the script's; reasoning and tool calls are for chat. Shapes as vLLM 0.33 sends them
(`entrypoints/openai/responses`, `entrypoints/anthropic`, `entrypoints/pooling/scoring`): null where it knows nothing.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from fake_engine.answer import Answer
from fake_engine.asked import Asked, count_tokens
from fake_engine.plan import Event
from fake_engine.script import Script

encode = msgspec.json.encode


class Native:
    """One answer. `reason`: for the books."""

    def __init__(self, asked: Asked, script: Script, answer_id: str, manner: str) -> None:
        self._asked = asked
        self._script = script
        self._id = answer_id
        self._manner = manner
        self._answer = Answer(script, asked, None)
        self.reason = "length" if self._answer.finish_reason() == "length" else "stop"
        self.tokens = 0

    def body(self) -> bytes:
        """An answer that is not streamed."""
        asked = self._asked
        if asked.endpoint == "count_tokens":
            return encode({"input_tokens": asked.prompt_tokens})
        if asked.endpoint in ("rerank", "score"):
            return encode(self._scored())
        texts = [chunk.text for chunk in self._answer.chunks()]
        self.tokens = len(texts)
        whole = self._response if asked.endpoint == "responses" else self._message
        return encode(whole("".join(texts)))

    def events(self) -> Iterator[Event]:
        """The stream, on the script's schedule."""
        script = self._script
        frames = self._response_events if self._asked.endpoint == "responses" else self._message_events
        row = 0
        for kind, fields, is_content in frames():
            data = encode({"type": kind, **fields})
            at_s = script.ttft_s + max(row - (not is_content), 0) * script.itl_s
            yield Event(at_s, b"event: %b\ndata: %b\n\n" % (kind.encode(), data), int(is_content), is_content)
            row += is_content

    def _response_events(self) -> Iterator[tuple[str, dict[str, Any], bool]]:
        for number, (kind, fields, is_content) in enumerate(self._unnumbered()):
            yield kind, {"sequence_number": number, **fields}, is_content

    def _unnumbered(self) -> Iterator[tuple[str, dict[str, Any], bool]]:
        place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
        started = {"response": {**self._response(None), "status": "in_progress"}}
        item: dict[str, Any] = {"type": "message", "id": "msg_1", "role": "assistant", "content": []}
        part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        yield "response.created", started, False
        yield "response.in_progress", started, False
        yield "response.output_item.added", {"output_index": 0, "item": item}, False
        yield "response.content_part.added", {**place, "part": part}, False
        texts = []
        for chunk in self._answer.chunks():
            texts.append(chunk.text)
            self.tokens += chunk.tokens
            yield "response.output_text.delta", {**place, "delta": chunk.text, "logprobs": []}, True
        text = "".join(texts)
        yield "response.output_text.done", {**place, "text": text, "logprobs": []}, False
        yield "response.content_part.done", {**place, "part": {**part, "text": text}}, False
        response = self._response(text)
        yield "response.output_item.done", {"output_index": 0, "item": response["output"][0]}, False
        yield f"response.{response['status']}", {"response": response}, False

    def _message_events(self) -> Iterator[tuple[str, dict[str, Any], bool]]:
        yield "message_start", {"message": {**self._message(None), "stop_reason": None}}, False
        yield "content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}}, False
        for chunk in self._answer.chunks():
            self.tokens += chunk.tokens
            yield "content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": chunk.text}}, True
        yield "content_block_stop", {"index": 0}, False
        delta = {"stop_reason": self._message("")["stop_reason"], "stop_sequence": None}
        yield "message_delta", {"delta": delta, "usage": self._usage()}, False
        yield "message_stop", {}, False

    def _response(self, text: str | None) -> dict[str, Any]:
        """`text` None: nothing has been said yet."""
        is_cut = self.reason == "length"
        part: dict[str, Any] = {"type": "output_text", "text": text, "annotations": [], "logprobs": None}
        item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]}
        return {
            "id": self._id, "object": "response", "created_at": 1, "model": self._asked.model, "error": None,
            "status": "incomplete" if is_cut else "completed", "instructions": None, "metadata": None,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None, "parallel_tool_calls": True,
            "output": [] if text is None else [item], "temperature": 1.0, "tool_choice": "auto", "tools": [],
            "top_p": 1.0, "usage": None if text is None else self._usage(),
        }  # fmt: skip

    def _message(self, text: str | None) -> dict[str, Any]:
        return {
            "id": self._id, "type": "message", "role": "assistant", "model": self._asked.model,
            "content": [] if text is None else [{"type": "text", "text": text}],
            "stop_reason": "max_tokens" if self.reason == "length" else "end_turn", "usage": self._usage(),
        }  # fmt: skip

    def _usage(self) -> dict[str, int]:
        prompt = self._asked.prompt_tokens
        usage = {"input_tokens": prompt, "output_tokens": self.tokens}
        return usage | {"total_tokens": prompt + self.tokens} if self._asked.endpoint == "responses" else usage

    def _scored(self) -> Any:
        """The share of words that two texts have in common."""
        asked = self._asked
        first, *others = asked.inputs
        scores = [_alike(str(first), str(other)) for other in others]
        usage = {"prompt_tokens": sum(map(count_tokens, asked.inputs)), "total_tokens": asked.prompt_tokens}
        if asked.endpoint == "score":
            data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores)]
            return {"id": self._id, "object": "list", "created": 1, "model": asked.model, "data": data, "usage": usage}
        ranked = sorted(enumerate(scores), key=lambda one: -one[1])
        if self._manner == "sglang":  # a bare list
            return [
                {"score": score, "document": others[index], "index": index, "meta_info": {"prompt_tokens": 1}}
                for index, score in ranked
            ]
        results = [
            {"index": index, "document": {"text": others[index], "multi_modal": None}, "relevance_score": score}
            for index, score in ranked
        ]
        return {"id": self._id, "model": asked.model, "usage": usage, "results": results}


def _alike(one: str, other: str) -> float:
    words, others = set(one.lower().split()), set(other.lower().split())
    return len(words & others) / (len(words | others) or 1)
