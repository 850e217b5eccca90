"""Triton behind the gateway: the chat template, the tokenizer and OpenAI's shapes are done here, because a Triton
model knows none of them. By gRPC (`grpc://`) or by HTTP's generate_stream (`http://`).

Called by serving like any backend; contracts/ say what a model can be told.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from gateway.backends.base import Patience
from gateway.backends.capabilities import Capabilities, EngineMetrics, Tested
from gateway.backends.constraint import ConstraintKind
from gateway.backends.triton.answer import Answer, Step
from gateway.backends.triton.asked import decoded_fields, read_asked, unsupported
from gateway.backends.triton.checkpoint import read_checkpoint
from gateway.backends.triton.choice import Choice
from gateway.backends.triton.contracts.base import Answering, Contract
from gateway.backends.triton.contracts.of import UnknownContract, contract_of
from gateway.backends.triton.grpc_wire import GrpcWire
from gateway.backends.triton.http_wire import HttpWire
from gateway.backends.triton.job import Job, JobStream, together
from gateway.backends.triton.prompts import read_prompts
from gateway.backends.triton.wire import Wire
from gateway.core.call import Call, Endpoint, Reply, Sink, Usage
from gateway.core.errors import EngineUnreachable, InvalidRequest, PenstockError, UpstreamError, UpstreamTimeout
from gateway.core.openai import OPENAI_FIELDS
from gateway.core.replica import Probe, Replica

MOST_ANSWERS = 512
_NOT_OFFERED = frozenset({"logit_bias", "best_of", "reasoning_effort"})
_EXTENSIONS = frozenset(
    {"top_k", "repetition_penalty", "ignore_eos", "min_tokens", "stop_token_ids", "include_stop_str_in_output",
     "structured_outputs", "skip_special_tokens", "add_special_tokens", "bad_words"}
)  # fmt: skip
_TEMPLATE_FIELDS = frozenset(
    {"chat_template_kwargs", "add_generation_prompt", "continue_final_message", "documents"}
)  # fmt: skip
_WARM_UP: dict[Endpoint, dict[str, Any]] = {
    Endpoint.CHAT: {"messages": [{"role": "user", "content": "Hello"}]},
    Endpoint.COMPLETIONS: {"prompt": "Hello"},
}
_NOTHING = Step(tokens=0)  # a final flag alone


class Triton:
    """`fields` are those of all contracts; what the model in force cannot be told is refused request by request."""

    kind: ClassVar[str] = "triton"
    fields: ClassVar[Mapping[Endpoint, frozenset[str]]] = {
        Endpoint.CHAT: OPENAI_FIELDS[Endpoint.CHAT] - _NOT_OFFERED | _EXTENSIONS | _TEMPLATE_FIELDS,
        Endpoint.COMPLETIONS: OPENAI_FIELDS[Endpoint.COMPLETIONS] - _NOT_OFFERED | _EXTENSIONS,
    }
    capabilities: ClassVar[Capabilities] = Capabilities(
        tested=Tested.CPU,
        constraints=frozenset(ConstraintKind),
        tools=True,
        logprobs=True,
        quantization=None,
        checkpoints=False,  # Triton serves a compiled engine; the folder is for tokenizer and template
        needs_checkpoint=True,
        metrics=EngineMetrics(
            "/metrics",  # of the metrics port
            'nv_trt_llm_request_metrics{request_type="waiting"}',
            'nv_trt_llm_request_metrics{request_type="active"}',
            'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction"}',
        ),
    )

    def __init__(self, patience: Patience, checkpoint: Path | None = None) -> None:
        """Raises ConfigError without a readable checkpoint."""
        self._checkpoint = read_checkpoint(checkpoint)
        self._patience = patience
        self._wires: dict[str, Wire] = {}
        self._contracts: dict[str, Contract] = {}

    # ---- the contract of base.py ----

    async def complete(self, replica: Replica, call: Call) -> Reply:
        job = await self._job(replica, call)
        try:
            async with asyncio.timeout(self._patience.first_token_timeout_s):
                answers = await together([self._whole(replica, job, index) for index in range(job.count)])
        except TimeoutError:
            raise self._too_slow() from None
        usage = Usage(job.prompt_tokens, sum(answer.count for _, answer in answers))
        body = job.envelope.body([choice.whole(answer) for choice, answer in answers], usage)
        return Reply(body, usage, [choice.finish_reason for choice, _ in answers])

    async def stream(self, replica: Replica, call: Call, sink: Sink) -> None:
        job = await self._job(replica, call)
        stream = JobStream(job, sink)
        if job.count == 1:
            await self._streamed(replica, stream, 0)
        else:
            await together([self._streamed(replica, stream, index) for index in range(job.count)])

    async def probe(self, replica: Replica) -> Probe:
        reason = await self._wire(replica).why_not_ready(replica)
        if not reason:
            try:
                contract = await self._contract(replica)
            except PenstockError as error:
                reason = error.message
            else:
                card = {"id": replica.served_model, "max_model_len": self._checkpoint.context,
                        "contract": contract.name}  # fmt: skip
                return Probe(up=True, models={replica.served_model: card})
        self._contracts.pop(replica.url, None)
        return Probe(up=False, reason=reason)

    async def warm_up(self, replica: Replica, endpoint: Endpoint) -> None:
        if endpoint not in _WARM_UP:
            raise InvalidRequest(f"Engine triton does not offer /v1/{endpoint}: set warm_up to chat or completions.")
        given = {"model": replica.served_model, "max_tokens": 1, "temperature": 0, **_WARM_UP[endpoint]}
        fields = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in given.items()}
        call = Call(endpoint, replica.served_model, b"", fields, request_id="penstock-warm-up")
        reply = await self.complete(replica, call)
        if not reply.usage or not reply.usage.completion_tokens:
            raise UpstreamError("The engine answered the warm-up request without a token.")

    async def aclose(self) -> None:
        for wire in self._wires.values():
            await wire.aclose()

    # ---- one call ----

    async def _job(self, replica: Replica, call: Call) -> Job:
        contract = await self._contract(replica)
        fields = decoded_fields(call)
        asked = read_asked(call, fields, self._checkpoint)
        contract.refuse(asked)
        if asked.bad_words and contract.speaks_ids and not self._wire(replica).has_matrices:
            raise unsupported("bad_words", "lists of words are matrices, which Triton takes over gRPC only")
        prompts = await read_prompts(call.endpoint, fields, asked, self._checkpoint)
        job = Job(call, asked, prompts, contract, has_matrices=self._wire(replica).has_matrices)
        if job.count > MOST_ANSWERS:
            name = "n" if asked.n > 1 else "prompt"
            raise InvalidRequest(f"One request may ask for {MOST_ANSWERS} answers, not {job.count}.", param=name)
        return job

    async def _whole(self, replica: Replica, job: Job, index: int) -> tuple[Choice, Answer]:
        answering = job.answering(index)
        choice, answer = job.choice(index, answering.prompt), job.answer(answering)

        async def take(text: str) -> None:
            choice.collect(text, answer)

        await self._run(replica, job, answering, answer, take)
        return choice, answer

    async def _streamed(self, replica: Replica, stream: JobStream, index: int) -> None:
        job = stream.job
        answering = job.answering(index)
        choice, answer = job.choice(index, answering.prompt), job.answer(answering)

        async def take(text: str) -> None:
            if stream.take(choice, text, answer):
                await stream.drained()

        await self._run(replica, job, answering, answer, take)

    async def _run(
        self, replica: Replica, job: Job, answering: Answering, answer: Answer, take: Callable[[str], Awaitable[None]]
    ) -> None:
        """Ask for one answer and hand out its text until it is over."""
        contract = job.contract
        read = contract.reader(answering)
        try:
            infer = self._wire(replica).infer(replica, job.call, contract.tensors(answering), contract.outputs)
            async with aclosing(infer) as responses:
                async for values, final in responses:
                    step = read(values) if values else _NOTHING
                    text = answer.take(step)
                    if final or answer.finish is not None:
                        await answer.recount()
                    if final and answer.finish is None:
                        text += answer.end(step.finish)
                    if text or answer.finish is not None or answer.logprobs:
                        await take(text)
                    if answer.finish is not None and not final:
                        return  # stopped here: closing the call stops the engine
        except EngineUnreachable:
            self._contracts.pop(replica.url, None)  # it may come back as another model
            raise

    def _too_slow(self) -> PenstockError:
        limit_s = self._patience.first_token_timeout_s
        return UpstreamTimeout(f"The engine was silent for too long (no whole answer after {limit_s:g} s).")

    # ---- one replica ----

    def _wire(self, replica: Replica) -> Wire:
        scheme = replica.url.partition(":")[0]
        wire = self._wires.get(scheme)
        if wire is None:
            wire = self._wires[scheme] = GrpcWire(self._patience) if scheme == "grpc" else HttpWire(self._patience)
        return wire

    async def _contract(self, replica: Replica) -> Contract:
        """Read once, and again after the replica was away. Raises PenstockError."""
        contract = self._contracts.get(replica.url)
        if contract is None:
            try:
                contract = contract_of(await self._wire(replica).describe(replica), self._checkpoint)
            except UnknownContract as error:
                raise UpstreamError(str(error)) from None
            self._contracts[replica.url] = contract
        return contract
