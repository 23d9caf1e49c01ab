"""The chat in a terminal, with lines from a list instead of a keyboard."""

from __future__ import annotations

import pytest

from qlora_chat.chat import Chat
from qlora_chat.chat_templates.format import TemplateFormat
from qlora_chat.chat_templates.renderer import TemplateSource
from qlora_chat.chat_templates.vocabulary import TemplateVocabulary
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.models.locate import BUNDLED
from qlora_chat.prompt import DEFAULT_FORMAT
from qlora_chat.settings import Sampling
from qlora_chat.terminal import talk
from tests.fakes import FullHistory, ScriptedEngine

STRICT = (
    "{% for message in messages %}{% if 'forbidden' in message.content %}{{ raise_exception('not that word') }}{% endif %}"
    "{{ message.role }}: {{ message.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def said_to(chat: Chat, capsys: pytest.CaptureFixture[str], *lines: str) -> tuple[str, str]:
    """Output and notes of a chat in which these lines are typed."""
    typed = iter(lines)

    def read_line() -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    talk(chat, Sampling(), None, read_line)
    said = capsys.readouterr()
    return said.out, said.err


def test_undo_says_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    chat = Chat(ScriptedEngine(" Hello."), DEFAULT_FORMAT, MemoryHistory())
    assert "there is nothing to remove yet" in said_to(chat, capsys, "/undo")[1]
    assert said_to(chat, capsys, "Hi", "/undo")[0] == "Hello.\n(removed)\n\n"
    full = Chat(ScriptedEngine(" Hello."), DEFAULT_FORMAT, FullHistory())
    out, notes = said_to(full, capsys, "Hi", "/undo", "Hi again")
    assert "(not removed: the disk is full)" in notes
    assert out == "Hello.\nHello.\n\n", "the chat goes on"


def test_a_message_that_the_template_refuses_does_not_end_the_chat(capsys: pytest.CaptureFixture[str]) -> None:
    vocabulary = TemplateVocabulary((BUNDLED / "base" / "tokenizer.json").read_text())
    chat_format = TemplateFormat("template", TemplateSource(STRICT, "strict.jinja"), vocabulary)
    chat = Chat(ScriptedEngine(" Hello."), chat_format, MemoryHistory())
    out, notes = said_to(chat, capsys, "a forbidden thing", "Hi")
    assert "strict.jinja, line 1 refuses this conversation: not that word" in notes
    assert out == "Hello.\n\n"
