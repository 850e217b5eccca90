"""What both contracts share: opening the engine, handing requests over, cancelling by request id, ending.

Triton calls initialize() once, execute() with requests as they come, finalize() before the process ends.
"""

import json
import logging
from pathlib import Path
from typing import Any

from openvino_engine.engine import EngineOptions
from openvino_engine.errors import ApiError, invalid
from openvino_engine.pipeline import PipelineOptions
from triton_models.exchange import Exchange, inputs
from triton_models.gauges import Gauges
from triton_models.host import EngineHost, Serve
from triton_models.tensors import Array


class Model:
    """A subclass says in ``read`` what a request is and how it is served."""

    def initialize(self, args: dict[str, str]) -> None:
        """An exception here is the reason that Triton gives for not loading the model."""
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
        config = json.loads(args["model_config"])
        self._decoupled = bool(config.get("model_transaction_policy", {}).get("decoupled"))
        options = _engine_options({key: value["string_value"] for key, value in config["parameters"].items()})
        gauges = Gauges(args["model_name"], args["model_version"], options.pipeline.max_num_seqs)
        self._host = EngineHost(options, args["model_name"], gauges.show)
        self.engine = self._host.engine

    def execute(self, requests: list[Any]) -> None:
        """Read, hand over, return: the host's loop sends the responses."""
        for request in requests:
            exchange = Exchange(request, decoupled=self._decoupled)
            try:
                self._accept(exchange, inputs(request))
            except ApiError as error:
                exchange.fail(error)

    def finalize(self) -> None:
        """End what runs."""
        self._host.close()

    def read(self, values: dict[str, Array]) -> Serve:
        """Check the inputs of one request; how it is served. Raises ApiError."""
        raise NotImplementedError

    def check_decoupled(self, name: str, asks_for_several: bool) -> None:
        """Raises ApiError when several responses are asked of a model that may send one."""
        if asks_for_several and not self._decoupled:
            raise invalid(name, f"{name!r} needs a decoupled model: set `decoupled: true` in the repository's YAML")

    def _accept(self, exchange: Exchange, values: dict[str, Array]) -> None:
        stop = values.get("stop")
        if stop is None or not stop.any():
            self._host.submit(exchange, self.read(values))
            return
        if not exchange.id:
            raise invalid("stop", "'stop' cancels by request id, and this request has none")
        self._host.stop(exchange)


def _engine_options(given: dict[str, str]) -> EngineOptions:
    """From the model's parameters, as the renderer wrote them."""
    pipeline = PipelineOptions(
        precision=given["precision"],
        kv_cache_gb=int(given["kv_cache_gb"]),
        threads=int(given["threads"]) if given.get("threads") else None,
        max_num_seqs=int(given["max_running"]),
        prefix_caching=given["enable_kv_cache_reuse"] == "true",
    )
    return EngineOptions(
        model=Path(given["checkpoint"]),
        cache_dir=Path(given["cache_dir"]),
        max_waiting=int(given["max_waiting"]),
        grammar_timeout_s=float(given["grammar_timeout_s"]),
        pipeline=pipeline,
    )


__all__ = ["Model", "Serve"]
