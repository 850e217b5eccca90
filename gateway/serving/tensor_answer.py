"""An answer of /v1/completions as output tensors, whole or piece by piece (see tensors.py).

Apart from both doors, whose clients hear the answer (events.py) and put here what they heard.
"""

from gateway.core.errors import EngineRefused
from gateway.serving.events import FullUsage, Listener, Logprobs
from gateway.serving.tensors import OUTPUTS, Asked, Tensor

Outputs = dict[str, Tensor]


class TensorAnswer(Listener):
    """Gathers what comes in; `piece()` and `last()` hand it out. Doors derive from it and add `flush` and `fail`."""

    asked: Asked

    def __init__(self) -> None:
        self._finish_reason = ""
        self._texts: list[str] = []
        self._logprobs: list[float] = []
        self._sum = 0.0
        self._usage: FullUsage | None = None

    def expect(self, asked: Asked) -> bytes:
        """What was asked, once that is known; its body."""
        self.asked = asked
        if asked.echo:
            self._texts.append(asked.echo)
        return asked.body

    def on_text(self, index: int, text: str, logprobs: Logprobs | None) -> None:  # noqa: ARG002 (only one is asked for)
        self._texts.append(text)
        if logprobs is not None and logprobs.token_logprobs:
            known = [value for value in logprobs.token_logprobs if value is not None]
            self._logprobs += known
            self._sum += sum(known)

    def on_finish(self, index: int, reason: str) -> None:  # noqa: ARG002
        self._finish_reason = reason

    def on_usage(self, usage: FullUsage) -> None:
        self._usage = usage

    def piece(self) -> Outputs | None:
        """What came since the last piece; None when nothing did."""
        if not self._texts:
            return None
        text = "".join(self._texts)
        outputs = self._shaped("text_output", [text.encode()])
        if self._logprobs:
            outputs |= self._shaped("output_log_probs", self._logprobs) | self._shaped("cum_log_probs", [self._sum])
        self._texts, self._logprobs = [], []
        return outputs

    def last(self) -> Outputs:
        """The rest of the text, why it ended, and the counts. Raises EngineRefused for a count the engine kept back."""
        outputs = self.piece() or self._shaped("text_output", [b""])
        outputs |= self._shaped("finish_reason", [self._finish_reason.encode()])
        if self.asked.outputs & {"num_input_tokens", "num_output_tokens"}:
            if self._usage is None:
                raise EngineRefused(502, "The engine told no token counts.", type="server_error", code="engine_error")
            outputs |= self._shaped("num_input_tokens", [self._usage.prompt_tokens])
            outputs |= self._shaped("num_output_tokens", [self._usage.output])
        return outputs

    def _shaped(self, name: str, values: list[bytes] | list[float] | list[int]) -> Outputs:
        """One sequence (and, where the request had one, a batch of one) before the values; nothing if not asked for."""
        if name not in self.asked.outputs:
            return {}
        datatype, dims = OUTPUTS[name]
        shape = [1] * (len(dims) - 1 + self.asked.is_batched) + [len(values)]
        return {name: Tensor(datatype, shape, list(values))}
