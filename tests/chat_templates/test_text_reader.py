"""Texts that a chat template wrote are read back into their conversations; other texts are not."""

from __future__ import annotations

import pytest

from qlora_chat.chat_templates.format import TemplateFormat
from qlora_chat.chat_templates.text_reader import TextReader
from tests.chat_templates.examples import EXAMPLES
from tests.chat_templates.vocabularies import KINDS, opened

TURNS = ("Which way\nis it?", "To the left: a < b.", "How far?", "A mile, naïve café 🙂.")


def rendered(template: TemplateFormat, texts: tuple[str, ...], system: str | None = None) -> str:
    messages = [{"role": ("user", "assistant")[index % 2], "content": each} for index, each in enumerate(texts)]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return template.renderer.plain(messages, open_answer=False)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_template_reads_what_it_wrote(name: str) -> None:
    template = opened(name, KINDS[0])[1]
    reader = TextReader.of(template)
    assert reader is not None
    for texts in (TURNS[:2], TURNS):
        for system in (None, "Know every street.") if template.takes_system else (None,):
            text = rendered(template, texts, system)
            found = reader.read(text)
            assert found is not None
            read = tuple(each.content for each in found.conversation.messages)
            assert read[-1].endswith(texts[-1])
            assert (read[:-1], found.added, found.unanswered) == (texts[:-1], False, False)
            assert found.conversation.system == system or system is None or system not in text


def test_a_text_without_the_templates_own_system_text_is_read_and_told() -> None:
    reader = TextReader.of(opened("qwen2.5", KINDS[0])[1])
    assert reader
    found = reader.read("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>")
    assert found
    assert [each.content for each in found.conversation.messages] == ["Hi", "Yo"]
    assert found.added


def test_a_last_question_is_told() -> None:
    reader = TextReader.of(opened("chatml", KINDS[0])[1])
    assert reader
    for end in ("<|im_end|>\n", "<|im_end|>\n<|im_start|>assistant\n"):
        found = reader.read("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n<|im_start|>user\nAnd?" + end)
        assert found
        assert [each.content for each in found.conversation.messages] == ["Hi", "Yo"]
        assert found.unanswered


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Once upon a time",
        "### Human: Hi### Assistant: Yo",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\nHi<|im_end|>\n\n<|im_start|>assistant\nYo<|im_end|>",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>tool\n4<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n<|endoftext|>",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo",
    ],
)
def test_another_text_is_not_read(text: str) -> None:
    reader = TextReader.of(opened("chatml", KINDS[0])[1])
    assert reader
    assert reader.read(text) is None
