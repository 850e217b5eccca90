"""Text to token ids, and words to TensorRT-LLM's word lists. Needs numpy and tokenizers, on CPU as in the GPU image.

B prompts a request; their ids are padded to the longest, INPUT_LEN says where each ends.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer

Array = npt.NDArray[Any]


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        given = {key: value["string_value"] for key, value in json.loads(args["model_config"])["parameters"].items()}
        folder = Path(given["tokenizer_dir"])
        self._add_special_tokens = given["add_special_tokens"] == "true"
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._end_id = self._special_id(folder, "eos_token")
        pad_id = self._special_id(folder, "pad_token")
        self._pad_id = self._end_id if pad_id is None else pad_id
        self._rows = self._tokenizer.get_vocab_size()

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        try:
            outputs = self._outputs({tensor.name(): tensor.as_numpy() for tensor in request.inputs()})
        except ValueError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG))
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])

    def _outputs(self, given: dict[str, Array]) -> dict[str, Array]:
        prompts = [self._encode(row[0], "text_input", self._add_special_tokens) for row in given["QUERY"]]
        count = len(prompts)
        outputs = {
            "INPUT_ID": _padded(prompts, self._pad_id or 0),
            "REQUEST_INPUT_LEN": np.array([[len(prompt)] for prompt in prompts], dtype=np.int32),
            "REQUEST_OUTPUT_LEN": given["REQUEST_OUTPUT_LEN"].astype(np.int32),
            "BAD_WORDS_IDS": self._word_lists(given.get("BAD_WORDS_DICT"), "bad_words", count),
            "STOP_WORDS_IDS": self._word_lists(given.get("STOP_WORDS_DICT"), "stop_words", count),
            "EMBEDDING_BIAS": self._embedding_bias(given, count),
        }
        for name, own in (("END_ID", self._end_id), ("PAD_ID", self._pad_id)):
            value = given.get(name)
            if value is None and own is not None:
                value = np.full((count, 1), own)
            if value is not None:
                outputs[f"OUT_{name}"] = value.astype(np.int32)
        if "DECODER_QUERY" in given:
            decoder = [
                self._encode(row[0], "decoder_text_input", self._add_special_tokens) for row in given["DECODER_QUERY"]
            ]
            outputs["DECODER_INPUT_ID"] = _padded(decoder, self._pad_id or 0)
            outputs["REQUEST_DECODER_INPUT_LEN"] = np.array([[len(ids)] for ids in decoder], dtype=np.int32)
        if "PROMPT_TABLE_EXTRA_ID" in given:
            in_table = outputs["INPUT_ID"] >= self._rows
            outputs["OUT_PROMPT_TABLE_EXTRA_IDS"] = np.where(in_table, given["PROMPT_TABLE_EXTRA_ID"], 0).astype(
                np.uint64
            )
        return outputs

    def _word_lists(self, rows: Array | None, name: str, count: int) -> Array:
        """[B, 2, n]: row 0 ids, row 1 where each word ends, padded with 0 and -1; n is 1 at least."""
        words_of = [[word for word in row if word] for row in rows] if rows is not None else [[]] * count
        encoded = [[self._encode(word, name, add_special_tokens=False) for word in words] for words in words_of]
        flat = [[token for word in words for token in word] for words in encoded]
        ends = [np.cumsum([len(word) for word in words]).astype(int).tolist() for words in encoded]
        width = max(1, *map(len, flat), *map(len, ends))
        lists = [
            [ids + [0] * (width - len(ids)), at + [-1] * (width - len(at))] for ids, at in zip(flat, ends, strict=True)
        ]
        return np.array(lists, dtype=np.int32)

    def _embedding_bias(self, given: dict[str, Array], count: int) -> Array:
        """[B, V], or [B, 0] when no words are biased."""
        words, weights = given.get("EMBEDDING_BIAS_WORDS"), given.get("EMBEDDING_BIAS_WEIGHTS")
        if words is None or weights is None:
            if words is not None or weights is not None:
                raise ValueError("'embedding_bias_words' and 'embedding_bias_weights' belong together")
            return np.empty((count, 0), dtype=np.float32)
        if words.shape != weights.shape:
            raise ValueError("'embedding_bias_weights' must hold one weight a word")
        bias_BV = np.zeros((count, self._rows), dtype=np.float32)
        for row, (texts, numbers) in enumerate(zip(words, weights, strict=True)):
            for text, number in zip(texts, numbers, strict=True):
                bias_BV[row, self._encode(text, "embedding_bias_words", add_special_tokens=False)] += number
        return bias_BV

    def _encode(self, text: object, name: str, add_special_tokens: bool) -> list[int]:
        try:
            decoded = text.decode() if isinstance(text, bytes) else str(text)
        except UnicodeDecodeError as error:
            raise ValueError(f"{name!r} is not UTF-8 (byte {error.start})") from error
        ids: list[int] = self._tokenizer.encode(decoded, add_special_tokens=add_special_tokens).ids
        return ids

    def _special_id(self, folder: Path, key: str) -> int | None:
        path = folder / "tokenizer_config.json"
        value = json.loads(path.read_text("utf-8")).get(key) if path.exists() else None
        text = value.get("content") if isinstance(value, dict) else value
        token: int | None = self._tokenizer.token_to_id(text) if text else None
        return token


def _padded(rows: list[list[int]], pad: int) -> Array:
    width = max(map(len, rows))
    return np.array([row + [pad] * (width - len(row)) for row in rows], dtype=np.int32).reshape(len(rows), width)
