"""What /metrics shows, under the prefix penstock_engine_. One registry per server; nothing is global."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

_LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_GAP_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Counters and histograms of one engine, labelled with the model's public name."""

    def __init__(self, model: str) -> None:
        self.registry = CollectorRegistry()
        self._labels = {"model_name": model}
        self.waiting = self._gauge("num_requests_waiting", "Answers that wait for a place in the batch")
        self.running = self._gauge("num_requests_running", "Answers in the batch")
        self.kv_usage = self._gauge("kv_cache_usage_ratio", "Share of KV cache blocks in use, 0 to 1")
        self.kv_bytes = self._gauge("kv_cache_size_bytes", "Size of the KV cache")
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of answers that began")
        self.generation_tokens = self._counter("generation_tokens", "Tokens generated, of aborted answers too")
        self.steps = self._counter("steps", "Steps of the pipeline; fewer than tokens where it guesses or batches")
        self.aborts = self._counter("aborts", "Answers stopped because the client left")
        self.restarts = self._counter("pipeline_restarts", "Times the pipeline was opened again after a failure")
        self.rejections = self._counter("admission_rejections", "Requests refused because the queue was full")
        self.queue_time = self._histogram("queue_time_seconds", "From arrival to a place in the batch", _LATENCY_S)
        self.ttft = self._histogram("time_to_first_token_seconds", "From arrival to the first token", _LATENCY_S)
        self.itl = self._histogram("inter_token_latency_seconds", "Gaps between steps that gave tokens", _GAP_S)
        self.e2e = self._histogram("e2e_request_latency_seconds", "From arrival to the last token", _LATENCY_S)
        self._finished = Counter(
            "penstock_engine_finished", "Answers by how they ended", ["model_name", "reason"], registry=self.registry
        )

    def finished(self, reason: str) -> None:
        """Count an ended answer. ``reason``: stop, length, abort or error."""
        self._finished.labels(reason=reason, **self._labels).inc()

    def text(self) -> bytes:
        """The exposition in Prometheus text format."""
        return generate_latest(self.registry)

    def _gauge(self, name: str, help_text: str) -> Gauge:
        return Gauge(f"penstock_engine_{name}", help_text, ["model_name"], registry=self.registry).labels(
            **self._labels
        )

    def _counter(self, name: str, help_text: str) -> Counter:
        counter = Counter(f"penstock_engine_{name}", help_text, ["model_name"], registry=self.registry)
        return counter.labels(**self._labels)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(
            f"penstock_engine_{name}", help_text, ["model_name"], buckets=buckets, registry=self.registry
        )
        return histogram.labels(**self._labels)
