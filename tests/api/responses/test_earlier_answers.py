"""Answers that are remembered: found by their owner alone, and dropped when there are too many."""

from __future__ import annotations

import uuid

import pytest

from qlora_chat.api.errors import ApiError
from qlora_chat.api.responses.earlier_answers import AnswerId, EarlierAnswers, RememberedAnswers
from qlora_chat.chat import Chat
from qlora_chat.messages import Conversation, Message
from tests.fakes import scripted_chat


@pytest.fixture
def chat() -> Chat:
    return scripted_chat()


def conversation(text: str = "a") -> tuple[Conversation, str]:
    """A conversation that ends with an answer, and the answer's id for clients."""
    answer = Message("assistant", text)
    ending = Conversation(messages=(Message("user", "q"), answer))
    return ending, AnswerId(str(uuid.uuid4()), answer.id).text("resp")


def test_an_id_is_read_back_and_nothing_else_is() -> None:
    answer = AnswerId(str(uuid.uuid4()), str(uuid.uuid4()), 12)
    assert AnswerId.parse(answer.text("resp")) == AnswerId.parse(answer.text("msg")) == answer
    for text in ("", "resp_1", answer.text("conv"), answer.text("resp") + "x", answer.text("resp").upper()):
        assert AnswerId.parse(text) is None


def test_an_answer_is_found_by_its_owner_alone(chat: Chat) -> None:
    remembered = RememberedAnswers()
    ending, response_id = conversation()
    remembered.add("ada", ending)
    assert EarlierAnswers(chat, remembered, "ada").conversation(response_id)[0] is ending
    for owner in ("bob", None):
        with pytest.raises(ApiError, match="no such response"):
            EarlierAnswers(chat, remembered, owner).conversation(response_id)


def test_the_oldest_answers_go_first() -> None:
    remembered = RememberedAnswers(max_answers=10, max_characters=20)
    endings = [conversation("x" * 8)[0] for _ in range(3)]
    for each in endings:
        remembered.add(None, each)
    found = [remembered.find(None, each.messages[-1].id) is not None for each in endings]
    assert found == [False, True, True]


def test_an_answer_that_is_not_finished_cannot_be_continued(chat: Chat) -> None:
    question, answer = Message("user", "q"), Message("assistant", "a", finish_reason="partial")
    name = str(uuid.uuid4())
    chat.history.save(Conversation(name, (question, answer)))
    with pytest.raises(ApiError, match="still being written"):
        EarlierAnswers(chat, RememberedAnswers(), None).conversation(AnswerId(name, answer.id).text("resp"))
    with pytest.raises(ApiError, match="no such response"):
        EarlierAnswers(chat, RememberedAnswers(), None).conversation(AnswerId(name, question.id).text("resp"))
