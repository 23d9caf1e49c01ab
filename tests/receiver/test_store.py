"""Each record once, for good, until it is erased; in SQLite and in PostgreSQL."""

from __future__ import annotations

import sqlite3
import stat
import threading
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text

from qlora_chat.receiver.database import StoreError
from qlora_chat.receiver.page import page
from qlora_chat.receiver.stats import statistics
from qlora_chat.receiver.store import RecordFilter, RecordStore
from qlora_chat.receiver.turns import turns, unreadable
from tests.receiver.payloads import feedback, record, tombstone, turn_v1, turn_v2


def test_a_record_is_stored_as_it_was_sent_and_once(store: RecordStore) -> None:
    sent = record(turn_v2(messages="Grüße, 世界 \ud83d\ude00"))
    assert store.add([sent]) == ["stored"]
    assert store.add([sent, sent]) == ["duplicate", "duplicate"]
    (row,) = store.rows(RecordFilter())
    assert row["body"] == sent.body
    assert (row["id"], row["temperature"], row["ttft_ms"], row["at"]) == (sent.id, 0.5, 40.0, sent.at)


def test_a_duplicate_in_a_batch_hinders_no_other_record(store: RecordStore) -> None:
    known, fresh = record(turn_v2()), record(turn_v2())
    store.add([known])
    assert store.add([known, fresh]) == ["duplicate", "stored"]


def test_it_is_there_after_the_program_has_ended(url: str) -> None:
    with closing(RecordStore(url, create=True)) as store:
        store.add([record(turn_v1())])
    with closing(RecordStore(url)) as again:
        assert len(list(again.rows(RecordFilter()))) == 1


@pytest.mark.parametrize("create", [True, False], ids=["receiving", "reading"])
def test_a_store_without_the_column_of_a_newer_setting_gets_it(create: bool, store: RecordStore, url: str) -> None:
    store.add([record(turn_v2())])
    with store._engine.begin() as connection:
        connection.execute(text("ALTER TABLE records DROP COLUMN top_k"))
    with closing(RecordStore(url, create=create)) as again:
        again.add([record(turn_v2())])
        assert [row["top_k"] for row in again.rows(RecordFilter())] == [None, 40]


def test_rows_are_filtered_and_ordered(store: RecordStore) -> None:
    early = turn_v2(finished_at="2026-11-01T00:00:00+00:00", finish_reason="length")
    late = turn_v2(finished_at="2026-11-02T00:00:00+00:00", conversation_id="other")
    store.add([record(late), record(early), record(feedback(early, rating=1))])
    turns = list(store.rows(RecordFilter(kind="turn")))
    assert [row["turn_id"] for row in turns] == [early["turn_id"], late["turn_id"]], "in order of time"
    assert [row["turn_id"] for row in store.rows(RecordFilter(kind="turn"), newest_first=True)] == [
        late["turn_id"],
        early["turn_id"],
    ]
    for where in (RecordFilter(kind="turn", finish_reason="length"), RecordFilter(kind="turn", until=turns[1]["at"])):
        assert [row["turn_id"] for row in store.rows(where)] == [early["turn_id"]]
    for where in (
        RecordFilter(conversation_id="other"),
        RecordFilter(since=turns[1]["at"], kind="turn"),
        RecordFilter(turn_id=late["turn_id"]),
    ):
        assert [row["turn_id"] for row in store.rows(where)] == [late["turn_id"]]


def test_a_tombstone_erases_the_conversation_and_refuses_its_late_records(store: RecordStore) -> None:
    gone, stays = turn_v2(conversation_id="gone"), turn_v2(conversation_id="stays")
    grave = record(tombstone("gone"))
    outcomes = store.add(
        [record(gone), record(feedback(gone, comment="x")), record(stays), grave, record(turn_v2(conversation_id="gone"))]
    )
    assert outcomes == ["stored", "stored", "stored", "stored", "erased"]
    assert [row["conversation_id"] for row in store.rows(RecordFilter())] == ["stays"]
    assert store.add([grave]) == ["duplicate"]
    assert store.erased_conversations() == 1


def test_no_byte_of_an_erased_conversation_is_left_in_sqlites_files(tmp_path: Path) -> None:
    secret = "a word that must vanish"
    with closing(RecordStore(f"sqlite:///{tmp_path}/logs.db", create=True)) as store:
        store.add([record(turn_v2(conversation_id="gone", messages=f"{secret} " * 500)) for _ in range(20)])
        assert any(secret.encode() in file.read_bytes() for file in tmp_path.iterdir())
        store.add([record(tombstone("gone"))])
        assert not any(secret.encode() in file.read_bytes() for file in tmp_path.iterdir())


def test_an_erasure_that_a_reader_holds_up_is_not_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlora_chat.receiver.store.CHECKPOINT_MS", 100)
    grave = record(tombstone("conversation-1"))
    with closing(RecordStore(f"sqlite:///{tmp_path}/logs.db", create=True)) as store:
        store.add([record(turn_v2())])
        with closing(sqlite3.connect(tmp_path / "logs.db", isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM records").fetchall()
            with pytest.raises(StoreError, match="sent again"):
                store.add([grave])
        assert store.add([grave]) == ["duplicate"], "and by then nothing is left"


def test_the_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    with closing(RecordStore(f"sqlite:///{folder}/logs.db", create=True)) as store:
        store.add([record(turn_v1())])
        assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_several_writers_lose_nothing(url: str) -> None:
    """Two receivers may share a store; each record arrives at both."""
    sent = [record(turn_v2()) for _ in range(60)]
    outcomes: list[str] = []

    def write() -> None:
        with closing(RecordStore(url, create=True)) as store:
            for each in sent:
                outcomes.extend(store.add([each]))

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["duplicate"] * 60 + ["stored"] * 60


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nonsense", "must be sqlite:///FILE or postgresql://USER@HOST/NAME"),
        ("mysql://host/x", "begins with mysql://"),
        ("postgresql://me:hunter2@host/x", "PGPASSWORD"),
        ("sqlite://", "names no file"),
        ("sqlite:////nowhere/logs.db", "there is no store at /nowhere/logs.db"),
    ],
)
def test_a_wrong_url_is_one_clear_line(address: str, message: str) -> None:
    with pytest.raises(StoreError, match=message) as refusal:
        RecordStore(address)
    assert "hunter2" not in str(refusal.value)


def test_a_file_that_is_something_else_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("not a database, and precious " * 100)
    for create in (True, False):
        with pytest.raises(StoreError, match="cannot be opened: .* is not an SQLite database"):
            RecordStore(f"sqlite:///{other}", create=create)
    assert other.read_text().startswith("not a database")


def test_a_store_of_a_later_program_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/logs.db"
    RecordStore(url, create=True).close()
    with closing(sqlite3.connect(tmp_path / "logs.db")) as connection:
        connection.execute("INSERT INTO receiver_schema VALUES (99)")
        connection.commit()
    with pytest.raises(StoreError, match="version 99"):
        RecordStore(url, create=True)


# --- senders ---------------------------------------------------------------------------------------------------------


def test_senders_have_ids_and_conversations_of_their_own(store: RecordStore) -> None:
    turn = turn_v2(conversation_id="c")
    assert store.add([record(turn, "anna"), record(turn, "ben"), record(turn, "ben")]) == ["stored", "stored", "duplicate"]
    grave = tombstone("c")
    assert store.add([record(grave, "ben")]) == ["stored"]
    assert [row["sender"] for row in store.rows(RecordFilter())] == ["anna"], "a tombstone erases its sender's records only"
    assert store.add([record(turn_v2(conversation_id="c"), name) for name in ("anna", "ben")]) == ["stored", "erased"]


def test_feedback_of_one_sender_is_not_about_a_turn_of_another(store: RecordStore) -> None:
    turn = turn_v2()
    store.add([record(turn, "anna"), record(turn, "ben"), record(feedback(turn, rating=-1), "ben")])
    assert {turn.row["sender"]: turn.feedback and turn.feedback["rating"] for turn in turns(store, RecordFilter())} == {
        "anna": None,
        "ben": -1,
    }


def test_an_id_with_another_body_is_a_conflict_and_changes_nothing(store: RecordStore) -> None:
    turn, grave = turn_v2(), tombstone("gone")
    store.add([record(turn), record(grave)])
    assert store.add([record({**turn, "messages": "another"})]) == ["conflict"]
    assert store.add([record({**tombstone("conversation-1"), "id": turn["id"]})]) == ["conflict"]
    assert store.add([record({**grave, "conversation_id": "conversation-1"})]) == ["conflict"]
    assert store.add([record({**turn, "id": grave["id"]})]) == ["conflict"]
    assert [row["body"] for row in store.rows(RecordFilter())] == [record(turn).body]


# --- stores of earlier versions --------------------------------------------------------------------------------------

VERSION_1 = (
    "CREATE TABLE new_records AS SELECT * FROM records",
    "ALTER TABLE new_records DROP COLUMN sender",
    "DROP TABLE records",
    "CREATE TABLE records (number INTEGER NOT NULL PRIMARY KEY, id VARCHAR(200) NOT NULL UNIQUE, kind VARCHAR(16) NOT NULL, "
    "version SMALLINT NOT NULL, conversation_id VARCHAR(200) NOT NULL, turn_id VARCHAR(200), at DOUBLE NOT NULL, "
    "day VARCHAR(10) NOT NULL, received_at DOUBLE NOT NULL, temperature DOUBLE, prompt_tokens DOUBLE, rating SMALLINT, "
    "body TEXT NOT NULL)",
    "INSERT INTO records SELECT number, id, kind, version, conversation_id, turn_id, at, day, received_at, temperature, "
    "prompt_tokens, rating, body FROM new_records",
    "CREATE INDEX records_kind_at ON records (kind, at)",
    "DROP TABLE new_records",
    "DROP TABLE erased",
    "CREATE TABLE erased (conversation_id VARCHAR(200) NOT NULL PRIMARY KEY, record_id VARCHAR(200) NOT NULL, "
    "at DOUBLE NOT NULL)",
    "INSERT INTO erased VALUES ('gone', 'grave', 0)",
    "DELETE FROM receiver_schema WHERE version > 1",
)
"""Statements that make a new SQLite store one of the first version, with fewer settings."""


def test_a_store_without_senders_is_migrated_with_all_its_records(tmp_path: Path) -> None:
    url, turn = f"sqlite:///{tmp_path}/logs.db", turn_v2()
    with closing(RecordStore(url, create=True)) as store, store._engine.begin() as connection:
        store_row = record(turn)
        connection.execute(
            text(
                "INSERT INTO records (sender, id, kind, version, conversation_id, turn_id, at, day, received_at, body) "
                "VALUES ('', :id, 'turn', 2, 'c', 't', 1, '2026-11-24', 1, :body)"
            ),
            {"id": store_row.id, "body": store_row.body},
        )
        for statement in VERSION_1:
            connection.execute(text(statement))
    with closing(RecordStore(url)) as reading:
        assert [(row["sender"], row["id"]) for row in reading.rows(RecordFilter())] == [("", turn["id"])]
    with closing(RecordStore(url, create=True)) as store:
        assert store.add([record(turn), record(turn, "anna")]) == ["duplicate", "stored"]
        assert store.add([record(turn_v2(conversation_id="gone"))]) == ["erased"]


def test_what_is_stored_and_unreadable_is_skipped_and_counted(store: RecordStore) -> None:
    good = turn_v2()
    store.add([record(good), *(record(turn_v2()) for _ in range(4)), record(feedback(good, rating=1))])
    with store._engine.begin() as connection:
        for number, change in enumerate(("prompt_tokens = 1e300", "at = 3e11", "at = -7e10", "body = '{}'"), start=2):
            connection.execute(text(f"UPDATE records SET {change} WHERE number = {number}"))
        connection.execute(text("UPDATE records SET body = '{\"feedback\": [1]}' WHERE kind = 'feedback'"))
    assert [turn.row["id"] for turn in turns(store, RecordFilter())] == [good["id"]]
    assert unreadable(store) == 5
    counted = statistics(store)
    assert (counted["turns"], counted["unreadable"]) == (2, 3)
    assert "unreadable" in page(counted)


def test_a_file_that_is_removed_is_noticed_at_the_next_record(tmp_path: Path) -> None:
    with closing(RecordStore(f"sqlite:///{tmp_path}/logs.db", create=True)) as store:
        (tmp_path / "logs.db").rename(tmp_path / "elsewhere.db")
        with pytest.raises(StoreError, match="was removed or replaced"):
            store.add([record(turn_v2())])
