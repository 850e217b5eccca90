"""The meter: what the fake really did, in its own words, rendered as Prometheus text under an engine's names.

Written out by hand because prometheus_client would cost more per token than the engine itself.
"""

from bisect import bisect_left
from collections import Counter

from fake_engine.engines import EngineKind, Metric

FINISH_REASONS = ("stop", "length", "abort", "error")


class Histogram:
    """Upper bounds are inclusive, as Prometheus wants; the last bucket is +Inf."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times


class Meter:
    """Gauges and counters are plain attributes; `observe` feeds the histogram that the engine has, if it has one."""

    def __init__(self, kind: EngineKind, model: str, kv_capacity_tokens: int) -> None:
        self._kind = kind
        self._labels = {"model_name": model, **kind.labels}
        self._kv_capacity_tokens = kv_capacity_tokens
        self._histograms = {m.source: Histogram(m.buckets) for m in kind.metrics if m.kind == "histogram"}
        self.running = self.waiting = self.kv_tokens = 0
        self.started = self.aborted = 0
        self.prompt_tokens = self.cached_tokens = self.generation_tokens = 0
        self.finished: Counter[str] = Counter(dict.fromkeys(FINISH_REASONS, 0))
        self.rejected: Counter[str] = Counter({"queue_full": 0})

    @property
    def kv_usage(self) -> float:
        return min(1.0, self.kv_tokens / self._kv_capacity_tokens)

    def observe(self, source: str, value: float) -> None:
        if histogram := self._histograms.get(source):
            histogram.observe(value)

    def render(self) -> bytes:
        """Prometheus text format 0.0.4."""
        lines: list[str] = []
        for metric in self._kind.metrics:
            name = metric.name + "_total" if metric.kind == "counter" else metric.name
            lines += (f"# HELP {name} {metric.source} of the fake engine", f"# TYPE {name} {metric.kind}")
            lines += self._samples(metric, name)
        return "\n".join([*lines, ""]).encode()

    def _samples(self, metric: Metric, name: str) -> list[str]:
        if metric.kind == "histogram":
            return self._histogram_samples(self._histograms[metric.source], name)
        value = getattr(self, metric.source)
        if isinstance(value, Counter):
            label = "finished_reason" if metric.source == "finished" else "reason"
            return [f"{name}{self._label_text(**{label: key})} {count}" for key, count in sorted(value.items())]
        return [f"{name}{self._label_text()} {value}"]

    def _histogram_samples(self, histogram: Histogram, name: str) -> list[str]:
        lines, total = [], 0
        for bound, count in zip((*map(float, histogram.bounds), "+Inf"), histogram.counts, strict=True):
            total += count
            lines.append(f"{name}_bucket{self._label_text(le=str(bound))} {total}")
        labels = self._label_text()
        return [*lines, f"{name}_sum{labels} {histogram.sum!r}", f"{name}_count{labels} {total}"]

    def _label_text(self, **more: str) -> str:
        pairs = ",".join(f'{key}="{_escaped(value)}"' for key, value in {**self._labels, **more}.items())
        return f"{{{pairs}}}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
