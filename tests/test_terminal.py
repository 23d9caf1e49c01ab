"""The chat in a terminal, with lines from a list instead of a keyboard."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qlora_chat.chat import Chat
from qlora_chat.chat_templates.format import TemplateFormat
from qlora_chat.chat_templates.renderer import TemplateSource
from qlora_chat.chat_templates.vocabulary import TemplateVocabulary
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.models.locate import BUNDLED
from qlora_chat.settings import Sampling
from qlora_chat.terminal import talk
from tests.fakes import ScriptedEngine

STRICT = (
    "{% for message in messages %}{% if 'forbidden' in message.content %}{{ raise_exception('not that word') }}{% endif %}"
    "{{ message.role }}: {{ message.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_a_message_that_the_template_refuses_does_not_end_the_chat(capsys: pytest.CaptureFixture[str]) -> None:
    vocabulary = TemplateVocabulary((BUNDLED / "base" / "tokenizer.json").read_text())
    chat_format = TemplateFormat("template", TemplateSource(STRICT, "strict.jinja"), vocabulary)
    chat = Chat(ScriptedEngine(" Hello."), chat_format, MemoryHistory())
    lines: Iterator[str] = iter(["a forbidden thing", "Hi"])

    def read_line() -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    talk(chat, Sampling(), None, read_line)
    said = capsys.readouterr()
    assert "strict.jinja, line 1 refuses this conversation: not that word" in said.err
    assert said.out == "Hello.\n\n"
