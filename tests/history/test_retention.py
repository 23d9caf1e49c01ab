"""Retention: conversations that have not changed for too long are erased."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

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
