"""A prompt format as a Jinja chat template, for servers that render conversations themselves.

Scope: the same text as prompt.py renders, BOS in front. Our own page and API never use it: they send ids.
"""

from __future__ import annotations

from qlora_chat.prompt import PromptFormat

_PLAIN = (
    "{%- macro plain(text) -%}{%- for part in text.split('###') -%}{%- if not loop.first -%}"
    "{{- '# # #' if part.lstrip('#').lstrip().lower().startswith(('human', 'assistant')) else '###' -}}{%- endif -%}"
    "{{- part -}}{%- endfor -%}{{- ' ' if text.endswith('#') -}}{%- endmacro -%}"
)
"""As prompt.escape: a role marker inside a message must not become a turn, and a "#" at its end not melt into one."""


def chat_template(form: PromptFormat, beginning: str) -> str:
    """One line of Jinja; `messages` may begin with a system message. `beginning` is how BOS is written."""
    system, after_system = _quoted(form.default_system), _quoted(form.after_system)
    user = f"{_quoted(form.before_user)} ~ plain(message.content) ~ {_quoted(form.after_user)}"
    assistant = f"{_quoted(form.before_answer)} ~ plain(message.content) ~ {_quoted(form.after_answer)}"
    return (
        _PLAIN + "{{- " + _quoted(beginning) + " -}}"
        "{%- set told = messages[0].content if messages and messages[0].role == 'system' else " + system + " -%}"
        "{%- if told -%}{{- plain(told) ~ " + after_system + " -}}{%- endif -%}"
        "{%- for message in messages -%}"
        "{%- if message.role == 'user' -%}{{- " + user + " -}}"
        "{%- elif message.role == 'assistant' -%}{{- " + assistant + " -}}{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- " + _quoted(form.open_answer) + " -}}{%- endif -%}"
    )


def _quoted(text: str) -> str:
    """A Jinja string; its escapes are Python's."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
