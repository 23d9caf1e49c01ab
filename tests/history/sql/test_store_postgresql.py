"""PostgreSQL as several page processes use it: nothing is lost between them, delivered twice, or left after an erasure."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing

import pytest

from qlora_chat.delivery.sender import LogSender
from qlora_chat.history import Feedback, OutboxRecord
from qlora_chat.history.open import open_history
from qlora_chat.history.outbox.queue import Outbox
from qlora_chat.history.sql.store import SqlHistory
from qlora_chat.history.storage.database import open_database
from qlora_chat.history.storage.encryption import Cipher
from qlora_chat.history.storage.key_check import check_cipher
from qlora_chat.messages import Conversation
from qlora_chat.settings import HistorySettings, LogSettings
from tests.delivery.receiving import Reply, receiving, record, wait_for
from tests.history.conftest import add_turn, postgres_history
from tests.postgres import PASSWORD, Server


@pytest.fixture
def history(postgres_server: Server) -> Iterator[SqlHistory]:
    store = postgres_history(postgres_server)
    assert isinstance(store, SqlHistory)
    with closing(store):
        yield store


@pytest.fixture
def other(history: SqlHistory, postgres_server: Server) -> Iterator[SqlHistory]:
    """The same history, opened by another process."""
    store = open_history(HistorySettings(postgres_server.network_url, PASSWORD), LogSettings()).store
    assert isinstance(store, SqlHistory)
    with closing(store):
        yield store


def test_erased_rows_are_gone_and_vacuumed(history: SqlHistory) -> None:
    talk = add_turn(history, Conversation(system="marmaladesystem"), "marmaladequestion", "marmaladeanswer")
    history.change(talk.id, title="marmaladetitle", tags=["marmaladetag"])
    history.add_feedback(talk.id, Feedback(talk.messages[-1].id, -1, "marmaladeedit", "marmaladecomment"))
    history.outbox.put(OutboxRecord("turn", talk.id, b"marmaladebody"))
    history.outbox.put(OutboxRecord("turn", talk.id, b"marmaladedead"))
    history.outbox.ack(dead=[(history.outbox.claim(1)[0].seq, "status 400")])
    assert history.erase([talk.id], [OutboxRecord("tombstone", talk.id, b"{}")]) == 1
    with history.database.read() as connection:
        for table in ("turns", "conversations", "feedback"):
            assert connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar() == 0
            assert connection.exec_driver_sql(f"SELECT pg_relation_size('{table}')").scalar() == 0, f"{table} is vacuumed"
    assert [each.outgoing.kind for each in history.outbox.claim(5)] == ["tombstone"]


def test_two_processes_may_open_a_new_database_at_once(history: SqlHistory, other: SqlHistory) -> None:
    problems: list[Exception] = []

    def open_it() -> None:
        try:
            check_cipher(other.database, Cipher(None))
        except Exception as problem:
            problems.append(problem)

    with history.database.write() as connection:
        connection.exec_driver_sql("DELETE FROM facts WHERE name = 'seal'")
    opening = threading.Thread(target=open_it)
    with history.database.write() as connection:
        connection.exec_driver_sql("INSERT INTO facts VALUES ('seal', 'none')")
        opening.start()
        time.sleep(0.3)  # it has looked by now, and waits for this transaction
    opening.join(60)
    assert problems == []


def test_writers_in_two_processes_keep_their_order(history: SqlHistory, other: SqlHistory) -> None:
    problems: list[Exception] = []

    def write(number: int) -> None:
        talk = Conversation(f"writer-{number}")
        try:
            for index in range(5):
                talk = add_turn(other if number % 2 else history, talk, f"{index}", "ok")
        except Exception as problem:
            problems.append(problem)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    for number in range(8):
        stored = history.load(f"writer-{number}")
        assert stored
        assert [message.content for message in stored.messages[::2]] == [f"{index}" for index in range(5)]


def test_two_senders_deliver_each_record_once_and_share_dead_letters(history: SqlHistory, other: SqlHistory) -> None:
    for number in range(60):
        history.outbox.put(record("refused" if number % 10 == 0 else "welcome", f"talk-{number}"))
    with receiving() as receiver:
        receiver.reply = lambda request: Reply(400 if b"refused" in request.body else 200)
        settings = LogSettings(receiver.url)
        senders = [LogSender(each.outbox, settings, lambda line: None) for each in (history, other)]
        wait_for(lambda: history.outbox.counts().waiting == 0)
        for each in senders:
            each.close()
    times = Counter(request.key for request in receiver.received)
    assert set(times.values()) == {1}
    assert len(times) == 60
    counts = history.outbox.counts()
    assert (counts.sent, counts.dead) == (54, 6)
    assert history.outbox.requeue_dead_letters() == 6


def test_the_cap_holds_for_all_processes_together(history: SqlHistory, postgres_server: Server) -> None:
    for _ in range(2):
        database = open_database(postgres_server.network_url, PASSWORD)
        with closing(Outbox(database, Cipher(None), 5_000_000)) as outbox:
            for _ in range(15):
                outbox.put(OutboxRecord("turn", "talk", b"x" * 50_000))
    counts = history.outbox.counts()
    assert counts.waiting + counts.dropped == 30
    assert 0 < counts.waiting < 30
    assert counts.bytes <= 5_000_000
