"""The llmapi contract: text in, text out, `sampling_param_*` inputs. text_output is all of the text so far.

Source: TensorRT-LLM, triton_backend/all_models/llmapi/tensorrt_llm (model.py, helpers.py, config.pbtxt). Defaults are
those of its SamplingParams: 32 tokens, greedy unless temperature, top_p or top_k is given.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
import yaml

from openvino_engine.answer import Answers
from openvino_engine.engine import Engine
from openvino_engine.errors import context_exceeded, invalid
from openvino_engine.sampling import Sampling
from openvino_engine.sequence import Delta, Sequence, StopRules
from triton_models.exchange import Exchange, Named
from triton_models.model import Model, Serve
from triton_models.tensors import Array, Tensors, decoded, only

_PREFIX = "sampling_param_"
_ACTED = frozenset(
    ["text_input", "streaming", "return_finish_reason", "return_stop_reason", "return_cumulative_logprob", "stop"]
    + [_PREFIX + name for name in ("temperature", "top_k", "top_p", "frequency_penalty", "presence_penalty")]
    + [_PREFIX + name for name in ("max_tokens", "stop", "seed", "exclude_input_from_output")]
)
_NEUTRAL = {_PREFIX + "best_of": only(1), _PREFIX + "return_perf_metrics": only(False)}
_DEFAULT_MAX_TOKENS = 32
_MOST = 2**31 - 1


class LlmApiModel(Model):
    """What `model.py` names TritonPythonModel."""

    @classmethod
    def auto_complete_config(cls, config: Any) -> Any:
        """Batch size and decoupled are model.yaml's, not config.pbtxt's."""
        tree = yaml.safe_load((Path(pb_utils.get_model_dir()) / "model.yaml").read_text("utf-8"))["triton_config"]
        config.set_model_transaction_policy({"decoupled": bool(tree["decoupled"])})
        config.set_max_batch_size(int(tree["max_batch_size"]))
        return config

    def read(self, values: dict[str, Array]) -> Serve:
        asked = _read(values, self.engine)
        self.check_decoupled("streaming", asked.streaming)
        return lambda exchange: self._serve(exchange, asked)

    async def _serve(self, exchange: Exchange, asked: "_Asked") -> None:
        tokenizer, sampling = self.engine.checkpoint.tokenizer, asked.sampling
        said = _Said(asked)
        with Answers(self.engine.loop, sampling, lambda: Sequence(tokenizer, sampling.stop)) as answers:
            answers.submit([asked.prompt], 1)
            async for _, delta in answers.deltas():
                said.add(delta)
                if delta.finish is not None or (asked.streaming and not answers.has_more(0)):
                    exchange.send(said.outputs(delta), final=delta.finish is not None)
                    await asyncio.sleep(0)  # sending blocks for longer than a step takes: the others' turn


@dataclass(frozen=True, slots=True)
class _Asked:
    """A checked request. ``echo`` is the prompt's text when it is to come first, else empty."""

    prompt: list[int]
    sampling: Sampling
    streaming: bool
    echo: str
    wants_finish_reason: bool
    wants_stop_reason: bool
    wants_logprob: bool


class _Said:
    """The text so far and its log-probability."""

    def __init__(self, asked: _Asked) -> None:
        self._asked = asked
        self._text = asked.echo
        self._logprob = 0.0

    def add(self, delta: Delta) -> None:
        self._text += delta.text
        self._logprob += sum(delta.logprobs)

    def outputs(self, delta: Delta) -> Named:
        """The next response. A reason that is not there yet is "None", as TensorRT-LLM writes it."""
        outputs: Named = [("text_output", _strings(self._text))]
        if self._asked.wants_finish_reason:
            outputs.append(("finish_reason", _strings(str(delta.finish))))
        if self._asked.wants_stop_reason:
            outputs.append(("stop_reason", _strings(str(delta.stop_reason))))
        if self._asked.wants_logprob:
            outputs.append(("cumulative_logprob", np.array([self._logprob], dtype=np.float32)))
        return outputs


def _read(values: dict[str, Array], engine: Engine) -> _Asked:
    tensors = Tensors(values, _ACTED, _NEUTRAL)
    texts = tensors.array("text_input")
    if texts is None or texts.size != 1:
        raise invalid("text_input", "'text_input' must hold one prompt")
    text = decoded(texts.reshape(-1)[0], "text_input")
    prompt = engine.checkpoint.tokenizer.encode(text, add_special_tokens=True)
    if not prompt:
        raise invalid("text_input", "'text_input' must not be empty")
    max_tokens = tensors.integer(_PREFIX + "max_tokens", _DEFAULT_MAX_TOKENS, 1, _MOST)
    if len(prompt) + max_tokens > engine.context:
        raise context_exceeded(engine.context, len(prompt), max_tokens, "text_input")
    streaming = tensors.flag("streaming")
    echoes = not streaming and not tensors.flag(_PREFIX + "exclude_input_from_output")
    wants_logprob = tensors.flag("return_cumulative_logprob")
    return _Asked(
        prompt=prompt,
        sampling=_sampling(tensors, engine.checkpoint.eos_ids, max_tokens, logprobs=wants_logprob),
        streaming=streaming,
        echo=text if echoes else "",
        wants_finish_reason=tensors.flag("return_finish_reason"),
        wants_stop_reason=tensors.flag("return_stop_reason"),
        wants_logprob=wants_logprob,
    )


def _sampling(tensors: Tensors, eos: frozenset[int], max_tokens: int, *, logprobs: bool) -> Sampling:
    temperature = tensors.number(_PREFIX + "temperature", 1.0, 0, 100)
    top_k = tensors.integer(_PREFIX + "top_k", 0, 0, _MOST)
    top_p = tensors.number(_PREFIX + "top_p", 1.0, 0, 1)
    chosen = any(_PREFIX + name in tensors for name in ("temperature", "top_k", "top_p"))
    greedy = not chosen or top_k == 1 or top_p == 0
    return Sampling(
        stop=StopRules(eos=eos, strings=tuple(tensors.texts(_PREFIX + "stop")), max_tokens=max_tokens),
        temperature=0.0 if greedy else temperature,
        top_p=top_p or 1.0,
        top_k=top_k,
        presence_penalty=tensors.number(_PREFIX + "presence_penalty", 0.0, -2, 2),
        frequency_penalty=tensors.number(_PREFIX + "frequency_penalty", 0.0, -2, 2),
        seed=tensors.integer(_PREFIX + "seed", 0, 0, 2**64 - 1),
        logprobs=logprobs,
    )


def _strings(text: str) -> Array:
    return np.array([text.encode()], dtype=np.object_)
