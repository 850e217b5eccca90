"""The core model of the legacy contract: token ids in, token ids out, many requests in one continuous batch.

Shapes as TensorRT-LLM's: B = 1 (one prompt a request), K = 1 (beams), n = new tokens of this response.
"""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from openvino_engine.answer import Answers
from openvino_engine.engine import EngineOptions
from openvino_engine.errors import ApiError, invalid
from openvino_engine.pipeline import PipelineOptions
from openvino_engine.sequence import Delta
from triton_models.core_request import CoreRequest, asks_to_stop, read_request
from triton_models.exchange import Exchange, Named, inputs
from triton_models.gauges import Gauges
from triton_models.host import EngineHost
from triton_models.token_sequence import TokenSequence


class CoreModel:
    """What `model.py` names TritonPythonModel."""

    def initialize(self, args: dict[str, str]) -> None:
        """Called once by Triton; an exception here is the reason it gives for not loading the model."""
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
        options = engine_options(parameters(args))
        gauges = Gauges(args["model_name"], args["model_version"], options.pipeline.max_num_seqs)
        self._host = EngineHost(options, args["model_name"], lambda: gauges.show(self._host.engine.metrics))
        self._engine = self._host.engine

    def execute(self, requests: list[Any]) -> None:
        """Read, hand over, return: the loop sends the responses."""
        for request in requests:
            exchange = Exchange(request)
            try:
                self._accept(exchange, inputs(request))
            except ApiError as error:
                exchange.fail(error)

    def finalize(self) -> None:
        """Called once by Triton before the process ends."""
        self._host.close()

    def _accept(self, exchange: Exchange, values: dict[str, Any]) -> None:
        if asks_to_stop(values):
            if not exchange.id:
                raise invalid("stop", "'stop' cancels by request id, and this request has none")
            self._host.stop(exchange)
            return
        asked = read_request(values, self._engine.checkpoint, self._engine.context)
        self._host.submit(exchange, lambda exchange: self._serve(exchange, asked))

    async def _serve(self, exchange: Exchange, asked: CoreRequest) -> None:
        sampling = asked.sampling
        if sampling.constraint is not None:
            await self._engine.grammar.check(sampling.constraint, "guided_decoding_guide")
        with Answers(self._engine.loop, sampling, lambda: TokenSequence(sampling.stop, asked.stop_words)) as answers:
            answers.submit([asked.prompt], asked.sequences)
            sequences = [_Sequence(asked, index) for index in range(asked.sequences)]
            left = asked.sequences
            async for index, delta in answers.deltas():
                left -= delta.finish is not None
                outputs = sequences[index].take(delta)
                if outputs:
                    exchange.send(outputs, final=left == 0)


class _Sequence:
    """One returned sequence: gathers a whole answer, or passes each step on."""

    def __init__(self, asked: CoreRequest, index: int) -> None:
        self._asked = asked
        self._index = index
        self._held = Delta()
        self._cumulative = 0.0

    def take(self, delta: Delta) -> Named:
        """The outputs of the next response; empty when there is none yet."""
        self._held.tokens += delta.tokens
        self._held.logprobs += delta.logprobs
        self._cumulative += sum(delta.logprobs)
        if not self._asked.streaming and delta.finish is None:
            return []
        held, self._held = self._held, Delta()
        return self._outputs(held)

    def _outputs(self, delta: Delta) -> Named:
        asked = self._asked
        whole = asked.prompt + delta.tokens if asked.echo and not asked.streaming else delta.tokens
        outputs: Named = [
            ("output_ids", np.array([[whole]], dtype=np.int32)),
            ("sequence_length", np.array([[len(whole)]], dtype=np.int32)),
        ]
        if asked.wants_log_probs:
            outputs.append(("cum_log_probs", np.array([[self._cumulative]], dtype=np.float32)))
            outputs.append(("output_log_probs", np.array([[delta.logprobs]], dtype=np.float32)))
        if asked.sequences > 1:
            outputs.append(("sequence_index", np.array([[self._index]], dtype=np.int32)))
        if asked.wants_input_count:
            outputs.append(("num_input_tokens", np.array([[len(asked.prompt)]], dtype=np.int32)))
        if asked.wants_output_count:
            outputs.append(("num_output_tokens", np.array([[len(whole)]], dtype=np.int32)))
        return outputs


def parameters(args: dict[str, str]) -> dict[str, str]:
    """`parameters` of config.pbtxt, as text by key."""
    config = json.loads(args["model_config"])
    return {key: value["string_value"] for key, value in config.get("parameters", {}).items()}


def engine_options(given: dict[str, str]) -> EngineOptions:
    """The embedded engine's options from the model's parameters (written by the renderer)."""
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
