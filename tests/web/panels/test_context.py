"""The window's use as the page shows it."""

from qlora_chat.chat import AnswerOptions
from qlora_chat.messages import Conversation
from qlora_chat.settings import Sampling
from qlora_chat.web.panels.context import context_value
from tests.fakes import ScriptedEngine, scripted_chat

BRIEF = Sampling(max_new_tokens=10)


def test_the_bar_names_the_turns_that_go_and_where_the_memory_begins() -> None:
    chat, conversation = scripted_chat(ScriptedEngine("answer", window=200)), Conversation()
    assert context_value(chat, conversation, "", BRIEF)["begins"] is None
    for number in range(5):
        list(turn := chat.reply(conversation, f"question  {number}", AnswerOptions(BRIEF)))
        conversation = turn.conversation
    value = context_value(chat, conversation, "and more?", BRIEF)
    list(sent := chat.reply(conversation, "and more?", AnswerOptions(BRIEF)))
    assert value["history"] + value["draft"] == sent.prompt_tokens
    assert (value["answer"], value["window"], value["problem"]) == (10, 200, None)
    dropped = sent.prompt.dropped
    assert value["unseen"] == len(dropped) // 2 > 0
    assert [each["text"] for each in value["going"]] == [f"question {number}" for number in range(len(dropped) // 2)]
    assert value["begins"] == conversation.messages[len(dropped)].id


def test_a_pinned_exchange_is_listed_as_always_seen() -> None:
    chat, conversation = scripted_chat(ScriptedEngine("answer", window=200)), Conversation()
    for number in range(5):
        list(turn := chat.reply(conversation, f"question {number}", AnswerOptions(BRIEF)))
        conversation = turn.conversation
    first = conversation.messages[0].id
    value = context_value(chat, chat.pin(conversation, first, pinned=True), "", BRIEF)
    assert value["pinned"] == [{"id": first, "text": "question 0"}]
    assert first not in [each["id"] for each in value["going"]]


def test_a_draft_that_cannot_be_sent_has_its_reason() -> None:
    chat = scripted_chat(ScriptedEngine("answer", window=200))
    value = context_value(chat, Conversation(), "x" * 300, BRIEF)
    assert "too long" in value["problem"]
    assert (value["draft"], value["begins"]) == (300, None)
