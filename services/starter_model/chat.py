"""The chat format, twice: the Jinja template that engines use, and the same in Python for training.

A test renders both on every family and demands equality. The template keeps to what jinja2, vLLM and minja (OpenVINO
GenAI) all parse: no macros, no method calls, no `generation` blocks.

    <|system|> ...\\nTools:\\nname(arg: type): description<|im_end|><|user|> ...<|im_end|><|assistant|> ...<|im_end|>
"""

import json
from collections.abc import Sequence

from .example import Message, Tool

END_OF_TEXT, IM_END = "<|endoftext|>", "<|im_end|>"
SYSTEM, USER, ASSISTANT, TOOL = "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"
SPECIAL_TOKENS = (END_OF_TEXT, IM_END, SYSTEM, USER, ASSISTANT, TOOL)
# Ordinary text for a client, one token for the model: skip_special_tokens must not remove them.
TOOL_TOKENS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")

CHAT_TEMPLATE = r"""{%- set system = '' -%}
{%- if messages[0].role == 'system' or messages[0].role == 'developer' -%}
  {%- set system = ' ' + messages[0].content | trim -%}
{%- endif -%}
{%- if system or tools -%}
  {{- '<|system|>' + system -}}
  {%- if tools -%}
    {{- '\nTools:' -}}
    {%- for tool in tools -%}
      {%- set function = tool.function if tool.function else tool -%}
      {{- '\n' + function.name + '(' -}}
      {%- if function.parameters and function.parameters.properties -%}
        {%- for name in function.parameters.properties -%}
          {%- set type = function.parameters.properties[name].type -%}
          {{- name + ': ' + (type if type is string else 'any') -}}
          {%- if not loop.last -%}{{- ', ' -}}{%- endif -%}
        {%- endfor -%}
      {%- endif -%}
      {{- ')' -}}
      {%- if function.description -%}{{- ': ' + function.description -}}{%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {{- '<|im_end|>' -}}
{%- endif -%}
{%- for message in messages -%}
  {%- if message.role == 'user' -%}
    {{- '<|user|> ' + message.content | trim + '<|im_end|>' -}}
  {%- elif message.role == 'tool' -%}
    {{- '<|tool|> ' + message.content | trim + '<|im_end|>' -}}
  {%- elif message.role == 'assistant' -%}
    {{- '<|assistant|>' -}}
    {%- if message.content -%}{{- ' ' + message.content | trim -}}{%- endif -%}
    {%- if message.tool_calls -%}
      {%- for tool_call in message.tool_calls -%}
        {%- set call = tool_call.function if tool_call.function else tool_call -%}
        {{- '<tool_call>{"name": "' + call.name + '", "arguments": ' -}}
        {{- call.arguments if call.arguments is string else call.arguments | tojson -}}
        {{- '}</tool_call>' -}}
      {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>' -}}
  {%- elif not loop.first -%}
    {{- '<|system|> ' + message.content | trim + '<|im_end|>' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


def render_prompt(messages: Sequence[Message], tools: Sequence[Tool] = ()) -> str:
    """What the template gives with add_generation_prompt: ends in the assistant's token, with no space after it."""
    first, rest = messages[0], messages
    system = ""
    if first["role"] == "system":
        system, rest = " " + first["content"].strip(), messages[1:]
    parts = []
    if system or tools:
        parts.append(SYSTEM + system + _tools_text(tools) + IM_END)
    parts.extend(_turn(message) + IM_END for message in rest)
    return "".join(parts) + ASSISTANT


def _turn(message: Message) -> str:
    role, content = message["role"], (message.get("content") or "").strip()
    if role == "assistant":
        said = " " + content if content else ""
        calls = (
            tool_call_text(c["function"]["name"], c["function"]["arguments"]) for c in message.get("tool_calls", ())
        )
        return ASSISTANT + said + "".join(calls)
    return f"{ {'user': USER, 'tool': TOOL}[role] } {content}"


def tool_call_text(name: str, arguments: object) -> str:
    """One call in the Hermes format, as the model writes it and vLLM's `hermes` parser reads it."""
    written = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>{written}</tool_call>"


def _tools_text(tools: Sequence[Tool]) -> str:
    lines = []
    for tool in tools:
        function = tool["function"]
        properties = function["parameters"]["properties"]
        arguments = ", ".join(f"{name}: {schema['type']}" for name, schema in properties.items())
        lines.append(f"\n{function['name']}({arguments}): {function['description']}")
    return "\nTools:" + "".join(lines) if lines else ""
