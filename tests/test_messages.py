"""Conversations alternate, and turn into the shape that logs have always had."""

import pytest

from qlora_chat.messages import Conversation, Message


def test_a_message_out_of_turn_is_refused() -> None:
    with pytest.raises(ValueError, match="message 0 has role 'assistant'.*'user' was expected"):
        Conversation().adding(Message("assistant", "hello"))


def test_undo_takes_back_the_question_and_its_answer() -> None:
    conversation = Conversation().adding(Message("user", "a")).adding(Message("assistant", "b")).adding(Message("user", "c"))
    assert [m.content for m in conversation.without_last_exchange().messages] == ["a", "b"]
    assert conversation.without_last_exchange().without_last_exchange().messages == ()
    assert Conversation().without_last_exchange().messages == ()


def test_pairs_are_what_the_original_logged() -> None:
    conversation = Conversation().adding(Message("user", "a")).adding(Message("assistant", "b")).adding(Message("user", "c"))
    assert conversation.pairs() == [["a", "b"], ["c", ""]]


def test_every_conversation_has_its_own_id() -> None:
    assert Conversation().id != Conversation().id
    assert len(Conversation().id) == 36
