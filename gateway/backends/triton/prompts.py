"""The prompts of a call, rendered and tokenized here, and checked against the model's context."""

from typing import Any, NamedTuple

import msgspec

from gateway.backends.triton.asked import Asked
from gateway.backends.triton.checkpoint import Checkpoint
from gateway.backends.triton.messages import read_messages
from gateway.backends.triton.template import until_final_message
from gateway.backends.triton.text import encode
from gateway.backends.triton.tools import OPEN
from gateway.core.call import Endpoint
from gateway.core.errors import InvalidRequest

_MOST = 2048


class Prompt(NamedTuple):
    """`text` is what `ids` are the tokens of."""

    text: str
    ids: list[int]


async def read_prompts(
    endpoint: Endpoint, fields: dict[str, Any], asked: Asked, checkpoint: Checkpoint
) -> list[Prompt]:
    """Raises InvalidRequest for prompts that cannot be, or do not fit the context."""
    if endpoint is Endpoint.CHAT:
        add = fields.get("add_special_tokens", False)
        prompts = [await _encoded(_chat_text(fields, asked, checkpoint), checkpoint, add_special_tokens=add)]
    else:
        add = fields.get("add_special_tokens", True)
        prompts = [await _prompt(given, checkpoint, add) for given in _listed(fields["prompt"])]
    for prompt in prompts:
        _check_length(prompt, asked, checkpoint, "messages" if endpoint is Endpoint.CHAT else "prompt")
    return prompts


def _chat_text(fields: dict[str, Any], asked: Asked, checkpoint: Checkpoint) -> str:
    template = checkpoint.template
    if template is None:
        raise InvalidRequest(
            "This model's checkpoint has no chat template: use /v1/completions.",
            param="messages",
            code="no_chat_template",
        )
    messages = read_messages(fields["messages"])
    goes_on = fields.get("continue_final_message", False)
    if goes_on and fields.get("add_generation_prompt"):
        raise InvalidRequest(
            "'continue_final_message' and 'add_generation_prompt' exclude each other.", param="continue_final_message"
        )
    names = fields.get("chat_template_kwargs", {}) | {
        "tools": asked.tools.offered,
        "documents": fields.get("documents"),
        "add_generation_prompt": fields.get("add_generation_prompt", not goes_on),
    }
    text = template.render(messages, **{name: value for name, value in names.items() if name != "messages"})
    if goes_on:
        text = until_final_message(text, messages[-1])
    return text if asked.tools.forced is None else text + OPEN + template.after_tool_mark


def _listed(prompt: Any) -> list[Any]:
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        return [prompt]
    if len(prompt) > _MOST:
        raise InvalidRequest(f"'prompt' holds more than {_MOST} prompts.", param="prompt")
    return list(prompt)


async def _prompt(given: Any, checkpoint: Checkpoint, add_special_tokens: bool) -> Prompt:
    if isinstance(given, str):
        return await _encoded(given, checkpoint, add_special_tokens=add_special_tokens)
    try:
        ids = msgspec.convert(given, list[int])
    except msgspec.ValidationError:
        raise InvalidRequest("'prompt' must be text, token ids, or a list of either.", param="prompt") from None
    rows = checkpoint.tokens.rows
    if not ids or not all(0 <= token < rows for token in ids):
        raise InvalidRequest(f"A prompt of token ids must hold some, from 0 to {rows - 1}.", param="prompt")
    return Prompt(checkpoint.tokens.decode(ids), ids)


async def _encoded(text: str, checkpoint: Checkpoint, *, add_special_tokens: bool) -> Prompt:
    ids = await encode(checkpoint.tokens, text, add_special_tokens=add_special_tokens)
    if not ids:
        raise InvalidRequest("A prompt must have at least one token.", param="prompt")
    return Prompt(text, ids)


def _check_length(prompt: Prompt, asked: Asked, checkpoint: Checkpoint, param: str) -> None:
    length, most = len(prompt.ids), asked.ending.max_tokens or 1
    if length + most > checkpoint.context:
        raise InvalidRequest(
            f"This model's maximum context length is {checkpoint.context} tokens. However, you requested "
            f"{length + most} tokens ({length} in the prompt, {most} in the completion). Please reduce the prompt or "
            "the completion length.",
            param=param,
            code="context_length_exceeded",
        )
