"""Each record once, for good, until it is erased; in SQLite and in PostgreSQL."""

from __future__ import annotations

import sqlite3
import stat
import threading
from contextlib import closing
from pathlib import Path

import pytest

from qlora_chat.receiver.database import StoreError
from qlora_chat.receiver.store import RecordStore, TurnFilter
from tests.receiver.made import feedback, record, tombstone, turn_v1, turn_v2


def test_a_record_is_kept_as_it_was_sent_and_once(store: RecordStore) -> None:
    sent = record(turn_v2(messages="Grüße, 世界 \ud83d\ude00"))
    assert store.keep([sent]) == ["stored"]
    assert store.keep([sent, sent]) == ["duplicate", "duplicate"]
    (row,) = store.find(TurnFilter())
    assert row["body"] == sent.body
    assert (row["id"], row["temperature"], row["ttft_ms"], row["at"]) == (sent.id, 0.5, 40.0, sent.at)


def test_a_duplicate_among_others_keeps_nobody_out(store: RecordStore) -> None:
    known, fresh = record(turn_v2()), record(turn_v2())
    store.keep([known])
    assert store.keep([known, fresh]) == ["duplicate", "stored"]


def test_it_is_there_after_the_program_has_ended(url: str) -> None:
    with closing(RecordStore(url, create=True)) as store:
        store.keep([record(turn_v1())])
    with closing(RecordStore(url)) as again:
        assert len(list(again.find(TurnFilter()))) == 1


def test_reading_by_what_is_asked_for(store: RecordStore) -> None:
    early = turn_v2(finished_at="2026-11-01T00:00:00+00:00", finish_reason="length")
    late = turn_v2(finished_at="2026-11-02T00:00:00+00:00", conversation_id="other")
    store.keep([record(late), record(early), record(feedback(early, rating=1))])
    turns = list(store.find(TurnFilter(kind="turn")))
    assert [row["turn_id"] for row in turns] == [early["turn_id"], late["turn_id"]], "in order of time"
    assert [row["turn_id"] for row in store.find(TurnFilter(kind="turn"), newest_first=True)] == [
        late["turn_id"],
        early["turn_id"],
    ]
    for wanted in (TurnFilter(kind="turn", finish_reason="length"), TurnFilter(kind="turn", until=turns[1]["at"])):
        assert [row["turn_id"] for row in store.find(wanted)] == [early["turn_id"]]
    for wanted in (
        TurnFilter(conversation_id="other"),
        TurnFilter(since=turns[1]["at"], kind="turn"),
        TurnFilter(turn_id=late["turn_id"]),
    ):
        assert [row["turn_id"] for row in store.find(wanted)] == [late["turn_id"]]


def test_a_tombstone_erases_the_conversation_and_keeps_what_is_under_way_out(store: RecordStore) -> None:
    gone, stays = turn_v2(conversation_id="gone"), turn_v2(conversation_id="stays")
    grave = record(tombstone("gone"))
    outcomes = store.keep(
        [record(gone), record(feedback(gone, comment="x")), record(stays), grave, record(turn_v2(conversation_id="gone"))]
    )
    assert outcomes == ["stored", "stored", "stored", "stored", "erased"]
    assert [row["conversation_id"] for row in store.find(TurnFilter())] == ["stays"]
    assert store.keep([grave]) == ["duplicate"]
    assert store.erased_conversations() == 1


def test_no_byte_of_an_erased_conversation_is_left_in_sqlites_files(tmp_path: Path) -> None:
    secret = "a word that must vanish"
    with closing(RecordStore(f"sqlite:///{tmp_path}/logs.db", create=True)) as store:
        store.keep([record(turn_v2(conversation_id="gone", messages=f"{secret} " * 500)) for _ in range(20)])
        assert any(secret.encode() in file.read_bytes() for file in tmp_path.iterdir())
        store.keep([record(tombstone("gone"))])
        assert not any(secret.encode() in file.read_bytes() for file in tmp_path.iterdir())


def test_an_erasure_that_a_reader_holds_up_is_not_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlora_chat.receiver.store.CHECKPOINT_MS", 100)
    grave = record(tombstone("conversation-1"))
    with closing(RecordStore(f"sqlite:///{tmp_path}/logs.db", create=True)) as store:
        store.keep([record(turn_v2())])
        with closing(sqlite3.connect(tmp_path / "logs.db", isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM records").fetchall()
            with pytest.raises(StoreError, match="sent again"):
                store.keep([grave])
        assert store.keep([grave]) == ["duplicate"], "and by then nothing is left"


def test_the_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    with closing(RecordStore(f"sqlite:///{folder}/logs.db", create=True)) as store:
        store.keep([record(turn_v1())])
        assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_several_writers_lose_nothing(url: str) -> None:
    """Two receivers may share a store; each record arrives at both."""
    sent = [record(turn_v2()) for _ in range(60)]
    outcomes: list[str] = []

    def write() -> None:
        with closing(RecordStore(url, create=True)) as store:
            for each in sent:
                outcomes.extend(store.keep([each]))

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["duplicate"] * 60 + ["stored"] * 60


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("nonsense", "must be sqlite:///FILE or postgresql://USER@HOST/NAME"),
        ("mysql://host/x", "begins with mysql://"),
        ("postgresql://me:hunter2@host/x", "PGPASSWORD"),
        ("sqlite://", "names no file"),
        ("sqlite:////nowhere/logs.db", "there is no store at /nowhere/logs.db"),
    ],
)
def test_a_store_that_cannot_be_is_one_clear_line(address: str, said: str) -> None:
    with pytest.raises(StoreError, match=said) as refusal:
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
