"""Encrypted histories: unreadable files, and the key that opens them."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from qlora_chat.history import HistoryError
from qlora_chat.messages import Conversation
from tests.history.conftest import KEY, add_turn, sqlite_history


def test_encrypted_files_hold_no_readable_word_and_open_with_their_key_only(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    with closing(sqlite_history(path, KEY)) as store:
        talk = add_turn(store, Conversation(system="confidential"), "confidential question", "confidential answer")
        store.change(talk.id, title="confidential", tags=["confidential"])
        for each in tmp_path.iterdir():
            assert b"confidential" not in each.read_bytes()
        assert [hit.turn_id for hit in store.search("confidential ans")] == [talk.messages[1].id]
    other = KEY.replace("M", "N", 1)
    for wrong, said_so in ((other, "not the key"), (None, "is encrypted"), ("short", "32 random bytes")):
        with pytest.raises(HistoryError, match=said_so if wrong != other else "cannot be decrypted|not the key"):
            sqlite_history(path, wrong)
    with closing(sqlite_history(tmp_path / "plain.db")):
        pass
    with pytest.raises(HistoryError, match="begun without"):
        sqlite_history(tmp_path / "plain.db", KEY)
