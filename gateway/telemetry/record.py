"""What is known of one request by its end, filled in on its way; `Telemetry.finish` makes of it
metrics, one access line and, where configured, spans."""

import time
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.core.call import Call, Chunk, Endpoint, Reply, Usage
from gateway.core.errors import PenstockError
from gateway.core.replica import Replica
from gateway.telemetry.logs import AccessLog
from gateway.telemetry.metrics import OTHER, Metrics, Series

if TYPE_CHECKING:
    from gateway.telemetry.tracing import Tracer


class Record(msgspec.Struct, gc=False, eq=False):
    """Times are `time.monotonic()` seconds. `contents` counts content events relayed."""

    call: Call
    series: Series
    engine: str = ""
    replica: str = ""
    attempts: int = 0
    queue_s: float = 0.0
    first_s: float | None = None
    last_s: float = 0.0
    contents: int = 0
    usage: Usage | None = None
    finish_reason: str | None = None
    outcome: str = "internal_error"  # until it is known better
    status: int = 500
    error_code: str | None = None
    span: Any = None
    attempt_span: Any = None

    def routed(self, series: Series, engine: str) -> None:
        self.engine = engine
        self.series.in_flight -= 1
        series.in_flight += 1
        self.series = series

    def saw_chunk(self, chunk: Chunk) -> None:
        """Count what arrived, at the moment it arrived."""
        contents = chunk.contents
        if contents:
            itl = self.series.itl
            if self.contents:
                itl.observe(chunk.at_s - self.last_s)
            else:
                self.first_s = chunk.at_s
                self.series.ttft.observe(chunk.at_s - self.call.received_s)
            if contents > 1:
                itl.counts[0] += contents - 1  # gaps of nothing
            self.last_s = chunk.at_s
            self.contents += contents
        if chunk.usage is not None:
            self.usage = chunk.usage
        if chunk.finish_reason is not None:
            self.finish_reason = chunk.finish_reason

    def saw_reply(self, reply: Reply) -> None:
        self.usage = reply.usage
        reasons = reply.finish_reasons
        self.finish_reason = reasons[0] if len(reasons) == 1 else ",".join(sorted(set(reasons))) or None

    def failed(self, error: PenstockError) -> None:
        self.outcome, self.status, self.error_code = error.outcome, error.status, error.code

    @property
    def output_tokens(self) -> int:
        """As the engine counted; where it could not (a broken stream), the content events relayed."""
        counted = (self.usage.completion_tokens or 0) if self.usage is not None else 0
        return max(counted, self.contents)


class Telemetry:
    """Where records end: metrics always, the access log and traces where configured."""

    def __init__(self, metrics: Metrics, access_log: AccessLog | None, tracer: "Tracer | None" = None) -> None:
        self.metrics = metrics
        self._access_log = access_log
        self._tracer = tracer

    def open(self, call: Call) -> Record:
        record = Record(call, self.metrics.unrouted)
        record.series.in_flight += 1
        if self._tracer is not None:
            self._tracer.start(record)
        return record

    def refused(
        self, endpoint: Endpoint, request_id: str, error: PenstockError, received_s: float, door: str | None = None
    ) -> None:
        """A request that was not worth a `Call`: wrong key, unreadable body."""
        call = Call(endpoint, OTHER, b"", {}, stream=False, wants_usage=False,
                    request_id=request_id, received_s=received_s, door=door)  # fmt: skip
        record = self.open(call)
        record.failed(error)
        self.finish(record)

    def attempt(self, record: Record, replica: Replica) -> None:
        record.replica = replica.name
        record.attempts += 1
        if self._tracer is not None:
            self._tracer.start_attempt(record, replica.url)

    def attempt_done(self, record: Record, outcome: str) -> None:
        record.series.attempt_done(record.replica, outcome)
        if self._tracer is not None:
            self._tracer.end_attempt(record, outcome)

    def finish(self, record: Record) -> None:
        now_s = time.monotonic()
        series, call, usage = record.series, record.call, record.usage
        duration_s = now_s - call.received_s
        output_tokens = record.output_tokens
        series.in_flight -= 1
        series.request_done(call.door or call.endpoint, record.outcome, duration_s)
        series.queue.observe(record.queue_s)
        if usage is not None:
            series.input_tokens += usage.prompt_tokens
        series.output_tokens += output_tokens
        if record.first_s is not None and output_tokens > 1:
            series.tpot.observe((now_s - record.first_s) / (output_tokens - 1))
        if self._access_log is not None:
            self._access_log.write(_access_line(record, duration_s, output_tokens))
        if self._tracer is not None:
            self._tracer.end(record)

    def close(self) -> None:
        """Write out what is still held."""
        if self._access_log is not None:
            self._access_log.close()
        if self._tracer is not None:
            self._tracer.close()


class _AccessLine(msgspec.Struct, omit_defaults=True, gc=False):
    time: float
    request_id: str
    endpoint: str
    model: str
    deployment: str
    replica: str
    status: int
    outcome: str
    stream: bool
    duration_s: float
    attempts: int
    ttft_s: float | None = None
    queue_s: float = 0.0
    input_tokens: int | None = None
    output_tokens: int = 0
    finish_reason: str | None = None
    error_code: str | None = None
    key: str | None = None
    adapter: str | None = None


_ENCODE = msgspec.json.Encoder().encode


def _access_line(record: Record, duration_s: float, output_tokens: int) -> bytes:
    """Times are cut to microseconds by `int(x * 1e6) / 1e6`: `round` costs more than all the rest."""
    call, series, usage, first_s = record.call, record.series, record.usage, record.first_s
    return _ENCODE(
        _AccessLine(
            int(time.time() * 1e3) / 1e3,
            call.request_id,
            call.door or call.endpoint,
            series.model,
            series.deployment,
            record.replica,
            record.status,
            record.outcome,
            call.stream,
            int(duration_s * 1e6) / 1e6,
            record.attempts,
            None if first_s is None else int((first_s - call.received_s) * 1e6) / 1e6,
            int(record.queue_s * 1e6) / 1e6,
            None if usage is None else usage.prompt_tokens,
            output_tokens,
            record.finish_reason,
            record.error_code,
            call.key_name,
            call.adapter,
        )
    )
