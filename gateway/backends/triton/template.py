"""The checkpoint's chat template: messages to a prompt, in a sandbox, as Hugging Face renders it.

Semantics follow transformers' `chat_template_utils.py`: trimmed blocks, loop controls, a tojson that keeps Unicode,
and `continue_final_message`.
"""

import datetime
import json
import re
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

from gateway.core.errors import InvalidRequest

_CALL = {"id": "call_0", "type": "function", "function": {"name": "probe", "arguments": {"a": 1}}}
_FRAME = re.compile(r'<tool_call>(\s*)\{"name": "probe"')


class ChatTemplate:
    """A compiled template. Raises jinja2.TemplateError when the source is not valid Jinja."""

    def __init__(self, source: str, special_texts: dict[str, str]) -> None:
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().astimezone().strftime(form)
        self._template = environment.from_string(source)
        self._special_texts = special_texts
        self.after_tool_mark = self._blanks_after_tool_mark()

    def render(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool = True, **names: Any) -> str:
        """`names` are what the template may read besides: tools, documents, chat_template_kwargs.

        Raises InvalidRequest when the template refuses the messages.
        """
        given = self._special_texts | {"tools": None, "documents": None} | names
        given |= {"messages": messages, "add_generation_prompt": add_generation_prompt}
        try:
            return self._template.render(given)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise InvalidRequest(
                f"The model's chat template refuses these messages: {error}.",
                param="messages",
                code="chat_template_error",
            ) from None

    def _blanks_after_tool_mark(self) -> str:
        """What the model writes between `<tool_call>` and the call; a newline where its template does not show it."""
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": "", "tool_calls": [_CALL]},
        ]
        try:
            found = _FRAME.search(self.render(messages))
        except InvalidRequest:
            found = None
        return found[1] if found else "\n"


def until_final_message(prompt: str, message: dict[str, Any]) -> str:
    """`prompt` cut behind the text of its last message, which the model is to go on with. Raises InvalidRequest."""
    text = str(message.get("content") or "")
    begin = prompt.rfind(text.strip())
    if begin < 0 or not text.strip():
        raise InvalidRequest(
            "'continue_final_message' needs a last message whose text the chat template keeps.",
            param="continue_final_message",
        )
    whole = text.lstrip()
    end = begin + (len(whole) if prompt.startswith(whole, begin) else len(text.strip()))
    return prompt[:end]


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
