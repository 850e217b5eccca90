"""From an engine's connection into a sink, one read at a time: the relay of a stream whose events are OpenAI's.

Apart from openai_http.py because this runs for every event, inside the read callback; sse.py says what an event is.
"""

from time import monotonic

from gateway.backends.http11 import Connection
from gateway.backends.sse import StreamReader
from gateway.backends.typed_events import read_event
from gateway.core.call import Chunk, Sink
from gateway.core.errors import UpstreamError

AFTER_DONE_S = 1.0  # for the end of the response after [DONE], so that its connection can be used again


class Relay(StreamReader):
    """A reader between a connection and a sink. `take` runs inside the read callback."""

    __slots__ = ("_connection", "_idle_timeout_s", "_idle_words", "_is_finished", "_push_content", "_sink")

    def __init__(
        self,
        connection: Connection,
        sink: Sink,
        idle_timeout_s: float,
        rename: tuple[str, str] | None,
        drop_usage: bool,
        drop_extras: bool,
    ) -> None:
        super().__init__(rename=rename, drop_usage=drop_usage, drop_extras=drop_extras)
        self._connection = connection
        self._sink = sink
        self._push_content = sink.push_content
        self._idle_timeout_s = idle_timeout_s
        self._idle_words = f"nothing for {idle_timeout_s:g} s in the middle of its answer"
        self._is_finished = False

    def take(self, data: bytes) -> None:
        now_s = monotonic()
        if self.is_plain(data):
            self._connection.patience_s = now_s + self._idle_timeout_s
            if self._push_content(data, now_s):
                self._hold()
        elif not self.is_done:  # after [DONE] there is nothing a client should see
            chunk = self.feed(data, now_s)
            if chunk is not None:
                self._take_chunk(chunk)

    def _take_chunk(self, chunk: Chunk) -> None:
        connection = self._connection
        if chunk.contents:
            connection.patience_s = chunk.at_s + self._idle_timeout_s
            connection.timeout_words = self._idle_words
        if chunk.finish_reason is not None:
            self._is_finished = True
        is_behind = self._sink.push(chunk)
        if chunk.is_last:
            connection.expect_within(AFTER_DONE_S, "its answer was over")
        elif is_behind:
            self._hold()

    def _hold(self) -> None:
        self._connection.pause()
        self._connection.nudge()

    def _last_words(self) -> bytes:
        return b"data: [DONE]\n\n"  # some engines never say it; clients wait for it

    async def run(self) -> None:
        """Until the stream is over. Raises UpstreamError when it broke off, and what the sink raised."""
        connection = self._connection
        try:
            while not connection.is_complete:
                if self._sink.paused:
                    await self._sink.drained()
                connection.resume()
                await connection.progress()
            await connection.progress()
        except UpstreamError:
            if not self.is_done:
                raise
            return  # the client has everything; only the connection is spoilt
        if self.is_done:
            return
        if self.has_partial_event or not self._is_finished:
            raise UpstreamError("The engine ended its stream before the answer was finished.")
        self._sink.push(Chunk(self._last_words(), monotonic(), is_last=True))


class TypedRelay(Relay):
    """Of Responses and Messages: events that carry their own type (typed_events.py), and end without `[DONE]`."""

    __slots__ = ()

    def _read_event(self, payload: bytes, chunk: Chunk) -> bool:
        if read_event(payload, chunk):
            self.is_done = chunk.is_last = True
        return chunk.error is None

    def _learn(self, event: bytes) -> None:
        """Every event has a number or a place of its own: none is like the last."""

    def _last_words(self) -> bytes:
        return b""
