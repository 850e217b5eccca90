"""The engine's state among tritonserver's metrics, under TensorRT-LLM's names, so that one dashboard fits both."""

from typing import Any

import triton_python_backend_utils as pb_utils

from openvino_engine.metrics import Metrics

_REQUESTS = "nv_trt_llm_request_metrics"
_BLOCKS = "nv_trt_llm_kv_cache_block_metrics"


class Gauges:
    """``show`` copies the engine's gauges; families must outlive their members, so both are kept."""

    def __init__(self, model: str, version: str, most_running: int) -> None:
        labels = {"model": model, "version": version}
        requests, blocks = _family(_REQUESTS, "TRT LLM request metrics"), _family(_BLOCKS, "TRT LLM KV cache blocks")
        self._families = (requests, blocks)
        kinds = ("active", "scheduled", "waiting", "max")
        self._requests = {kind: requests.Metric(labels=labels | {"request_type": kind}) for kind in kinds}
        self._fraction = blocks.Metric(labels=labels | {"kv_cache_block_type": "fraction"})
        self._requests["max"].set(most_running)

    def show(self, metrics: Metrics) -> None:
        """Active are all requests the engine knows, scheduled those in the batch."""
        running, waiting = _value(metrics.running), _value(metrics.waiting)
        self._requests["active"].set(running + waiting)
        self._requests["scheduled"].set(running)
        self._requests["waiting"].set(waiting)
        self._fraction.set(_value(metrics.kv_usage))


def _family(name: str, description: str) -> Any:
    return pb_utils.MetricFamily(name=name, description=description, kind=pb_utils.MetricFamily.GAUGE)


def _value(gauge: Any) -> float:
    return float(gauge.collect()[0].samples[0].value)
