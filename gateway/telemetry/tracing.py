"""OpenTelemetry traces with the GenAI conventions; off unless an OTLP endpoint is configured.

A request is a SERVER span, each attempt at a replica a CLIENT span below it; the engine gets the
attempt's context in `traceparent`. Attribute names are written out here because the conventions moved
to `open-telemetry/semantic-conventions-genai` and are all still in development. No prompts, no answers.
"""

from typing import Any

from gateway.core.call import Endpoint
from gateway.settings import TelemetrySettings
from gateway.telemetry.record import Record

_OPERATIONS = {
    Endpoint.CHAT: "chat",
    Endpoint.COMPLETIONS: "text_completion",
    Endpoint.EMBEDDINGS: "embeddings",
    Endpoint.RESPONSES: "chat",
    Endpoint.MESSAGES: "chat",
    Endpoint.COUNT_TOKENS: "count_tokens",
    Endpoint.RERANK: "rerank",
    Endpoint.SCORE: "score",
}


def make_tracer(settings: TelemetrySettings) -> "Tracer | None":
    """None when tracing is off. Raises RuntimeError when it is on but the `otel` extra is not installed."""
    if settings.otlp_endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
    except ModuleNotFoundError as missing:
        raise RuntimeError("telemetry.otlp_endpoint needs the extra: pip install 'penstock[otel]'") from missing
    provider = TracerProvider(
        resource=Resource.create({"service.name": "penstock-gateway"}),
        sampler=ParentBasedTraceIdRatio(settings.trace_sample_ratio),
    )
    endpoint = settings.otlp_endpoint.rstrip("/") + "/v1/traces"
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return Tracer(provider)


class Tracer:
    """Spans of requests and attempts, on one TracerProvider."""

    def __init__(self, provider: Any) -> None:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("penstock.gateway")
        self._kinds = SpanKind
        self._propagator = TraceContextTextMapPropagator()

    def start(self, record: Record) -> None:
        call = record.call
        parent = self._propagator.extract({"traceparent": call.traceparent} if call.traceparent else {})
        record.span = self._tracer.start_span(
            f"POST /v1/{call.endpoint}",
            context=parent,
            kind=self._kinds.SERVER,
            attributes={"http.request.method": "POST", "http.route": f"/v1/{call.endpoint}"},
        )

    def start_attempt(self, record: Record, url: str) -> None:
        from opentelemetry.trace import set_span_in_context

        call = record.call
        host, _, port = url.partition("://")[2].partition(":")
        attributes = {
            "gen_ai.operation.name": _OPERATIONS[call.endpoint],
            "gen_ai.provider.name": record.engine,
            "gen_ai.request.model": call.model,
            "gen_ai.request.stream": call.stream,
            "server.address": host,
            **({"server.port": int(port.partition("/")[0])} if port.partition("/")[0].isdigit() else {}),
        }
        record.attempt_span = self._tracer.start_span(
            f"{_OPERATIONS[call.endpoint]} {call.model}",
            context=set_span_in_context(record.span),
            kind=self._kinds.CLIENT,
            attributes=attributes,
        )
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, set_span_in_context(record.attempt_span))
        call.traceparent = carrier.get("traceparent", call.traceparent)

    def end_attempt(self, record: Record, outcome: str) -> None:
        span = record.attempt_span
        if outcome != "ok":
            _mark_failed(span, outcome)
        if record.first_s is not None:
            span.set_attribute("gen_ai.response.time_to_first_chunk", record.first_s - record.call.received_s)
        if record.usage is not None:
            span.set_attribute("gen_ai.usage.input_tokens", record.usage.prompt_tokens)
        span.set_attribute("gen_ai.usage.output_tokens", record.output_tokens)
        if record.finish_reason:
            span.set_attribute("gen_ai.response.finish_reasons", [record.finish_reason])
        span.end()

    def end(self, record: Record) -> None:
        record.span.set_attribute("http.response.status_code", record.status)
        if record.outcome != "ok":
            _mark_failed(record.span, record.error_code or record.outcome)
        record.span.end()

    def close(self) -> None:
        """Send what is still buffered."""
        self._provider.shutdown()


def _mark_failed(span: Any, error_type: str) -> None:
    from opentelemetry.trace import StatusCode

    span.set_attribute("error.type", error_type)
    span.set_status(StatusCode.ERROR)
