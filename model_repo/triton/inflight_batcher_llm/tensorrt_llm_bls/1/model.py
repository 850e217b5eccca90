"""Text in, text out from one Python model, which calls the core itself (Business Logic Scripting).

Each request runs on a thread of its own, because reading the core's responses blocks; execute() returns at once. In a
stream with `accumulate_tokens: true` text_output is all of the text so far, detokenised together, so that no character
stays broken; with `false` it is each step's tokens detokenised alone, as the ensemble does it.
"""

import json
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer

Array = npt.NDArray[Any]
PREPROCESSING = {
    "text_input": "QUERY",
    "decoder_text_input": "DECODER_QUERY",
    "max_tokens": "REQUEST_OUTPUT_LEN",
    "bad_words": "BAD_WORDS_DICT",
    "stop_words": "STOP_WORDS_DICT",
    "embedding_bias_words": "EMBEDDING_BIAS_WORDS",
    "embedding_bias_weights": "EMBEDDING_BIAS_WEIGHTS",
    "end_id": "END_ID",
    "pad_id": "PAD_ID",
    "prompt_table_extra_id": "PROMPT_TABLE_EXTRA_ID",
}
FROM_PREPROCESSING = {
    "INPUT_ID": "input_ids",
    "REQUEST_INPUT_LEN": "input_lengths",
    "REQUEST_OUTPUT_LEN": "request_output_len",
    "DECODER_INPUT_ID": "decoder_input_ids",
    "REQUEST_DECODER_INPUT_LEN": "decoder_input_lengths",
    "BAD_WORDS_IDS": "bad_words_list",
    "STOP_WORDS_IDS": "stop_words_list",
    "EMBEDDING_BIAS": "embedding_bias",
    "OUT_END_ID": "end_id",
    "OUT_PAD_ID": "pad_id",
    "OUT_PROMPT_TABLE_EXTRA_IDS": "prompt_table_extra_ids",
}
TO_CORE = {
    "top_k": "runtime_top_k",
    "top_p": "runtime_top_p",
    "length_penalty": "len_penalty",
    "stream": "streaming",
} | {
    name: name
    for name in [
        "temperature",
        "repetition_penalty",
        "min_tokens",
        "presence_penalty",
        "frequency_penalty",
        "seed",
        "beam_width",
        "num_return_sequences",
        "return_log_probs",
        "return_context_logits",
        "return_generation_logits",
        "return_perf_metrics",
        "return_num_input_tokens",
        "return_num_output_tokens",
        "exclude_input_in_output",
        "prompt_embedding_table",
        "prompt_vocab_size",
        "lora_task_id",
        "lora_weights",
        "lora_config",
        "guided_decoding_guide_type",
        "guided_decoding_guide",
    ]
}
REFUSED = (
    "image_input",
    "image_bytes_input",
    "image_url_input",
    "video_bytes_input",
    "num_draft_tokens",
    "use_draft_logits",
)
CORE_TEXT = ("output_ids", "sequence_length")
WATCH_S = 0.1
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class Refusal(Exception):
    """What goes back to the client as an error, with Triton's code for it."""

    def __init__(self, message: str, code: Any) -> None:
        super().__init__(message)
        self.code = code


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        given = {key: value["string_value"] for key, value in config["parameters"].items()}
        self._decoupled = bool(config["model_transaction_policy"]["decoupled"])
        self._core = given["tensorrt_llm_model_name"]
        self._accumulate = given["accumulate_tokens"] == "true"
        self._skip_special_tokens = given["skip_special_tokens"] == "true"
        self._tokenizer = Tokenizer.from_file(str(Path(given["tokenizer_dir"]) / "tokenizer.json"))
        self._outputs = [output["name"] for output in config["output"] if output["name"] != "text_output"]
        self._live: dict[str, Sender] = {}  # by the id of the inner request
        self._closing = threading.Event()
        self._pool = ThreadPoolExecutor(int(given["concurrency"]), thread_name_prefix="request")
        threading.Thread(target=self._watch, name="watcher", daemon=True).start()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            values = {tensor.name(): np.array(tensor.as_numpy()) for tensor in request.inputs()}
            self._pool.submit(self._serve, Sender(request.get_response_sender()), values)

    def finalize(self) -> None:
        self._closing.set()
        for inner_id in list(self._live):
            self._stop(inner_id)
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _serve(self, sender: "Sender", values: dict[str, Array]) -> None:
        """Outermost door of one request: the final flag goes out once, whatever happens."""
        last = None
        try:
            for response in self._responses(sender, values):
                if self._decoupled:
                    sender.send(response)
                else:
                    last = response
        except Refusal as refusal:
            last = pb_utils.InferenceResponse(error=pb_utils.TritonError(str(refusal), refusal.code))
        except Exception as error:  # noqa: BLE001
            pb_utils.Logger.log_error(f"tensorrt_llm_bls: {type(error).__name__}: {error}")
            message = "the model failed while it worked on this request; see the server's log"
            last = pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INTERNAL))
        sender.finish(last)

    def _responses(self, sender: "Sender", values: dict[str, Array]) -> Any:
        """The responses to the client, as the core's come."""
        for name in REFUSED:
            if name in values and values[name].any():
                raise Refusal(
                    f"'{name}' is not supported by this model: leave it out", pb_utils.TritonError.UNSUPPORTED
                )
        inner_id = str(uuid.uuid4())
        core = self._core_request(values, inner_id)
        texts = Texts(self._decode, values, accumulate=self._accumulate)
        self._live[inner_id] = sender
        try:
            for outputs in _outputs(self._exec(core)):
                if outputs and not texts.all_stopped:
                    yield self._response(texts, outputs)
                    if texts.all_stopped:
                        self._stop(inner_id)
        finally:
            del self._live[inner_id]
        if sender.is_cancelled:
            raise Refusal("the request was cancelled", pb_utils.TritonError.CANCELLED)

    def _core_request(self, values: dict[str, Array], inner_id: str) -> Any:
        inputs = [pb_utils.Tensor(PREPROCESSING[name], values[name]) for name in PREPROCESSING if name in values]
        asked = pb_utils.InferenceRequest(
            model_name="preprocessing",
            inputs=inputs,
            requested_output_names=list(FROM_PREPROCESSING),
            request_id=inner_id,
        )
        [prepared] = _outputs([asked.exec()])
        tensors = [pb_utils.Tensor(FROM_PREPROCESSING[name], tensor.as_numpy()) for name, tensor in prepared.items()]
        # `reshape` took the dimension of 1 from scalars; the core's own reshape wants it.
        tensors += [
            pb_utils.Tensor(TO_CORE[name], array if array.ndim > 1 else array.reshape(-1, 1))
            for name, array in values.items()
            if name in TO_CORE
        ]
        return pb_utils.InferenceRequest(
            model_name=self._core,
            inputs=tensors,
            requested_output_names=[*CORE_TEXT, *self._outputs],
            request_id=inner_id,
        )

    def _response(self, texts: "Texts", outputs: dict[str, Any]) -> Any:
        sequence = int(outputs["sequence_index"].as_numpy().item()) if "sequence_index" in outputs else 0
        length = int(outputs["sequence_length"].as_numpy()[0, 0])
        ids = outputs["output_ids"].as_numpy()[0, 0, :length].tolist()
        text = texts.take(sequence, ids)
        tensors = [pb_utils.Tensor("text_output", np.array([text.encode()], dtype=np.object_))]
        tensors += [outputs[name] for name in self._outputs if name in outputs]  # as they are, logits may be on a GPU
        return pb_utils.InferenceResponse(tensors)

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=self._skip_special_tokens)
        return text

    def _watch(self) -> None:
        """A client that leaves before its next token would not be noticed by the thread that waits for it."""
        while not self._closing.wait(WATCH_S):
            for inner_id, sender in list(self._live.items()):
                if sender.is_cancelled:
                    self._stop(inner_id)

    def _stop(self, inner_id: str) -> None:
        """Tell the core to end a request, by its id."""
        inputs = [
            pb_utils.Tensor("input_ids", np.zeros((1, 1), dtype=np.int32)),
            pb_utils.Tensor("input_lengths", np.zeros((1, 1), dtype=np.int32)),
            pb_utils.Tensor("request_output_len", np.zeros((1, 1), dtype=np.int32)),
            pb_utils.Tensor("stop", np.ones((1, 1), dtype=bool)),
        ]
        asked = pb_utils.InferenceRequest(
            model_name=self._core, inputs=inputs, requested_output_names=["output_ids"], request_id=inner_id
        )
        for _ in self._exec(asked):
            pass

    def _exec(self, asked: Any) -> Any:
        """The core's responses, one by one."""
        return asked.exec(decoupled=True) if self._decoupled else [asked.exec()]


class Sender:
    """Triton's response sender, for two threads.

    One sends, another asks whether the client has left: never both at once, because the server frees with the final
    flag what the question reads (tritonserver 2.51 crashes).
    """

    def __init__(self, sender: Any) -> None:
        self._sender = sender
        self._lock = threading.Lock()
        self._over = False

    @property
    def is_cancelled(self) -> bool:
        """Whether the client has left before its last response."""
        with self._lock:
            return not self._over and bool(self._sender.is_cancelled())

    def send(self, response: Any) -> None:
        """A response that is not the last."""
        with self._lock:
            self._sender.send(response)

    def finish(self, response: Any) -> None:
        """The last response, or the final flag alone."""
        with self._lock:
            self._over = True
            if response is None:
                self._sender.send(flags=FINAL)
            else:
                self._sender.send(response, flags=FINAL)


class Texts:
    """The text of each returned sequence so far, and whether one of the stop words ended it."""

    def __init__(self, decode: Any, values: dict[str, Array], *, accumulate: bool) -> None:
        self._decode = decode
        self._accumulate = accumulate and bool(values.get("stream", np.zeros(1)).any())
        self._stop_words = [word.decode() for word in values.get("stop_words", np.empty(0)).reshape(-1) if word]
        echoes = not values.get("exclude_input_in_output", np.zeros(1)).any()
        streams = values.get("stream", np.zeros(1)).any()
        self._prompt = values["text_input"].reshape(-1)[0].decode() if echoes and not streams else ""
        count = int(values["num_return_sequences"].item()) if "num_return_sequences" in values else 1
        self._ids: list[list[int]] = [[] for _ in range(count)]
        self._said = [""] * count
        self._stopped = [False] * count

    @property
    def all_stopped(self) -> bool:
        """Whether nothing more is to be said."""
        return all(self._stopped)

    def take(self, sequence: int, ids: list[int]) -> str:
        """text_output of the next response. What comes after a stop word is cut off; the word itself stays."""
        if self._stopped[sequence]:
            return self._said[sequence] if self._accumulate else ""
        before = self._said[sequence]
        if self._accumulate:
            self._ids[sequence] += ids
            text = self._decode(self._ids[sequence])
        else:
            text = before + self._decode(ids)
        begin = len(self._prompt) if text.startswith(self._prompt) else 0
        ends = [at + len(word) for word in self._stop_words if (at := text.find(word, begin)) >= 0]
        if ends:
            self._stopped[sequence] = True
            text = text[: min(ends)]
        self._said[sequence] = text
        return text if self._accumulate else text[len(before) :]


def _outputs(responses: Any) -> Any:
    """Tensors by name of every response; raises Refusal for an error, after the last response has been read."""
    refusal = None
    for response in responses:
        if response.has_error():
            error = response.error()
            refusal = refusal or Refusal(error.message(), error.code())
        elif refusal is None:
            yield {tensor.name(): tensor for tensor in response.output_tensors()}
    if refusal is not None:
        raise refusal
