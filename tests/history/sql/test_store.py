"""The store over SQLite: crashes, erasure, file permissions, concurrent writers."""

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

from qlora_chat.history import Feedback, HistoryError, HistoryUnavailable, OutboxRecord
from qlora_chat.history.sql.store import SqlHistory
from qlora_chat.messages import Conversation
from tests.history.conftest import KEY, add_turn, sqlite_history, with_open_answer

ROOT = Path(__file__).parents[3]

CHAT = """
import sys, threading, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from qlora_chat.chat import AnswerOptions, Chat
from qlora_chat.messages import Conversation
from qlora_chat.prompt import DEFAULT_FORMAT
from qlora_chat.settings import Sampling
from tests.fakes import ScriptedEngine
from tests.history.conftest import sqlite_history
store = sqlite_history(Path(sys.argv[2]))
chat = Chat(ScriptedEngine("word " * 5000, delay=0.002), DEFAULT_FORMAT, store)
conversation = store.load(sys.argv[3]) or Conversation(sys.argv[3])
turn = chat.reply(conversation, "question " + sys.argv[4], AnswerOptions(Sampling()))
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
    path, draw = tmp_path / "chats.db", random.Random(kills)
    for number in range(kills):
        arguments = [sys.executable, "-c", CHAT, str(ROOT), str(path), "talk", str(number)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            assert process.stdout.readline() == "began\n"
            if number:
                time.sleep(draw.uniform(0.0, 1.5))
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
                assert answer.content.startswith("word")
            if answer.content:
                assert store.search("word")[0].turn_id == answer.id, "what was written of it is found"
            follow = add_turn(store, found, "still there?", "yes")
            store.save(follow.without_last_exchange())


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
def test_erasing_leaves_no_byte(key: str | None, tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    with closing(sqlite_history(path, key)) as store:
        assert isinstance(store, SqlHistory)
        talk = add_turn(store, Conversation(system="marmaladesystem"), "marmaladequestion " * 300, "marmaladeanswer " * 2000)
        add_turn(store, Conversation(), "other", "stays")
        store.change(talk.id, title="marmaladetitle", tags=["marmaladetag"])
        store.add_feedback(talk.id, Feedback(talk.messages[-1].id, -1, "marmaladeedit", "marmaladecomment"))
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


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    with closing(sqlite_history(tmp_path / "new" / "chats.db")) as store:
        add_turn(store, Conversation(), "a", "b")
        for each in (tmp_path / "new").iterdir():
            assert stat.S_IMODE(each.stat().st_mode) == 0o600, each.name
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


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
            stored = one.load(f"writer-{number}")
            assert stored is not None
            assert [message.content for message in stored.messages[::2]] == [f"{index}" for index in range(each // 2)]
        with one.database.read() as connection:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
            assert connection.exec_driver_sql("SELECT count(*) FROM turns").scalar() == writers * each


def test_an_open_answer_is_written_while_it_is_generated(tmp_path: Path) -> None:
    with closing(sqlite_history(tmp_path / "chats.db")) as store:
        stored = store.save(with_open_answer(Conversation(), "Hi"))
        answer = stored.messages[-1]
        for count in range(1, 4):
            store.update_partial(stored.id, replace(answer, content="word " * count))
        until = time.monotonic() + 60
        while (found := store.load(stored.id)) and found.messages[-1].content != "word " * 3:
            assert time.monotonic() < until
            time.sleep(0.02)


@pytest.mark.parametrize("replaced", [True, False], ids=["replaced", "removed"])
def test_a_file_that_is_removed_or_replaced_is_noticed_at_the_next_write(replaced: bool, tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    with closing(sqlite_history(path)) as store:
        talk = add_turn(store, Conversation(), "one", "1")
        path.rename(tmp_path / "elsewhere.db")
        if replaced:
            sqlite_history(path).close()
        with pytest.raises(HistoryUnavailable, match="was removed or replaced while it was open"):
            add_turn(store, talk, "two", "2")
        if replaced:
            with closing(sqlite_history(path)) as other:
                assert other.list() == [], "nothing is written into another history"
