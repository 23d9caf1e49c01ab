"""Retention: conversations that have not changed for too long are erased."""

from __future__ import annotations

from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from qlora_chat.history import HistoryStore, retention
from qlora_chat.history.retention import expire
from qlora_chat.history.sql.store import SqlHistory
from qlora_chat.messages import Conversation
from tests.history.conftest import add_turn, sqlite_history


def test_old_conversations_expire(tmp_path: Path) -> None:
    with closing(sqlite_history(tmp_path / "chats.db")) as store:
        assert isinstance(store, SqlHistory)
        old, new = add_turn(store, Conversation(), "old", "1"), add_turn(store, Conversation(), "new", "2")
        with store.database.write() as connection:
            connection.exec_driver_sql("UPDATE conversations SET updated_at = updated_at - 86400 * 31 WHERE id = ?", (old.id,))
        assert expire(store, 30) == 1
        assert [each.id for each in store.list()] == [new.id]


def test_a_clock_that_is_ahead_erases_nothing_before_its_time(store: HistoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        add_turn(store, Conversation(), f"question {number}", "answer")
    real = retention.now
    monkeypatch.setattr(retention, "now", lambda: real() + timedelta(days=3650))
    assert expire(store, 30) == 0
    assert len(store.list()) == 5


def test_a_turn_saved_with_a_clock_that_was_ahead_erases_nothing_after_a_restart_with_the_right_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(sqlite_history(tmp_path / "chats.db")) as store:
        assert isinstance(store, SqlHistory)
        ahead, *_ = [add_turn(store, Conversation(), f"question {number}", "answer") for number in range(5)]
        with store.database.write() as connection:
            connection.exec_driver_sql("UPDATE conversations SET updated_at = updated_at + 3e8 WHERE id = ?", (ahead.id,))
        assert retention._trusted_time(store) <= retention.now(), "the turn's time is no reason to believe it"
        assert expire(store, 30) == 0
        assert len(store.list()) == 5


def test_time_that_has_really_passed_is_followed_check_by_check(store: HistoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    add_turn(store, Conversation(), "old", "1")
    real, checked, checks = retention.now, None, 0
    monkeypatch.setattr(retention, "now", lambda: real() + timedelta(days=90))
    while store.list():
        checked = retention._trusted_time(store, checked)
        retention._expire_before(store, checked - timedelta(days=30))
        checks += 1
    assert checks == 31


def test_a_conversation_that_changes_while_retention_looks_stays(store: HistoryStore) -> None:
    talk = add_turn(store, Conversation(), "old question", "old answer")
    before_the_answer = store.list()[0].updated_at + timedelta(microseconds=1)
    add_turn(store, talk, "I am back!", "Welcome.")
    assert store.erase([talk.id], unchanged_since=before_the_answer) == 0
    assert len(store.list()) == 1
    assert store.erase([talk.id], unchanged_since=store.list()[0].updated_at + timedelta(seconds=1)) == 1
