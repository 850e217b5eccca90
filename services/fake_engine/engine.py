"""The engine: sends each request to its answer and holds what is shared (scripts, meter, stats, slots)."""

import asyncio
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

from fake_engine import ops
from fake_engine.adapters import Adapters
from fake_engine.asked import Asked, read_body
from fake_engine.compose import Composer
from fake_engine.connection import Connection
from fake_engine.engines import ENGINES
from fake_engine.errors import RequestError, error_body
from fake_engine.exchange import Exchange
from fake_engine.metrics import Meter
from fake_engine.request import Request
from fake_engine.script import Fields, Script, ScriptError, ScriptShelf, read_script, script_in_text
from fake_engine.stats import Stats
from fake_engine.wire import reply

_ID_PREFIX = {
    "chat": "chatcmpl-", "completions": "cmpl-", "embeddings": "embd-", "responses": "resp_", "messages": "msg_",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line sets once. None: no limit (`max_running`, `max_queued`, `idle_timeout_s`)."""

    models: tuple[str, ...] = ("fake",)
    engine: str = "vllm"
    max_model_len: int = 32_768
    embedding_size: int = 64
    max_running: int | None = None
    max_queued: int | None = None
    kv_capacity_tokens: int = 1_000_000
    api_key: str | None = None
    idle_timeout_s: float | None = None
    enable_lora: bool = False
    deterministic: bool = False


class Engine:
    """Everything one fake engine knows. Handed to each connection; there is no other state."""

    def __init__(self, settings: Settings, base_script: Fields) -> None:
        self.settings = settings
        self.kind = ENGINES[settings.engine]
        self.scripts = ScriptShelf(base_script)
        self.stats = Stats()
        self.meter = Meter(self.kind, settings.models[0], settings.kv_capacity_tokens)
        self.adapters = Adapters(self.kind.lora_prefix if settings.enable_lora else None)
        self.health_status = 200
        self.connections: set[Connection] = set()
        self._composer = Composer(self.kind, settings.embedding_size)
        self._waiting: deque[Exchange] = deque()
        self._answers = 0

    def becomes_healthy(self) -> None:
        self.health_status = 200

    # ---- from connections ----

    def arriving(self, connection: Connection, request: Request) -> Script | None:
        """The headers are there. The script in force decides how the body is read, or that it is not."""
        if request.path.startswith("/_fake/"):
            connection.becomes_control()
        if not self._is_generation(request):
            return None
        request.scripted = self.scripts.take()
        script = request.scripted.script
        if script.error is not None and script.error.before_body:
            self._begin(request)
            self.stats.end("failed")
            connection.write(self._composer.scripted_error(script.error, closes=True))
            connection.linger()
        return script

    def handle(self, connection: Connection, request: Request) -> None:
        """One whole request: an exchange for a generation, an immediate answer for everything else."""
        if request.path.startswith("/_fake/"):
            self._reply(connection, request, *ops.control(self, request))
            return
        is_generation = self._is_generation(request)
        self._begin(request)
        try:
            self._authenticate(request)
            if is_generation:
                self._generate(connection, request)
            else:
                self._reply(connection, request, *ops.operate(self, request))
        except RequestError as error:
            if is_generation:
                self.stats.end("failed")
            self._refuse(connection, request, error)

    def refuse(self, connection: Connection, message: str) -> None:
        """Bytes that are not a request: answer 400 and close."""
        body, content_type = error_body(self.kind.error_shape, 400, message)
        connection.write(reply(400, body, content_type, {}, closes=True))
        connection.close()

    def release(self, exchange: Exchange) -> None:
        """An exchange ended: its slot is free, or its place in the queue."""
        if not exchange.is_running:
            self._waiting.remove(exchange)
            self.meter.waiting = len(self._waiting)
        elif self._waiting:
            asyncio.get_running_loop().call_soon(self._fill_slots)

    # ---- one generation ----

    def _generate(self, connection: Connection, request: Request) -> None:
        asked = self._read(request)
        script = self._script(request, asked)
        self._check(asked)
        self.stats.weights[self._weights(asked)] += 1
        self._answers += 1
        answer_id = _ID_PREFIX.get(asked.endpoint, f"{asked.endpoint}-") + (
            request.header("x-request-id") or f"fake-{self._answers}"
        )
        table = self._composer.compose(request, asked, script, answer_id)
        exchange = Exchange(connection, table, asked.prompt_tokens, script.cached_tokens or 0)
        connection.exchange = exchange
        self.meter.started += 1
        self._waiting.append(exchange)
        self._fill_slots()

    def _weights(self, asked: Asked) -> str:
        if asked.lora is None or self.kind.known is None:
            return self.adapters.weights(asked.model, self.settings.models)
        name, path = asked.lora
        if not Path(path).exists():
            raise RequestError(400, f"LoRA adapter path {path} does not exist")
        return name

    def _read(self, request: Request) -> Asked:
        kind, body = self.kind, bytes(request.body)
        endpoint = kind.paths[request.path]
        if kind.known is not None:
            kind.known.check(endpoint, body)
        asked = read_body(endpoint, body, usage_unasked=kind.usage_unasked)
        return replace(asked, max_tokens=None, choices=1, ignore_eos=False) if kind.hears_messages_only else asked

    def _script(self, request: Request, asked: Asked) -> Script:
        assert request.scripted is not None
        try:
            own = script_in_text(asked.last_text)
            return request.scripted.script if own is None else read_script(own, request.scripted.fields)
        except ScriptError as error:
            raise RequestError(400, str(error)) from None

    def _check(self, asked: Asked) -> None:
        models = self.settings.models
        self.adapters.refuse_unloaded(asked.model, models)
        is_known = self.kind.answers_anyone or asked.model in models or self.adapters.serves(asked.model, models)
        if not is_known:
            message = f"The model `{asked.model}` does not exist."
            raise RequestError(404, message, param="model", code="model_not_found")
        limit, output = self.settings.max_model_len, asked.max_tokens or 0
        if asked.prompt_tokens >= limit or asked.prompt_tokens + output > limit:
            message = (
                f"This model's maximum context length is {limit} tokens. However, you requested {output} output "
                f"tokens and your prompt contains {asked.prompt_tokens} input tokens."
            )
            raise RequestError(400, message, param="input_tokens", code="context_length_exceeded")
        room = self.settings.max_queued
        if room is not None and not self._has_slot() and len(self._waiting) >= room:
            self.meter.rejected["queue_full"] += 1
            raise RequestError(503, "The request queue is full.", type="Service Unavailable")

    # ---- slots ----

    def _has_slot(self) -> bool:
        limit = self.kind.slots or self.settings.max_running
        return limit is None or self.meter.running < limit

    def _fill_slots(self) -> None:
        while self._waiting and self._has_slot():
            self._waiting.popleft().start()
        self.meter.waiting = len(self._waiting)

    # ---- plain answers ----

    def _begin(self, request: Request) -> None:
        self.stats.count_path(request.method, request.path)
        if request.method == "POST":
            self.stats.remember(request.method, request.path, request.headers, bytes(request.body))
        if self._is_generation(request):
            self.stats.begin()

    def _authenticate(self, request: Request) -> None:
        key = self.settings.api_key
        if key and request.path.startswith("/v1") and request.header("authorization") != f"Bearer {key}":
            raise RequestError(401, "Unauthorized")

    def _refuse(self, connection: Connection, request: Request, error: RequestError) -> None:
        shape = error.shape or (self.kind.unauthorized if error.status == 401 else self.kind.error_shape)
        body, content_type = error_body(
            shape, error.status, error.message, type=error.type, param=error.param, code=error.code
        )
        status = self.kind.bad_request if error.status == 400 else error.status
        self._reply(connection, request, status, body, content_type)

    def _reply(self, connection: Connection, request: Request, status: int, body: bytes, content_type: str) -> None:
        data = reply(status, body, content_type, {}, closes=not request.keeps_alive)
        connection.write(data[: len(data) - len(body)] if request.method == "HEAD" else data)
        connection.answered(closes=not request.keeps_alive)

    def _is_generation(self, request: Request) -> bool:
        return request.method == "POST" and request.path in self.kind.paths
