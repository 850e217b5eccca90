"""Triton's ModelStatistics from the gateway's own series, for load tools that read it before and after.

Apart from the service because it is arithmetic. A request here is one inference of one execution: batches are the
engine's business, and so is how its time divides, so that `compute_infer` is all of it but the queue.
"""

from collections.abc import Iterable

from gateway.protos import inference_pb2 as pb
from gateway.serving.tensors import VERSION
from gateway.telemetry.metrics import Series

_NS = 1e9


def statistics(name: str, series: Iterable[Series]) -> pb.ModelStatistics:
    """Of one model: the `series` of all its deployments, through every door."""
    told = pb.ModelStatistics(name=name, version=VERSION)
    stats = told.inference_stats
    for one in series:
        for (_, outcome), count in one.requests.items():
            _add(stats.success if outcome == "ok" else stats.fail, count, 0.0)
        for outcome, histogram in one.duration.items():
            _add(stats.success if outcome == "ok" else stats.fail, 0, histogram.total)
        _add(stats.queue, sum(one.queue.counts), one.queue.total)
    told.inference_count = told.execution_count = stats.success.count
    stats.compute_infer.count = stats.success.count
    stats.compute_infer.ns = max(stats.success.ns - stats.queue.ns, 0)
    return told


def _add(duration: pb.StatisticDuration, count: int, seconds: float) -> None:
    duration.count += count
    duration.ns += int(seconds * _NS)
