"""The window's use as the page shows it."""

import re
from typing import Any

from qlora_chat.chat import AnswerOptions
from qlora_chat.messages import Conversation
from qlora_chat.settings import Sampling
from qlora_chat.web.panels.context import context_value
from tests.fakes import ScriptedEngine, scripted_chat

LISTED = re.compile(r'<span class="own" dir="auto" id="[^"]*">([^<]*)</span><button [^>]*>([^<]*)</button>')
BRIEF = Sampling(max_new_tokens=10)


def listed(value: dict[str, Any]) -> list[tuple[str, str]]:
    """Questions in the panel, each with the word on its button."""
    return LISTED.findall(value["panel"])


def test_the_bar_names_the_turns_that_go_and_where_the_memory_begins() -> None:
    chat, conversation = scripted_chat(ScriptedEngine("answer", window=200)), Conversation()
    assert context_value(chat, conversation, "", BRIEF)["begins"] is None
    for number in range(5):
        list(turn := chat.reply(conversation, f"question  {number}", AnswerOptions(BRIEF)))
        conversation = turn.conversation
    value = context_value(chat, conversation, "and more?", BRIEF)
    list(sent := chat.reply(conversation, "and more?", AnswerOptions(BRIEF)))
    history, draft, window = map(int, re.findall(r"\d+", value["bar"].rpartition('use">')[2]))
    assert (history + draft, window) == (sent.prompt_tokens, 200)
    assert '<dt>Kept free for the answer</dt><dd dir="auto">10</dd>' in value["panel"]
    assert f'<dt>Still free</dt><dd dir="auto">{window - history - draft - 10}</dd>' in value["panel"]
    assert 'role="alert"' not in value["panel"]
    dropped = sent.prompt.dropped
    unseen = len(dropped) // 2
    assert f"{unseen} exchanges are not seen by the model" in value["panel"]
    assert value["line"] == f"the model's memory begins here: {unseen} exchanges are not seen"
    assert listed(value) == [(f"question {number}", "Keep") for number in range(unseen)]
    assert value["begins"] == conversation.messages[len(dropped)].id


def test_a_pinned_exchange_is_listed_as_always_seen() -> None:
    chat, conversation = scripted_chat(ScriptedEngine("answer", window=200)), Conversation()
    for number in range(5):
        list(turn := chat.reply(conversation, f"question {number}", AnswerOptions(BRIEF)))
        conversation = turn.conversation
    first = conversation.messages[0].id
    value = context_value(chat, chat.pin(conversation, first, pinned=True), "", BRIEF)
    assert value["pinned"] == [first]
    assert [text for text, label in listed(value) if label == "Let go"] == ["question 0"]
    assert listed(value).count(("question 0", "Keep")) == 0


def test_what_was_asked_does_not_become_markup() -> None:
    chat = scripted_chat(ScriptedEngine("answer", window=200))
    list(turn := chat.reply(Conversation(), "<img src=x onerror=alert(1)>", AnswerOptions(BRIEF)))
    value = context_value(chat, chat.pin(turn.conversation, turn.conversation.messages[0].id, pinned=True), "", BRIEF)
    assert "&lt;img src=x" in value["panel"]
    assert "<img" not in value["panel"]


def test_a_draft_that_cannot_be_sent_has_its_reason() -> None:
    chat = scripted_chat(ScriptedEngine("answer", window=200))
    value = context_value(chat, Conversation(), "x" * 300, BRIEF)
    assert '<p class="form-problem" role="alert">This message is too long' in value["panel"]
    assert '<dt>Your message</dt><dd dir="auto">300</dd>' in value["panel"]
    assert 'class="use-of-window over"' in value["bar"]
    assert (value["line"], value["begins"]) == ("", None)
