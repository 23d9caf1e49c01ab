"""Conversations in memory come back as they were, and the oldest go when there are too many."""

from qlora_chat.history.memory import MemoryHistory
from qlora_chat.messages import Conversation, Message


def test_a_saved_conversation_is_loaded_and_an_erased_one_is_gone() -> None:
    history, conversation = MemoryHistory(), Conversation(messages=(Message("user", "a"),))
    history.save(conversation)
    assert history.load(conversation.id) == conversation
    assert history.erase([conversation.id, "never seen"]) == 1
    assert history.load(conversation.id) is None


def test_the_least_recently_changed_conversation_is_evicted_first() -> None:
    history = MemoryHistory(limit=2)
    for name in ("a", "b", "a", "c"):
        history.save(Conversation(id=name))
    assert history.load("b") is None
    assert history.load("a") is not None
