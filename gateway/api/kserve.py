"""KServe v2 over HTTP, the part that asks a model: infer, generate and generate_stream, whatever its engine.

Names and meanings are those of the gRPC door (serving/tensors.py). Errors are `{"error": "text"}`; a stream has no
[DONE], and a late error is its last event. Sources: Triton's generate extension, KServe's generate_rest.yaml.
"""

from collections.abc import Callable

import msgspec

from gateway.api.http_client import HttpClient, guarded
from gateway.api.kserve_request import InferBody, read_generate, read_infer
from gateway.api.wire import Handler
from gateway.core.call import Endpoint, Reply
from gateway.core.errors import InvalidRequest, NotFound, PenstockError
from gateway.serving.intake import Intake
from gateway.serving.tensor_answer import Outputs, TensorAnswer
from gateway.serving.tensor_bytes import pack
from gateway.serving.tensors import VERSION, Reading, check_version, in_tensor_words
from gateway.serving.translator import Translator

DOOR = "kserve"
PREFIX = b"/v2/models/"
_JSON_SIZE = b"inference-header-content-length"
_SIZE_DIGITS = 20  # Python refuses to read a number of some thousands


def kserve_error(error: PenstockError) -> bytes:
    return msgspec.json.encode({"error": error.message})


def kserve_route(intake: Intake) -> Handler:
    """For every POST below `PREFIX`; a model's name may contain slashes."""
    answers: dict[str, Callable[[HttpClient, str], Answer]] = {
        "infer": InferAnswer,
        "generate": GenerateAnswer,
        "generate_stream": GenerateStreamAnswer,
    }

    async def answer(client: HttpClient, received_s: float) -> None:
        target, _, verb = client.path[len(PREFIX) :].decode("utf-8", "replace").rpartition("/")
        make = answers.get(verb)
        if make is None or not target:
            client.voice = Answer(client, target)
            raise NotFound(f"POST /v2/models/<model>/ takes infer, generate and generate_stream, not {verb[:128]!r}.")
        client.voice = asked = make(client, target)
        asker = intake.asker(DOOR, client.headers)
        asker.request_id, asker.received_s = client.request_id, received_s
        await intake.serve(asker, Endpoint.COMPLETIONS, asked.take_body, asked)

    return guarded(Endpoint.COMPLETIONS, intake.service, answer, door=DOOR)


class Answer(TensorAnswer, Translator):
    """The client of one request. `target`: the model's name, and perhaps its version."""

    def __init__(self, client: HttpClient, target: str) -> None:
        TensorAnswer.__init__(self)
        Translator.__init__(self, client)
        name, found, version = target.rpartition("/versions/")
        self.model, self.version = (name, version) if found else (target, "")
        self.id = ""
        self._http = client

    def take_body(self) -> bytes:
        """The body for /v1/completions. Raises PenstockError."""
        check_version(self.model, self.version)
        body, self._http.body = bytes(self._http.body), b""
        return self.expect_of(body)

    def expect_of(self, body: bytes) -> bytes:
        raise NotImplementedError

    def heading(self) -> dict[str, object]:
        told: dict[str, object] = {"id": self.id} if self.id else {}
        return told | {"model_name": self.model, "model_version": VERSION}

    def fail(self, error: PenstockError) -> None:
        super().fail(in_tensor_words(error))

    def error_body(self, error: PenstockError) -> bytes:
        return kserve_error(error)

    def on_failure(self, error: PenstockError) -> None:
        self.out.append(b"data: %b\n\n" % kserve_error(error))


class GenerateAnswer(Answer):
    """One JSON object with a key for each output."""

    may_stream: bool | None = None

    def expect_of(self, body: bytes) -> bytes:
        self.id, tensors = read_generate(body)
        return self.expect(Reading(self.model, tensors).asked(stream=self.may_stream))

    def whole(self) -> bytes:
        return self._json(self.last())

    def _json(self, outputs: Outputs) -> bytes:
        values = {name: [_text(value) for value in tensor.values] for name, tensor in outputs.items()}
        return msgspec.json.encode(
            self.heading() | {name: given if name == "output_log_probs" else given[0] for name, given in values.items()}
        )


class GenerateStreamAnswer(GenerateAnswer):
    """Server-sent events; one, if the client does not want its answer in pieces."""

    may_stream = True

    def reply(self, reply: Reply) -> None:
        self.hear(reply.body)
        self.out.append(self._event(self.last()))
        self._http.open_stream(self.out.pop())
        self._http.close_stream()

    def on_end(self) -> None:
        self.out.append(self._event(self.last()))

    def flush(self, *, is_first: bool, is_last: bool) -> None:  # noqa: ARG002
        """Opens the stream with its first words, whenever they come."""
        if not is_last and (outputs := self.piece()):
            self.out.append(self._event(outputs))
        if self.out and not (is_last and self.started):
            super().flush(is_first=not self.started, is_last=False)
        if is_last:
            super().flush(is_first=False, is_last=True)

    def _event(self, outputs: Outputs) -> bytes:
        return b"data: %b\n\n" % self._json(outputs)


class InferAnswer(Answer):
    """Tensors by name, as JSON or, where the client wants it, as bytes after the JSON."""

    asked_for: InferBody

    def expect_of(self, body: bytes) -> bytes:
        given = self._http.headers.get(_JSON_SIZE)
        if given is not None and not (given.isdigit() and len(given) < _SIZE_DIGITS and int(given) <= len(body)):
            raise InvalidRequest("The header Inference-Header-Content-Length is not within the body.")
        self.asked_for, tensors = read_infer(body, None if given is None else int(given))
        self.id = self.asked_for.id
        names = [output.name for output in self.asked_for.outputs]
        return self.expect(Reading(self.model, tensors, names).asked())

    def reply(self, reply: Reply) -> None:
        self.hear(reply.body)
        outputs, tail = [], []
        for name, tensor in self.last().items():
            output: dict[str, object] = {"name": name, "datatype": tensor.datatype, "shape": tensor.shape}
            if self.asked_for.binary(name):
                tail.append(pack(tensor))
                outputs.append(output | {"parameters": {"binary_data_size": len(tail[-1])}})
            else:
                outputs.append(output | {"data": [_text(value) for value in tensor.values]})
        head = msgspec.json.encode(self.heading() | {"outputs": outputs})
        kind = b"content-type: application/json\r\n"
        if tail:
            kind = b"content-type: application/octet-stream\r\n%b: %d\r\n" % (_JSON_SIZE, len(head))
        self._http.respond(200, self._http.id_header + kind, head + b"".join(tail))


def _text(value: object) -> object:
    return value.decode() if isinstance(value, bytes) else value
