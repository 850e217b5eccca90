"""Any engine that speaks OpenAI over HTTP/1.1; the other HTTP backends hold only what differs.

The client's body goes upstream as it came, unless the model's name, an identifier the engine does not
take, or the wish for a usage count must change it. Answers come back as bytes (sse.py).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from gateway.backends.base import Patience
from gateway.backends.capabilities import Capabilities, Tested
from gateway.backends.constraint import ConstraintKind
from gateway.backends.errors import NOT_JSON, engine_error
from gateway.backends.http11 import Connection, Pool
from gateway.backends.openai_relay import Relay, TypedRelay
from gateway.backends.sse import ABORTED, aborted, model_renames, own_reasoning
from gateway.backends.typed_events import TYPED, read_answer
from gateway.core.call import Call, Endpoint, Reply, Sink, Usage
from gateway.core.errors import PenstockError, UpstreamError, UpstreamTimeout
from gateway.core.openai import OPENAI_FIELDS
from gateway.core.replica import Probe, Replica

ANSWER_LIMIT_BYTES = 256 * 2**20
ERROR_LIMIT_BYTES = 2**20


class _AnswerChoice(msgspec.Struct, gc=False):
    finish_reason: str | None = None


class _Answer(msgspec.Struct, gc=False):
    choices: list[_AnswerChoice] = []
    data: msgspec.Raw = msgspec.Raw(b"")  # embeddings
    usage: Usage | None = None
    error: Any = None


class _Models(msgspec.Struct):
    data: list[dict[str, object]] = []


_UNLIKE = TYPED | {Endpoint.RERANK, Endpoint.SCORE}
"""Endpoints whose answers do not look like chat's."""

_DECODE_ANSWER = msgspec.json.Decoder(_Answer).decode
_DECODE_MODELS = msgspec.json.Decoder(_Models).decode

_WARM_UP: dict[Endpoint, dict[str, object]] = {
    Endpoint.CHAT: {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1},
    Endpoint.COMPLETIONS: {"prompt": "Hello", "max_tokens": 1},
    Endpoint.EMBEDDINGS: {"input": "Hello"},
}


class OpenAIHTTP:
    """The plain dialect: OpenAI's own fields, `/v1/models` as the probe."""

    kind: ClassVar[str] = "openai"
    fields: ClassVar[Mapping[Endpoint, frozenset[str]]] = OPENAI_FIELDS
    probe_path: ClassVar[str] = "/v1/models"
    has_extra_events: ClassVar[bool] = False
    """Its streams hold events of its own, without choices, that clients would stumble over."""
    usage_wish: ClassVar[msgspec.Raw] = msgspec.Raw(b'{"include_usage":true}')
    """The `stream_options` that ask it for a usage count."""
    capabilities: ClassVar[Capabilities] = Capabilities(
        tested=Tested.CONTRACT,
        constraints=frozenset({ConstraintKind.JSON_OBJECT, ConstraintKind.JSON}),
        tools=True,
        vision=True,
        logprobs=True,
        top_logprobs=20,
        quantization=None,
        checkpoints=False,
    )

    def __init__(self, patience: Patience, checkpoint: Path | None = None) -> None:
        self.patience = patience
        self.checkpoint = checkpoint
        self._pools: dict[str, Pool] = {}
        self._first_words = f"no first token after {patience.first_token_timeout_s:g} s"

    # ---- the contract ----

    async def complete(self, replica: Replica, call: Call) -> Reply:
        connection = await self._send(replica, call, self._body(replica, call))
        try:
            body = await connection.read_all(ANSWER_LIMIT_BYTES)
        finally:
            connection.release()
        return self._reply(body, replica, call)

    async def stream(self, replica: Replica, call: Call, sink: Sink) -> None:
        connection = await self._send(replica, call, self._body(replica, call))
        try:
            if not connection.headers.get(b"content-type", b"").startswith(b"text/event-stream"):
                raise engine_error(502, await connection.read_all(ERROR_LIMIT_BYTES))
            upstream = self.upstream_model(replica, call)
            rename = (upstream, call.model) if upstream != call.model else None
            relay = (TypedRelay if call.endpoint in TYPED else Relay)(
                connection,
                sink,
                self.patience.idle_timeout_s,
                rename,
                drop_usage=not call.wants_usage,
                drop_extras=self.has_extra_events,
            )
            connection.pipe_to(relay.take)
            await relay.run()
        finally:
            connection.release()

    async def probe(self, replica: Replica) -> Probe:
        try:
            status, body = await self._get(replica, self.probe_path)
            if status != 200:
                return Probe(up=False, reason=f"{self.probe_path} answers HTTP {status}")
            if self.probe_path != "/v1/models":
                status, body = await self._get(replica, "/v1/models")
            models = _DECODE_MODELS(body).data if status == 200 else []
        except PenstockError as error:
            return Probe(up=False, reason=error.message)
        except NOT_JSON as error:
            return Probe(up=False, reason=f"/v1/models is not an OpenAI model list: {error}")
        return Probe(up=True, models={str(model.get("id")): model for model in models})

    async def warm_up(self, replica: Replica, endpoint: Endpoint) -> None:
        body = msgspec.json.encode({"model": replica.served_model, **_WARM_UP[endpoint]})
        call = Call(endpoint, replica.served_model, body, {}, stream=False, wants_usage=False,
                    request_id="penstock-warm-up", received_s=0.0)  # fmt: skip
        connection = await self._send(replica, call, body)
        try:
            answer = _DECODE_ANSWER(await connection.read_all(ANSWER_LIMIT_BYTES))
        except NOT_JSON as error:
            raise UpstreamError(f"The engine's answer is not JSON: {error}.") from None
        finally:
            connection.release()
        if not answer.choices and not bytes(answer.data):
            raise UpstreamError("The engine answered the warm-up request without a token.")

    async def aclose(self) -> None:
        for pool in self._pools.values():
            pool.close()

    # ---- what a dialect may change ----

    def upstream_model(self, replica: Replica, call: Call) -> str:
        """The name by which the engine knows what is asked for."""
        return call.adapter or replica.served_model

    def dialect(self, call: Call, fields: Mapping[str, msgspec.Raw]) -> Mapping[str, msgspec.Raw]:  # noqa: ARG002
        """`fields`, those of the call that the engine takes, as it spells them; the same object when nothing differs.

        Raises InvalidRequest for a value the engine cannot honour.
        """
        return fields

    def answer(self, call: Call, body: bytes) -> bytes:  # noqa: ARG002
        """A rerank or a score in the shape clients know; mostly `body` itself. May raise what msgspec raises."""
        return body

    # ---- one attempt ----

    async def _send(self, replica: Replica, call: Call, body: bytes) -> Connection:
        """Send and await the status; a connection with a 200 head, or the error the engine gave."""
        pool = self._pool(replica)
        head = self._head(pool, replica, call, len(body))
        connection = pool.take_idle() or await pool.take_fresh()
        while True:
            try:
                connection.send(head, body, call.deadline_s)
                connection.expect_within(self.patience.first_token_timeout_s, self._first_words)
                status = await connection.head()
                if status == 200:
                    return connection
                answer = await connection.read_all(ERROR_LIMIT_BYTES)
                raise engine_error(status, answer, connection.headers.get(b"retry-after"))
            except UpstreamError as error:
                connection.release()
                if not (connection.is_reused and connection.nothing_received) or isinstance(error, UpstreamTimeout):
                    raise
                connection = await pool.take_fresh()  # the engine had closed an idle connection: its right
            except BaseException:
                connection.release()
                raise

    def _body(self, replica: Replica, call: Call) -> bytes:
        changes: dict[str, msgspec.Raw] = {}
        upstream = self.upstream_model(replica, call)
        if upstream != call.model:
            changes["model"] = msgspec.Raw(msgspec.json.encode(upstream))
        if call.stream and self._must_ask_for_usage(call):
            changes["stream_options"] = self.usage_wish
        accepted = self.fields[call.endpoint]
        fields: Mapping[str, msgspec.Raw] = call.fields
        if not fields.keys() <= accepted:
            fields = {name: raw for name, raw in fields.items() if name in accepted}
        fields = self.dialect(call, fields)
        if fields is call.fields and not changes:
            return call.body
        return msgspec.json.encode({**fields, **changes})

    def _must_ask_for_usage(self, call: Call) -> bool:
        """Tokens are always counted; `wants_usage` without the field is the wish of a door that translates."""
        is_asked = call.wants_usage and "stream_options" in call.fields
        return not is_asked and "stream_options" in self.fields[call.endpoint]

    def _head(self, pool: Pool, replica: Replica, call: Call, length: int) -> bytes:
        start = pool.heads.get(call.endpoint)
        if start is None:
            start = pool.heads[call.endpoint] = self._start_of_head(pool, replica, call.endpoint)
        trace = f"traceparent: {call.traceparent}\r\n" if call.traceparent else ""
        return f"{start}x-request-id: {call.request_id}\r\n{trace}content-length: {length}\r\n\r\n".encode()

    def _start_of_head(self, pool: Pool, replica: Replica, endpoint: Endpoint) -> str:
        auth = f"authorization: Bearer {replica.api_key}\r\n" if replica.api_key else ""
        return (
            f"POST {pool.prefix}/v1/{endpoint.value} HTTP/1.1\r\nhost: {pool.host_header}\r\n{auth}"
            "user-agent: penstock\r\ncontent-type: application/json\r\n"
        )

    def _reply(self, body: bytes, replica: Replica, call: Call) -> Reply:
        upstream = self.upstream_model(replica, call)
        if upstream != call.model:
            for old, new in model_renames(upstream, call.model):
                body = body.replace(old, new, 1)
        try:
            if call.endpoint in _UNLIKE:
                return self._unlike_reply(body, call)
            answer = _DECODE_ANSWER(body)
        except NOT_JSON as error:
            raise UpstreamError(f"The engine's answer is not the JSON it should be: {error}.") from None
        if answer.error:
            raise engine_error(502, body)
        reasons = [choice.finish_reason for choice in answer.choices if choice.finish_reason]
        if ABORTED in reasons:
            raise aborted()
        if b'"reasoning_content":' in body and b'"reasoning":"' not in body and b'"reasoning": "' not in body:
            body = own_reasoning(body)
        return Reply(body, answer.usage, reasons)

    def _unlike_reply(self, body: bytes, call: Call) -> Reply:
        if call.endpoint in TYPED:
            return read_answer(body)
        body = self.answer(call, body)
        answer = _DECODE_ANSWER(body)
        if answer.error:
            raise engine_error(502, body)
        return Reply(body, answer.usage)

    async def _get(self, replica: Replica, path: str) -> tuple[int, bytes]:
        pool = self._pool(replica)
        connection = pool.take_idle() or await pool.take_fresh()
        auth = f"authorization: Bearer {replica.api_key}\r\n" if replica.api_key else ""
        head = f"GET {pool.prefix}{path} HTTP/1.1\r\nhost: {pool.host_header}\r\n{auth}\r\n"
        return await self._ask(connection, head, b"", self.patience.probe_timeout_s, path)

    async def _operate(self, replica: Replica, path: str, order: Mapping[str, object], timeout_s: float) -> bytes:
        """POST an order to one of the engine's own routes, on a connection of its own: it may change something, so
        it must not be sent twice. Raises the engine's error for anything but 200."""
        pool, body = self._pool(replica), msgspec.json.encode(order)
        auth = f"authorization: Bearer {replica.api_key}\r\n" if replica.api_key else ""
        head = (
            f"POST {pool.prefix}{path} HTTP/1.1\r\nhost: {pool.host_header}\r\n{auth}"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        status, answer = await self._ask(await pool.take_fresh(), head, body, timeout_s, path)
        if status != 200:
            raise engine_error(status, answer)
        return answer

    async def _ask(
        self, connection: Connection, head: str, body: bytes, timeout_s: float, path: str
    ) -> tuple[int, bytes]:
        try:
            connection.send(head.encode(), body, float("inf"))
            connection.expect_within(timeout_s, f"{path} took {timeout_s:g} s")
            return await connection.head(), await connection.read_all(ERROR_LIMIT_BYTES)
        finally:
            connection.release()

    def _pool(self, replica: Replica) -> Pool:
        pool = self._pools.get(replica.url)
        if pool is None:
            pool = self._pools[replica.url] = Pool(replica.url, connect_timeout_s=self.patience.connect_timeout_s)
        return pool
