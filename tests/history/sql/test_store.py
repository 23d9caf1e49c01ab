"""SQLite for real: what a crash leaves, what erasing leaves, who may read, which keys and versions open it."""

from __future__ import annotations

import random
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import inspect

from qlora_chat.history import HistoryError, OutboxRecord
from qlora_chat.history.open import open_history
from qlora_chat.history.retention import expire
from qlora_chat.history.sql.store import SqlHistory
from qlora_chat.history.storage.schema import METADATA
from qlora_chat.messages import Conversation
from qlora_chat.settings import HistorySettings, LogSettings
from tests.history.conftest import KEY, add_turn, postgres_history, sqlite_history, with_open_answer

ROOT = Path(__file__).parents[3]

CHAT = """
import sys, threading, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from qlora_chat.chat import Chat
from qlora_chat.messages import Conversation
from qlora_chat.prompt import DEFAULT_FORMAT
from qlora_chat.settings import Sampling
from tests.fakes import ScriptedEngine
from tests.history.conftest import sqlite_history
store = sqlite_history(Path(sys.argv[2]))
chat = Chat(ScriptedEngine("word " * 5000, delay=0.002), DEFAULT_FORMAT, store)
conversation = store.load(sys.argv[3]) or Conversation(sys.argv[3])
turn = chat.reply(conversation, "question " + sys.argv[4], Sampling())
print("began", flush=True)
def tell():
    while not store.load(sys.argv[3]).messages[-1].content:
        time.sleep(0.05)
    print("kept", flush=True)
threading.Thread(target=tell, daemon=True).start()
for piece in turn:
    pass
"""


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
def test_an_answer_cut_off_by_kill_9_is_there_and_marked(kills: int, tmp_path: Path) -> None:
    path, drawn = tmp_path / "chats.db", random.Random(kills)
    for number in range(kills):
        arguments = [sys.executable, "-c", CHAT, str(ROOT), str(path), "talk", str(number)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            assert process.stdout.readline() == "began\n"
            if number:
                time.sleep(drawn.uniform(0.0, 1.5))
            else:
                assert process.stdout.readline() == "kept\n"
            process.kill()
        with closing(sqlite_history(path)) as store:
            found = store.load("talk")
            assert found is not None
            assert len(found.messages) == 2 * (number + 1)
            question, answer = found.messages[-2:]
            assert question.content == f"question {number}"
            assert answer.finish_reason == "partial"
            if number == 0:
                assert answer.content.startswith("word word")
            if answer.content:
                assert store.search("word")[0].turn_id == answer.id, "what was written of it is found"
            follow = add_turn(store, found, "still there?", "yes")
            store.save(follow.without_last_exchange())


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])
def test_erasing_leaves_no_byte(key: str | None, tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    with closing(sqlite_history(path, key)) as store:
        assert isinstance(store, SqlHistory)
        talk = add_turn(store, Conversation(system="marmaladesystem"), "marmaladequestion " * 300, "marmaladeanswer " * 2000)
        add_turn(store, Conversation(), "other", "stays")
        store.change(talk.id, title="marmaladetitle", tags=["marmaladetag"])
        store.feedback(talk.id, talk.messages[-1].id, -1, "marmaladeedit", "marmaladecomment")
        with store.database.write() as connection:
            store.outbox.add(connection, OutboxRecord("turn", talk.id, b"marmaladebody" * 1000))
            store.outbox.add(connection, OutboxRecord("turn", talk.id, b"marmaladedead" * 1000))
        store.outbox.ack(dead=[(store.outbox.claim(1)[0].seq, "status 400")])
        assert key or any(b"marmalade" in each.read_bytes() for each in tmp_path.iterdir()), "else this proves nothing"
        assert store.erase([talk.id], [OutboxRecord("tombstone", talk.id, b"{}")]) == 1
        for each in tmp_path.iterdir():
            data = each.read_bytes()
            for word in (b"marmal", b"Marmal", b"adequestion", b"adeanswer", b"arm\x00"):
                assert word not in data, f"{word!r} is left in {each.name}"
        assert [hit.excerpt for hit in store.search("stays")] == ["stays"]
        assert store.outbox.counts().waiting == 1, "the tombstone"
        assert store.outbox.counts().dead == 0


def test_an_erasure_fails_while_a_reader_keeps_old_pages_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlora_chat.history.storage.database.BUSY_MS", 200)
    with closing(sqlite_history(tmp_path / "chats.db")) as store:
        talk = add_turn(store, Conversation(), "marmalade", "marmalade")
        with closing(sqlite3.connect(tmp_path / "chats.db", isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM turns").fetchall()
            with pytest.raises(HistoryError, match="old pages are still in the file's log"):
                store.erase([talk.id])
        assert store.erase([talk.id]) == 0
        assert not any(b"marmalade" in each.read_bytes() for each in tmp_path.iterdir())


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


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    with closing(sqlite_history(tmp_path / "new" / "chats.db")) as store:
        add_turn(store, Conversation(), "a", "b")
        for each in (tmp_path / "new").iterdir():
            assert stat.S_IMODE(each.stat().st_mode) == 0o600, each.name
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_migrations_create_the_tables_that_queries_name(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    made = (
        sqlite_history(tmp_path / "c.db") if kind == "sqlite" else postgres_history(request.getfixturevalue("postgres_server"))
    )
    assert isinstance(made, SqlHistory)
    with closing(made) as store, store.database.read() as connection:
        found = inspect(connection)
        for table in METADATA.sorted_tables:
            columns = {column["name"] for column in found.get_columns(table.name)} - {"words"}
            assert columns == {column.name for column in table.columns}, table.name


def test_a_history_of_a_newer_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    sqlite_history(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT INTO migrations VALUES (999, 'from the future', 0)")
        connection.commit()
    with pytest.raises(HistoryError, match="newer version"):
        sqlite_history(path)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("postgresql://me:secret@host/db", "every user of this machine can read"),
        ("mysql://host/db", "is no kind of history"),
        ("nonsense:x", "is no kind of history"),
        ("sqlite://", "needs a file"),
        ("sqlite:////proc/none/chats.db", "cannot be opened for writing"),
        ("postgresql://nobody@127.0.0.1:9/x", "cannot be reached"),
    ],
)
def test_an_unusable_url_is_one_clear_error(url: str, problem: str) -> None:
    with pytest.raises(HistoryError, match=problem) as raised:
        open_history(HistorySettings(url), LogSettings())
    assert "secret" not in str(raised.value)


def test_a_file_that_is_no_database_is_reported_as_damaged(tmp_path: Path) -> None:
    (tmp_path / "chats.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(HistoryError, match="damaged"):
        sqlite_history(tmp_path / "chats.db")
    assert (tmp_path / "chats.db").read_bytes().startswith(b"not a database"), "and is left as it is"


def test_old_conversations_expire(tmp_path: Path) -> None:
    with closing(sqlite_history(tmp_path / "chats.db")) as store:
        assert isinstance(store, SqlHistory)
        old, new = add_turn(store, Conversation(), "old", "1"), add_turn(store, Conversation(), "new", "2")
        with store.database.write() as connection:
            connection.exec_driver_sql("UPDATE conversations SET updated_at = updated_at - 86400 * 31 WHERE id = ?", (old.id,))
        assert expire(store, 30) == 1
        assert [each.id for each in store.list()] == [new.id]


@pytest.mark.parametrize(("writers", "each"), [(16, 6), pytest.param(16, 500, marks=pytest.mark.slow)])
def test_many_writers_keep_their_order(writers: int, each: int, tmp_path: Path) -> None:
    problems: list[Exception] = []
    with closing(sqlite_history(tmp_path / "a.db")) as one, closing(sqlite_history(tmp_path / "a.db")) as other:
        assert isinstance(one, SqlHistory)

        def write(number: int) -> None:
            talk = Conversation(f"writer-{number}")
            try:
                for index in range(each // 2):
                    talk = add_turn(one if number % 2 else other, talk, f"{index}", "ok")
            except Exception as problem:
                problems.append(problem)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(writers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert problems == []
        for number in range(writers):
            kept = one.load(f"writer-{number}")
            assert kept is not None
            assert [message.content for message in kept.messages[::2]] == [f"{index}" for index in range(each // 2)]
        with one.database.read() as connection:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
            assert connection.exec_driver_sql("SELECT count(*) FROM turns").scalar() == writers * each


def test_an_open_answer_is_written_while_it_is_generated(tmp_path: Path) -> None:
    with closing(sqlite_history(tmp_path / "chats.db")) as store:
        kept = store.save(with_open_answer(Conversation(), "Hi"))
        grown = kept.messages[-1]
        for count in range(1, 4):
            store.update_partial(kept.id, replace(grown, content="word " * count))
        until = time.monotonic() + 60
        while (found := store.load(kept.id)) and found.messages[-1].content != "word " * 3:
            assert time.monotonic() < until
            time.sleep(0.02)
