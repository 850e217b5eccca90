"""Triton over HTTP, the fallback: `generate_stream` through the gateway's own HTTP client.

Always the stream, also for whole answers: `generate` refuses models that answer more than once, with an error under
HTTP 200. There is no [DONE] and no final flag; the end of the body is the end. Closing the connection aborts the
request.
Source: Triton's `protocol/extension_generate.md`; contracts section 3.3.
"""

from collections import deque
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import msgspec

from gateway.backends.base import Patience
from gateway.backends.errors import NOT_JSON, engine_error
from gateway.backends.http11 import Connection, Pool
from gateway.backends.sse import EVENT_LIMIT_BYTES, payloads
from gateway.backends.triton.status import message_error
from gateway.backends.triton.tensors import ModelInfo, Outputs, Spec, Tensor
from gateway.backends.triton.wire import unique_id
from gateway.core.call import Call
from gateway.core.errors import PenstockError, UpstreamError, UpstreamTimeout
from gateway.core.replica import Replica

ANSWER_LIMIT_BYTES = 2**20
MOST_HELD = 256
"""Events read from the engine and not yet taken, before it is not read any more."""
_FINAL = Outputs({}, final=True)


class HttpWire:
    has_matrices = False  # generate reads one list a tensor

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._pools: dict[str, Pool] = {}

    async def why_not_ready(self, replica: Replica) -> str:
        try:
            status, _ = await self._get(replica, f"{_model(replica)}/ready")
        except PenstockError as error:
            return error.message
        return "" if status == 200 else f"model {replica.served_model!r} is not ready: HTTP {status}"

    async def describe(self, replica: Replica) -> ModelInfo:
        metadata = await self._json(replica, _model(replica))
        config = await self._json(replica, f"{_model(replica)}/config")
        try:
            return ModelInfo(
                name=replica.served_model,
                inputs={
                    tensor["name"]: Spec(tensor["datatype"], len(tensor["shape"])) for tensor in metadata["inputs"]
                },
                outputs={
                    tensor["name"]: Spec(tensor["datatype"], len(tensor["shape"])) for tensor in metadata["outputs"]
                },
                platform=metadata.get("platform", ""),
                decoupled=config.get("model_transaction_policy", {}).get("decoupled", False),
                parameters={name: value["string_value"] for name, value in config.get("parameters", {}).items()},
            )
        except (KeyError, TypeError, AttributeError):
            raise UpstreamError("The model's metadata is not what KServe v2 describes.") from None

    async def infer(
        self, replica: Replica, call: Call, tensors: Sequence[Tensor], outputs: Sequence[str]
    ) -> AsyncGenerator[Outputs, None]:
        body = msgspec.json.encode({"id": unique_id(call)} | {tensor.name: _json_value(tensor) for tensor in tensors})
        path = f"{_model(replica)}/generate_stream"
        connection = await self._send(replica, "POST", path, body, call)
        try:
            reader = _Reader(connection, outputs)
            connection.pipe_to(reader.take)
            async for response in self._responses(connection, reader):
                yield response
        finally:
            connection.release()

    async def _responses(self, connection: Connection, reader: "_Reader") -> AsyncGenerator[Outputs, None]:
        idle_s = self._patience.idle_timeout_s
        idle_words = f"nothing for {idle_s:g} s in the middle of its answer"
        while True:
            while reader.held:
                yield reader.held.popleft()
                connection.expect_within(idle_s, idle_words)
            if connection.is_complete:
                await connection.progress()  # raises what broke it
                break
            connection.resume()
            await connection.progress()
        reader.finish()
        while reader.held:
            yield reader.held.popleft()
        yield _FINAL

    async def aclose(self) -> None:
        for pool in self._pools.values():
            pool.close()

    async def _send(self, replica: Replica, method: str, path: str, body: bytes, call: Call | None) -> Connection:
        """A connection with a 200 head. Raises the error the engine gave; a closed idle connection is tried again."""
        pool = self._pool(replica)
        lines = [f"{method} {pool.prefix}{path} HTTP/1.1", f"host: {pool.host_header}"]
        if replica.api_key:
            lines.append(f"authorization: Bearer {replica.api_key}")
        if call is not None:
            lines += ["content-type: application/json", f"content-length: {len(body)}"]
            lines += [f"x-request-id: {call.request_id}"]
            lines += [f"traceparent: {call.traceparent}"] if call.traceparent else []
        head = ("\r\n".join(lines) + "\r\n\r\n").encode()
        patience = self._patience
        limit_s = patience.probe_timeout_s if call is None else patience.first_token_timeout_s
        words = f"{path} took {limit_s:g} s" if call is None else f"no first token after {limit_s:g} s"
        connection = pool.take_idle() or await pool.take_fresh()
        while True:
            try:
                connection.send(head, body, float("inf") if call is None else call.deadline_s)
                connection.expect_within(limit_s, words)
                status = await connection.head()
                if call is not None and status != 200:
                    answer = await connection.read_all(ANSWER_LIMIT_BYTES)
                    raise _refused(status, answer.removeprefix(b"data:"))  # an event, also as an error
                return connection
            except UpstreamError as error:
                connection.release()
                if not (connection.is_reused and connection.nothing_received) or isinstance(error, UpstreamTimeout):
                    raise
                connection = await pool.take_fresh()
            except BaseException:
                connection.release()
                raise

    async def _get(self, replica: Replica, path: str) -> tuple[int, bytes]:
        connection = await self._send(replica, "GET", path, b"", None)
        try:
            return connection.status, await connection.read_all(ANSWER_LIMIT_BYTES)
        finally:
            connection.release()

    async def _json(self, replica: Replica, path: str) -> Any:
        status, body = await self._get(replica, path)
        if status != 200:
            raise engine_error(status, body)
        try:
            return msgspec.json.decode(body)
        except NOT_JSON as error:
            raise UpstreamError(f"{path} is not JSON: {error}.") from None

    def _pool(self, replica: Replica) -> Pool:
        pool = self._pools.get(replica.url)
        if pool is None:
            pool = self._pools[replica.url] = Pool(replica.url, connect_timeout_s=self._patience.connect_timeout_s)
        return pool


class _Reader:
    """Cuts the body into responses. `take` runs inside the read callback."""

    def __init__(self, connection: Connection, outputs: Sequence[str]) -> None:
        self._connection = connection
        self._outputs = outputs
        self._tail = b""
        self.held: deque[Outputs] = deque()

    def take(self, data: bytes) -> None:
        data = self._tail + data
        end = data.rfind(b"\n\n") + 2
        if end == 1:
            end = 0
        self._tail = data[end:]
        if len(self._tail) > EVENT_LIMIT_BYTES:
            raise UpstreamError("The engine sent an event larger than the gateway holds.")
        for payload in payloads(data[:end]):
            self._read(payload)
        if len(self.held) > MOST_HELD:
            self._connection.pause()
        self._connection.nudge()

    def finish(self) -> None:
        """What stands at the end without a blank line behind it."""
        for payload in payloads(self._tail):
            self._read(payload)

    def _read(self, payload: bytes) -> None:
        if not payload:
            return
        try:
            event = msgspec.json.decode(payload)
        except NOT_JSON as error:
            raise UpstreamError(f"The engine sent an event that is not JSON: {error}.") from None
        if not isinstance(event, dict):
            raise UpstreamError("The engine sent an event that is not a JSON object.")
        if event.get("error"):
            raise message_error(str(event["error"]))
        values = {name: _listed(event[name]) for name in self._outputs if name in event}
        self.held.append(Outputs(values, final=False))


def _refused(status: int, body: bytes) -> PenstockError:
    error = engine_error(status, body)
    if status == 404:  # not what the client named, but the model in our configuration
        return UpstreamError(f"The engine does not have the model ready: {error.message}.")
    return error


def _model(replica: Replica) -> str:
    return f"/v2/models/{replica.served_model}"


def _json_value(tensor: Tensor) -> Any:
    """Scalars as such, lists as lists: the server adds the batch dimension itself."""
    values = [value.decode() if isinstance(value, bytes) else value for value in tensor.values]
    return values[0] if len(values) == 1 else values


def _listed(value: Any) -> Sequence[Any]:
    values = value if isinstance(value, list) else [value]
    return [one.encode() if isinstance(one, str) else one for one in values]
