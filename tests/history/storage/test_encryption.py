"""Encrypted histories: unreadable files, the key that opens them, and values that belong where they are."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from qlora_chat.history import Feedback, HistoryError, HistoryStore, OutboxRecord
from qlora_chat.history.sql.store import SqlHistory
from qlora_chat.history.storage.encryption import Binding, Cipher
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


@pytest.mark.parametrize(
    "moving",
    [
        "UPDATE turns SET content = (SELECT content FROM turns WHERE conversation_id = 'other' AND role = 'assistant') "
        "WHERE conversation_id = 'talk' AND role = 'assistant'",
        "UPDATE turns SET content = (SELECT content FROM turns WHERE conversation_id = 'talk' AND role = 'user')",
        "UPDATE turns SET details = content WHERE conversation_id = 'talk'",
        "UPDATE turns SET conversation_id = 'talk' WHERE conversation_id = 'other'",
        "UPDATE conversations SET title = (SELECT title FROM conversations WHERE id = 'other') WHERE id = 'talk'",
        "UPDATE conversations SET system = title WHERE id = 'talk'",
        "UPDATE feedback SET comment = edited WHERE conversation_id = 'talk'",
    ],
    ids=["another conversation", "another turn", "another column", "whole turns", "title", "system", "comment"],
)
def test_a_value_that_was_moved_is_refused_and_named(moving: str, tmp_path: Path) -> None:
    with closing(sqlite_history(tmp_path / "chats.db", KEY)) as store:
        assert isinstance(store, SqlHistory)
        add_turn(store, Conversation("other"), "other question", "other answer")
        talk = add_turn(store, Conversation("talk", system="be brief"), "question", "answer")
        store.add_feedback("talk", Feedback(talk.messages[-1].id, 1, "edit", "comment"))
        assert store.read("talk")
        with store.database.write() as connection:
            connection.exec_driver_sql(moving)
        with pytest.raises(HistoryError, match="of conversation talk.* cannot be decrypted.*moved there from elsewhere"):
            store.read("talk")


def test_a_record_that_was_moved_to_another_conversation_is_not_sent(tmp_path: Path) -> None:
    with closing(sqlite_history(tmp_path / "chats.db", KEY)) as store:
        assert isinstance(store, SqlHistory)
        for name in ("talk", "other"):
            store.outbox.put(OutboxRecord("turn", name, name.encode()))
        with store.database.write() as connection:
            connection.exec_driver_sql("UPDATE outbox_bodies SET frame = (SELECT frame FROM outbox_bodies WHERE seq = 1)")
        assert [each.outgoing.body for each in store.outbox.claim(5)] == [b"talk"]
        assert [each.reason for each in store.outbox.dead_letters()] == ["moved from another record"]


def test_what_an_earlier_version_encrypted_can_still_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as earlier, closing(sqlite_history(tmp_path / "chats.db", KEY)) as store:
        earlier.setattr(Binding, "associated_data", None)
        _fill(store)
    with closing(sqlite_history(tmp_path / "chats.db", KEY)) as store:
        assert isinstance(store, SqlHistory)
        found = store.read("talk")
        assert found is not None
        assert [turn.message.content for turn in found.turns] == ["question", "answer"]
        assert store.search("answer")[0].title == "question"
        assert store.outbox.claim(1)[0].outgoing.body == b"record"


def _fill(store: HistoryStore) -> None:
    assert isinstance(store, SqlHistory)
    add_turn(store, Conversation("talk"), "question", "answer")
    store.outbox.put(OutboxRecord("turn", "talk", b"record"))


@pytest.mark.parametrize("altered", ["", "not base64!", "AAAA"])
def test_an_altered_value_is_an_error_in_words(altered: str) -> None:
    with pytest.raises(HistoryError, match="cannot be decrypted"):
        Cipher(KEY).decrypt_text(altered, Binding("turns", "content", "talk"))
