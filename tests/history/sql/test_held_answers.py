"""Answers that end, and feedback that is given, while the database server is away are written when it is back."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import pytest

from qlora_chat.history import Feedback, HistoryUnavailable, OutboxRecord, TurnRecord
from qlora_chat.history.sql import held_answers
from qlora_chat.history.sql.held_answers import HeldValues
from qlora_chat.history.sql.store import SqlHistory
from qlora_chat.messages import Conversation, Message
from qlora_chat.settings import Sampling
from tests.delivery.receiving import wait_for
from tests.history.conftest import postgres_history, with_open_answer
from tests.postgres import Server


def turn(text: str) -> TurnRecord:
    return TurnRecord(Conversation(messages=(Message("user", "q"), Message("assistant", text))), "", Sampling())


class Away:
    """A database server that can be away, and some answers that it never takes."""

    def __init__(self, refused: str = "") -> None:
        self.is_away, self.refused, self.written = True, refused, list[str]()

    def finish(self, record: TurnRecord, outgoing: OutboxRecord | None) -> None:
        if self.is_away or record.answer.content == self.refused:
            raise HistoryUnavailable("away")
        self.written.append(record.answer.content)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_answers, "RETRY_SECONDS", 0.01)


def test_all_are_written_when_the_server_is_back() -> None:
    away = Away(refused="never")
    held = HeldValues("answers", away.finish)
    outgoing = OutboxRecord("turn", "c", b"{}")
    for text in ("never", "one", "two"):
        assert held.hold(turn(text), outgoing)
    away.is_away = False
    wait_for(lambda: len(away.written) == 2)
    assert sorted(away.written) == ["one", "two"], "one that cannot be written stops no other"
    assert held.close() == [outgoing], "and its record is reported as lost"


def test_later_answers_are_written_too_and_too_many_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_answers, "MOST_HELD", 2)
    away = Away()
    held = HeldValues("answers", away.finish)
    assert [held.hold(turn(text), None) for text in "abc"] == [True, True, False]
    away.is_away = False
    wait_for(lambda: len(away.written) == 2)
    away.is_away = True
    assert held.hold(turn("d"), None)
    away.is_away = False
    wait_for(lambda: away.written[-1] == "d")
    assert held.close() == []


def test_an_answer_that_ends_while_postgresql_is_away_is_in_history_and_outbox_afterwards(
    postgres_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = postgres_history(postgres_server)
    assert isinstance(store, SqlHistory)
    with closing(store):
        before = store.outbox.counts().dropped
        begun = store.save(with_open_answer(Conversation(), "q"))
        answer = replace(begun.messages[-1], content="read to its end", finish_reason="stop")
        with monkeypatch.context() as patched:
            patched.setattr(store, "_close_answer", _server_is_away)
            with pytest.raises(HistoryUnavailable, match="is held and saved as soon as it can be"):
                store.finish(TurnRecord(begun.replacing_last(answer), "", Sampling()), OutboxRecord("turn", begun.id, b"{}"))
        wait_for(lambda: store.outbox.counts().waiting == 1)
        saved = store.load(begun.id)
        assert saved is not None
        assert (saved.messages[-1].content, saved.messages[-1].finish_reason) == ("read to its end", "stop")
        assert store.outbox.counts().dropped == before


def test_feedback_given_while_postgresql_is_away_follows_the_answer_that_it_is_about(
    postgres_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = postgres_history(postgres_server)
    assert isinstance(store, SqlHistory)
    with closing(store):
        before = store.outbox.counts().dropped
        unsaved = with_open_answer(Conversation(), "q")
        done = unsaved.replacing_last(replace(unsaved.messages[-1], content="unsaved until then", finish_reason="stop"))
        liked = Feedback(done.messages[-1].id, 1, None, "well said")
        with monkeypatch.context() as patched:
            patched.setattr(store.database, "write", _server_is_away)
            with pytest.raises(HistoryUnavailable, match="the answer is held and saved as soon as it can be"):
                store.finish(TurnRecord(done, "", Sampling()), OutboxRecord("turn", done.id, b"{}"))
            with pytest.raises(HistoryUnavailable, match="the feedback is held and saved as soon as it can be"):
                store.add_feedback(done.id, liked, OutboxRecord("feedback", done.id, b"{}"))
        wait_for(lambda: store.outbox.counts().waiting == 2)
        saved = store.read(done.id)
        assert saved is not None
        assert [(each.rating, each.comment) for each in saved.feedback] == [(1, "well said")]
        assert [each.outgoing.kind for each in store.outbox.claim(5)] == ["turn", "feedback"]
        assert store.outbox.counts().dropped == before


def _server_is_away(*_: object) -> bool:
    raise HistoryUnavailable("the database server cannot be reached")
