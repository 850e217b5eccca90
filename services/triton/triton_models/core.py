"""The core model of the legacy contract: token ids in, token ids out, many requests in one continuous batch.

Shapes as TensorRT-LLM's: B = 1 (one prompt a request), K = 1 (beams), n = new tokens of this response.
"""

import asyncio

import numpy as np

from openvino_engine.answer import Answers
from openvino_engine.sequence import Delta
from triton_models.core_request import CoreRequest, read_request
from triton_models.exchange import Exchange, Named
from triton_models.model import Model, Serve
from triton_models.tensors import Array
from triton_models.token_sequence import TokenSequence


class CoreModel(Model):
    """What `model.py` names TritonPythonModel."""

    def read(self, values: dict[str, Array]) -> Serve:
        asked = read_request(values, self.engine.checkpoint, self.engine.context)
        self.check_decoupled("streaming", asked.streaming)
        self.check_decoupled("num_return_sequences", asked.sequences > 1)
        return lambda exchange: self._serve(exchange, asked)

    async def _serve(self, exchange: Exchange, asked: CoreRequest) -> None:
        sampling = asked.sampling
        if sampling.constraint is not None:
            await self.engine.grammar.check(sampling.constraint, "guided_decoding_guide")
        with Answers(self.engine.loop, sampling, lambda: TokenSequence(sampling.stop, asked.stop_words)) as answers:
            answers.submit([asked.prompt], asked.sequences)
            sequences = [_Sequence(asked, index) for index in range(asked.sequences)]
            left = asked.sequences
            async for index, delta in answers.deltas():
                left -= delta.finish is not None
                outputs = sequences[index].take(delta, more_waits=answers.has_more(index))
                if outputs:
                    exchange.send(outputs, final=left == 0)
                    await asyncio.sleep(0)  # sending blocks for longer than a step takes: the others' turn


class _Sequence:
    """One returned sequence: gathers a whole answer, or passes each step on."""

    def __init__(self, asked: CoreRequest, index: int) -> None:
        self._asked = asked
        self._index = index
        self._held = Delta()
        self._cumulative = 0.0

    def take(self, delta: Delta, *, more_waits: bool) -> Named:
        """The outputs of the next response; empty when there is none yet, or the next step can go with it."""
        self._held.tokens += delta.tokens
        self._held.logprobs += delta.logprobs
        self._cumulative += sum(delta.logprobs)
        if delta.finish is None and (more_waits or not self._asked.streaming):
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
