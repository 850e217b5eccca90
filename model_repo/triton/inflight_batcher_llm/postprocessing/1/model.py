"""Token ids to text, each response alone: that is what the ensemble can do. Needs numpy and tokenizers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        given = {key: value["string_value"] for key, value in json.loads(args["model_config"])["parameters"].items()}
        self._tokenizer = Tokenizer.from_file(str(Path(given["tokenizer_dir"]) / "tokenizer.json"))
        self._skip_special_tokens = given["skip_special_tokens"] == "true"

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        given = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        texts = [
            self._tokenizer.decode(ids[:length].tolist(), skip_special_tokens=self._skip_special_tokens).encode()
            for beams, lengths in zip(given["TOKENS_BATCH"], given["SEQUENCE_LENGTH"], strict=True)
            for ids, length in zip(beams, lengths, strict=True)
        ]
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array(texts, dtype=np.object_))])
