"""A prompt format as a Jinja chat template, for servers that render conversations themselves.

Scope: the same text as prompt.py renders, BOS in front. Our own page and API never use it: they send ids.
"""

from __future__ import annotations

from qlora_chat.prompt import ChatFormat, PromptFormat

_PLAIN = (
    "{%- macro plain(text) -%}{%- for part in text.split('###') -%}{%- if not loop.first -%}"
    "{{- '# # #' if part.lstrip('#').lstrip().lower().startswith(('human', 'assistant')) else '###' -}}{%- endif -%}"
    "{{- part -}}{%- endfor -%}{{- ' ' if text.endswith('#') -}}{%- endmacro -%}"
)
"""Like prompt.escape: a role marker inside a message must not become a turn, and a "#" at its end must not complete one."""


def template_file(prompt_format: ChatFormat, bos_text: str) -> str:
    """Contents of chat_template.jinja: the model's own template unchanged, or the format's as a line."""
    return chat_template(prompt_format, bos_text) + ("\n" if isinstance(prompt_format, PromptFormat) else "")


def chat_template(prompt_format: ChatFormat, bos_text: str) -> str:
    """The model's own template unchanged, or the format written as one line of Jinja; `bos_text` is BOS as text.

    `messages` may begin with a system message.
    """
    if not isinstance(prompt_format, PromptFormat):
        return prompt_format.template_text or ""
    system, after_system = _quoted(prompt_format.default_system), _quoted(prompt_format.after_system)
    user = f"{_quoted(prompt_format.before_user)} ~ plain(message.content) ~ {_quoted(prompt_format.after_user)}"
    assistant = f"{_quoted(prompt_format.before_answer)} ~ plain(message.content) ~ {_quoted(prompt_format.after_answer)}"
    return (
        _PLAIN + "{{- " + _quoted(bos_text) + " -}}"
        "{%- set told = messages[0].content if messages and messages[0].role == 'system' else " + system + " -%}"
        "{%- if told -%}{{- plain(told) ~ " + after_system + " -}}{%- endif -%}"
        "{%- for message in messages -%}"
        "{%- if message.role == 'user' -%}{{- " + user + " -}}"
        "{%- elif message.role == 'assistant' -%}{{- " + assistant + " -}}{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- " + _quoted(prompt_format.open_answer) + " -}}{%- endif -%}"
    )


def _quoted(text: str) -> str:
    """A Jinja string; its escapes are Python's."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
