"""From what an engine says to a Responses answer: one state machine for the stream and for the whole object.

Every hook changes the object and, in a stream, says so; so the object at the end is the sum of its events. Numbers
run without gaps, and an item's place never changes. Order of events: OpenAI Responses streaming, openapi 2.3.0.
"""

import time
from collections.abc import Callable
from typing import Any

import msgspec

from gateway.api.errors import error_body
from gateway.api.responses_request import PARAMS, new_id
from gateway.core.errors import PenstockError
from gateway.serving.events import FullUsage, Logprobs, ToolCall
from gateway.serving.translator import Translator, Transport

_ENCODE = msgspec.json.Encoder().encode


class _TextDelta(msgspec.Struct, gc=False):
    """The events there are most of, without a dict."""

    type: str
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    delta: str
    logprobs: list[dict[str, Any]] | msgspec.UnsetType = msgspec.UNSET


class Item:
    """One item of the output and its place. `pieces` of its text are joined when it is done."""

    __slots__ = ("data", "index", "pieces", "text_at")

    def __init__(self, index: int, data: dict[str, Any]) -> None:
        self.index = index
        self.data = data
        self.pieces: list[str] = []
        self.text_at = 0  # content index of the part that is being said


class ResponseTranslator(Translator):
    """`response`: the object as it is at the start; `on_done`: told the finished object (to store it)."""

    def __init__(
        self, client: Transport, response: dict[str, Any], *, logprobs: bool, on_done: Callable[[dict[str, Any]], None]
    ) -> None:
        super().__init__(client)
        self._response = response
        self._output: list[dict[str, Any]] = response["output"]
        self._with_logprobs = logprobs
        self._on_done = on_done
        self._number = 0
        self._open: Item | None = None  # a reasoning or a message item
        self._part_kind = ""
        self._calls: dict[int, Item] = {}  # by the engine's index; open until the end: fragments may interleave
        self._reason = ""

    # ---- hooks ----

    def on_open(self) -> None:
        self._say("response.created", response=self._response)
        self._say("response.in_progress", response=self._response)

    def on_reasoning(self, index: int, text: str) -> None:  # noqa: ARG002
        item = self._item("reasoning", "reasoning_text")
        self._delta(item, "response.reasoning_text.delta", text)

    def on_text(self, index: int, text: str, logprobs: Logprobs | None) -> None:  # noqa: ARG002
        item = self._item("message", "output_text")
        known = _logprobs(logprobs) if self._with_logprobs and logprobs is not None else []
        item.data["content"][item.text_at]["logprobs"].extend(known)
        self._delta(item, "response.output_text.delta", text, known)

    def on_refusal(self, index: int, text: str) -> None:  # noqa: ARG002
        item = self._item("message", "refusal")
        self._delta(item, "response.refusal.delta", text)

    def on_tool_call(self, index: int, part: ToolCall) -> None:  # noqa: ARG002
        assert part.index is not None
        item = self._calls.get(part.index)
        function = part.function
        if item is None:
            self._close()
            name = (function.name if function is not None else None) or ""
            data = {"type": "function_call", "id": new_id("fc"), "call_id": part.id or new_id("call"), "name": name}
            item = self._calls[part.index] = self._add(data | {"arguments": "", "status": "in_progress"})
        if function is not None and function.arguments:
            item.pieces.append(function.arguments)
            self._say_of(item, "response.function_call_arguments.delta", delta=function.arguments)

    def on_finish(self, index: int, reason: str) -> None:  # noqa: ARG002
        self._reason = reason

    def on_usage(self, usage: FullUsage) -> None:
        self._response["usage"] = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached},
            "output_tokens": usage.output,
            "output_tokens_details": {"reasoning_tokens": usage.thought},
            "total_tokens": usage.prompt_tokens + usage.output,
        }

    def on_end(self) -> None:
        if not self._calls and not any(item["type"] == "message" for item in self._output):
            self._item("message", "output_text")  # it said nothing: that is an empty message, not none
        status = "incomplete" if self._reason in ("length", "content_filter") else "completed"
        self._close(status)
        for item in self._calls.values():
            self._close_call(item, status)
        response = self._response
        response["status"] = status
        if status == "incomplete":
            reason = "max_output_tokens" if self._reason == "length" else self._reason
            response["incomplete_details"] = {"reason": reason}
        else:
            response["completed_at"] = int(time.time())
        self._say(f"response.{status}", response=response)
        self._on_done(response)

    # ---- Translator ----

    def whole(self) -> bytes:
        return _ENCODE(self._response)

    def error_body(self, error: PenstockError) -> bytes:
        return error_body(in_clients_words(error))

    def on_failure(self, error: PenstockError) -> None:
        error = in_clients_words(error)
        code = error.code or error.type
        self._close("incomplete")
        for item in self._calls.values():
            self._close_call(item, "incomplete")
        response = self._response
        response["status"], response["error"] = "failed", {"code": code, "message": error.message}
        self._say("error", code=code, message=error.message, param=error.param)
        self._say("response.failed", response=response)
        self._on_done(response)

    # ---- items ----

    def _item(self, kind: str, part_kind: str) -> Item:
        """The open item of this kind, or a new one after what was open."""
        item = self._open
        if item is not None and item.data["type"] == kind:
            if part_kind == self._part_kind:
                return item
            self._close_part(item)
            item.text_at += 1
        else:
            self._close()
            data: dict[str, Any] = {"type": kind, "id": new_id("rs" if kind == "reasoning" else "msg")}
            if kind == "reasoning":
                data["summary"] = []
            else:
                data["role"] = "assistant"
            item = self._open = self._add(data | {"content": [], "status": "in_progress"})
        self._part_kind = part_kind
        part = _new_part(part_kind)
        item.data["content"].append(part)
        self._say_of(item, "response.content_part.added", content_index=item.text_at, part=part)
        return item

    def _add(self, data: dict[str, Any]) -> Item:
        item = Item(len(self._output), data)
        self._output.append(data)
        self._say("response.output_item.added", output_index=item.index, item=data)
        return item

    def _close(self, status: str = "completed") -> None:
        item = self._open
        if item is None:
            return
        self._open = None
        self._close_part(item)
        item.data["status"] = status
        self._say("response.output_item.done", output_index=item.index, item=item.data)

    def _close_part(self, item: Item) -> None:
        text = "".join(item.pieces)
        item.pieces.clear()
        kind, at, part = self._part_kind, item.text_at, item.data["content"][item.text_at]
        part["refusal" if kind == "refusal" else "text"] = text
        done: dict[str, Any] = {"refusal": text} if kind == "refusal" else {"text": text}
        if kind == "output_text":
            done["logprobs"] = part["logprobs"]
        self._say_of(item, f"response.{kind}.done", content_index=at, **done)
        self._say_of(item, "response.content_part.done", content_index=at, part=part)

    def _close_call(self, item: Item, status: str) -> None:
        item.data["arguments"] = arguments = "".join(item.pieces)
        item.data["status"] = status
        name = item.data["name"]
        self._say_of(item, "response.function_call_arguments.done", arguments=arguments, name=name)
        self._say("response.output_item.done", output_index=item.index, item=item.data)

    # ---- events ----

    def _delta(self, item: Item, kind: str, text: str, logprobs: list[dict[str, Any]] | None = None) -> None:
        item.pieces.append(text)
        if self.is_stream:
            known: Any = msgspec.UNSET if logprobs is None else logprobs
            event = _TextDelta(kind, self._number, item.data["id"], item.index, item.text_at, text, known)
            self._number += 1
            self.out.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), _ENCODE(event)))

    def _say_of(self, item: Item, kind: str, **fields: Any) -> None:
        self._say(kind, item_id=item.data["id"], output_index=item.index, **fields)

    def _say(self, kind: str, **fields: Any) -> None:
        if self.is_stream:
            event = {"type": kind, "sequence_number": self._number, **fields}
            self._number += 1
            self.out.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), _ENCODE(event)))


def _new_part(kind: str) -> dict[str, Any]:
    if kind == "refusal":
        return {"type": kind, "refusal": ""}
    if kind == "reasoning_text":
        return {"type": kind, "text": ""}
    return {"type": kind, "text": "", "annotations": [], "logprobs": []}


def _logprobs(logprobs: Logprobs) -> list[dict[str, Any]]:
    return [
        {
            "token": one.token,
            "logprob": one.logprob,
            "bytes": one.bytes or [],
            "top_logprobs": [
                {"token": top.token, "logprob": top.logprob, "bytes": top.bytes or []} for top in one.top_logprobs
            ],
        }
        for one in logprobs.content or ()
    ]


def in_clients_words(error: PenstockError) -> PenstockError:
    """An error about a chat field, about the field it came from."""
    name = PARAMS.get(error.param or "")
    if name is not None:
        error.message = error.message.replace(f"'{error.param}'", f"'{name}'")
        error.param = name
    return error
