"""The chat template: messages to one prompt string, in a sandbox, as Hugging Face renders it.

The library would apply a template by itself to plain strings; we render here and hand it token ids, so that it happens
once. Semantics follow transformers' `chat_template_utils.py`: trimmed blocks, loop controls, tojson that keeps Unicode.
"""

import datetime
import json
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

from openvino_engine.errors import ApiError, invalid


class ChatTemplate:
    """A compiled template. Raises ValueError when the checkpoint's template is not valid Jinja."""

    def __init__(self, source: str, special_texts: dict[str, str]) -> None:
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().astimezone().strftime(form)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ValueError(f"the checkpoint's chat template is not valid: {error}") from error
        self._special_texts = special_texts

    def render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, extra: dict[str, Any]) -> str:
        """The prompt, ending where the assistant begins. Raises ApiError 400 when the template refuses the messages."""
        fixed = {"messages": messages, "tools": tools, "add_generation_prompt": True}
        try:
            return self._template.render(self._special_texts | extra | fixed)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            reason = f"the model's chat template refuses these messages: {error}"
            raise invalid("messages", reason, code="chat_template_error") from error


def no_template() -> ApiError:
    """400: the checkpoint has no template, so it cannot chat."""
    return ApiError(400, "this model has no chat template: use /v1/completions", code="no_chat_template")


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
