"""Prometheus metrics. On the request path they are plain arrays; families are built when scraped.

Definitions (design.md section 5): TTFT runs from the request's arrival to its first event with content,
ITL is every gap between successive content events (events that arrive together are 0 apart), TPOT is
(end-to-end - TTFT) / (output tokens - 1). Labels are bounded: configured models, deployments and
replicas, and the outcomes of core/errors.py; never what a client made up.
"""

from bisect import bisect_left
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

SHORT_S = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75,
    1.0, 2.0, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
LONG_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 7.5,
    10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0,
)  # fmt: skip

OTHER = "other"
"""Label of requests that name no model we serve: their own words would be unbounded."""


class Histogram:
    """Counts per bucket (upper bounds in seconds, inclusive) and the sum of what was observed."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        """Buckets as Prometheus wants them."""
        rows, running = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            running += count
            rows.append((bound, float(running)))
        return rows


class Series:
    """All numbers of one deployment of one model; the request path holds it directly."""

    __slots__ = (
        "attempts",
        "deployment",
        "duration",
        "in_flight",
        "input_tokens",
        "itl",
        "model",
        "output_tokens",
        "queue",
        "ready",
        "requests",
        "tpot",
        "ttft",
        "waiting",
    )

    def __init__(self, model: str, deployment: str) -> None:
        self.model = model
        self.deployment = deployment
        self.requests: dict[tuple[str, str], int] = {}  # (endpoint, outcome)
        self.attempts: dict[tuple[str, str], int] = {}  # (replica, outcome)
        self.duration: dict[str, Histogram] = {}  # by outcome
        self.ttft = Histogram(LONG_S)
        self.itl = Histogram(SHORT_S)
        self.tpot = Histogram(SHORT_S)
        self.queue = Histogram(LONG_S)
        self.in_flight = 0
        self.waiting = 0
        self.input_tokens = 0
        self.output_tokens = 0
        self.ready: dict[str, bool] = {}

    def request_done(self, endpoint: str, outcome: str, duration_s: float) -> None:
        key = (endpoint, outcome)
        self.requests[key] = self.requests.get(key, 0) + 1
        histogram = self.duration.get(outcome)
        if histogram is None:
            histogram = self.duration[outcome] = Histogram(LONG_S)
        histogram.observe(duration_s)

    def attempt_done(self, replica: str, outcome: str) -> None:
        key = (replica, outcome)
        self.attempts[key] = self.attempts.get(key, 0) + 1

    def replica_ready(self, replica: str, *, is_ready: bool) -> None:
        self.ready[replica] = is_ready


class Metrics(Collector):
    """Every series of the gateway, and a registry that shows them."""

    def __init__(self) -> None:
        self.series: list[Series] = []
        self.unrouted = self.new_series(OTHER, OTHER)
        self.lost_log_lines = 0
        self.wire_refusals: dict[str, int] = {}
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def new_series(self, model: str, deployment: str) -> Series:
        series = Series(model, deployment)
        self.series.append(series)
        return series

    def log_lines_lost(self, lines: int) -> None:
        self.lost_log_lines += lines

    def wire_refusal(self, code: str) -> None:
        self.wire_refusals[code] = self.wire_refusals.get(code, 0) + 1

    def exposition(self) -> bytes:
        """The page at `/metrics` (Prometheus text format 0.0.4)."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        yield from self._counters()
        yield from self._gauges()
        yield from self._histograms()

    def _counters(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "penstock_requests", "Requests answered.", labels=("model", "deployment", "endpoint", "outcome")
        )
        attempts = CounterMetricFamily(
            "penstock_attempts", "Tries at one replica.", labels=("model", "deployment", "replica", "outcome")
        )
        tokens_in = CounterMetricFamily(
            "penstock_input_tokens", "Prompt tokens, as engines count them.", labels=("model", "deployment")
        )
        tokens_out = CounterMetricFamily(
            "penstock_output_tokens",
            "Generated tokens as engines count them; content events where a stream broke before its count.",
            labels=("model", "deployment"),
        )
        for s in self.series:
            labels = (s.model, s.deployment)
            for (endpoint, outcome), count in s.requests.items():
                requests.add_metric((*labels, endpoint, outcome), count)
            for (replica, outcome), count in s.attempts.items():
                attempts.add_metric((*labels, replica, outcome), count)
            tokens_in.add_metric(labels, s.input_tokens)
            tokens_out.add_metric(labels, s.output_tokens)
        lost = CounterMetricFamily("penstock_log_lines_lost", "Access-log lines that could not be written.")
        lost.add_metric((), self.lost_log_lines)
        refusals = CounterMetricFamily(
            "penstock_wire_refusals",
            "Requests refused before they were one: broken HTTP, too large, too slow.",
            labels=("code",),
        )
        for code, count in self.wire_refusals.items():
            refusals.add_metric((code,), count)
        yield from (requests, attempts, tokens_in, tokens_out, lost, refusals)

    def _gauges(self) -> Iterator[Metric]:
        in_flight = GaugeMetricFamily(
            "penstock_requests_in_flight", "Requests being answered or waiting.", labels=("model", "deployment")
        )
        waiting = GaugeMetricFamily(
            "penstock_requests_waiting", "Requests waiting for a slot.", labels=("model", "deployment")
        )
        ready = GaugeMetricFamily(
            "penstock_replica_ready", "1 when the replica takes traffic.", labels=("model", "deployment", "replica")
        )
        for s in self.series:
            in_flight.add_metric((s.model, s.deployment), s.in_flight)
            waiting.add_metric((s.model, s.deployment), s.waiting)
            for replica, is_ready in s.ready.items():
                ready.add_metric((s.model, s.deployment, replica), float(is_ready))
        yield from (in_flight, waiting, ready)

    def _histograms(self) -> Iterator[Metric]:
        for name, text in _HISTOGRAMS.items():
            family = HistogramMetricFamily(f"penstock_request_{name}_seconds", text, labels=("model", "deployment"))
            for s in self.series:
                histogram: Histogram = getattr(s, name)
                family.add_metric((s.model, s.deployment), histogram.cumulative(), histogram.total)
            yield family
        duration = HistogramMetricFamily(
            "penstock_request_duration_seconds", "From arrival to the last byte.",
            labels=("model", "deployment", "outcome"),
        )  # fmt: skip
        for s in self.series:
            for outcome, histogram in s.duration.items():
                duration.add_metric((s.model, s.deployment, outcome), histogram.cumulative(), histogram.total)
        yield duration


_HISTOGRAMS = {
    "ttft": "Time from arrival to the first event with content (streams).",
    "itl": "Gap between successive content events (streams).",
    "tpot": "(End-to-end - TTFT) / (output tokens - 1), per streamed request.",
    "queue": "Time a request waited for a slot.",
}
