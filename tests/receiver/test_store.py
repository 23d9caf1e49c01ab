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
from qlora_chat.receiver.store import RecordFilter, RecordStore
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
        with pytest.raises(StoreError, match="cannot be used: file is not a database"):
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
