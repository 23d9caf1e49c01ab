"""The key of a history is changed: nothing is lost, whatever ends the change, and both keys work until it is done."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from qlora_chat.history import Feedback, HistoryError, HistoryUnavailable, OutboxRecord, StoredConversation
from qlora_chat.history.open import open_history, opened_outbox, rekey_history
from qlora_chat.history.sql.store import SqlHistory
from qlora_chat.history.storage.encryption import Binding
from qlora_chat.messages import Conversation
from qlora_chat.settings import HistorySettings, LogSettings
from tests.history.conftest import KEY, NEW_KEY, add_turn
from tests.postgres import new_database

REKEY = """
import sys
from qlora_chat.history.open import rekey_history
from qlora_chat.history.sql import rekey
from qlora_chat.settings import HistorySettings, LogSettings
rekey.BATCH_ROWS = 1
def after_each_row(line):
    print(line, flush=True)
    sys.stdin.readline()
rekey_history(HistorySettings(sys.argv[1], key=sys.argv[2], old_key=sys.argv[3]), LogSettings(), after_each_row)
"""
ROWS = 2 + 4 + 1 + 2
"""Of the history that `filled` makes."""


@contextmanager
def opened(url: str, key: str, old_key: str | None = None) -> Iterator[SqlHistory]:
    store = open_history(HistorySettings(url, key=key, old_key=old_key), LogSettings()).store
    assert isinstance(store, SqlHistory)
    with closing(store):
        yield store


def rekeyed(url: str) -> dict[str, tuple[int, int]]:
    """(rows changed, rows that had the new key before) by table."""
    done = rekey_history(HistorySettings(url, key=NEW_KEY, old_key=KEY), LogSettings(), lambda line: None)
    assert done.unreadable == []
    return {name: (done.changed[name], done.before[name]) for name in ("conversations", "turns", "feedback", "outbox_bodies")}


def content(store: SqlHistory) -> list[StoredConversation | None]:
    return [store.read(name) for name in ("talk", "other")]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/chats.db"
    return new_database(request.getfixturevalue("postgres_server"))


@pytest.fixture
def filled(url: str) -> list[StoredConversation | None]:
    """What that database holds: two conversations, feedback, a waiting record and a dead letter."""
    with opened(url, KEY) as store:
        talk = add_turn(store, Conversation("talk", system="be brief"), "first question", "first answer")
        add_turn(store, Conversation("other"), "second question", "second answer")
        store.add_feedback("talk", Feedback(talk.messages[-1].id, 1, "an edit", "a comment"))
        store.outbox.put(OutboxRecord("turn", "talk", b"refused"))
        store.outbox.ack(dead=[(store.outbox.claim(1)[0].seq, "status 400")])
        store.outbox.put(OutboxRecord("turn", "talk", b"waits"))
        return content(store)


def assert_rekeyed(url: str, filled: list[StoredConversation | None]) -> None:
    with opened(url, NEW_KEY) as store:
        assert content(store) == filled
        assert store.outbox.requeue_dead_letters() == 1
        assert [each.outgoing.body for each in store.outbox.claim(5)] == [b"refused", b"waits"]
    with pytest.raises(HistoryError, match="is not the key of this history"), opened(url, KEY):
        pass


def test_a_change_of_the_key_that_is_killed_again_and_again_loses_nothing(
    url: str, filled: list[StoredConversation | None]
) -> None:
    for rows in range(1, ROWS + 1, 2):
        arguments = [sys.executable, "-c", REKEY, url, NEW_KEY, KEY]
        with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin
            assert process.stdout
            for row in range(rows):
                assert process.stdout.readline().endswith("rows so far\n")
                if row < rows - 1:
                    print(file=process.stdin, flush=True)
            process.kill()
        with opened(url, NEW_KEY, KEY) as store:
            assert content(store) == filled
        for key in (KEY, NEW_KEY):
            with (
                pytest.raises(HistoryError, match="the key of this history is being changed.*HISTORY_OLD_KEY"),
                opened(url, key),
            ):
                pass
    counts = rekeyed(url)
    assert sum(before for _, before in counts.values()) >= ROWS - 1, "what was done before is not done again"
    assert sum(map(sum, counts.values())) == ROWS
    assert_rekeyed(url, filled)


def test_it_can_be_repeated_and_taken_back(url: str, filled: list[StoredConversation | None]) -> None:
    assert rekeyed(url) == {"conversations": (2, 0), "turns": (4, 0), "feedback": (1, 0), "outbox_bodies": (2, 0)}
    assert rekeyed(url) == {"conversations": (0, 2), "turns": (0, 4), "feedback": (0, 1), "outbox_bodies": (0, 2)}
    rekey_history(HistorySettings(url, key=KEY, old_key=NEW_KEY), LogSettings(), lambda line: None)
    with opened(url, KEY) as store:
        assert content(store) == filled


@pytest.mark.usefixtures("filled")
def test_a_program_with_both_keys_continues_and_one_with_the_old_key_writes_nothing_more(url: str) -> None:
    with opened(url, KEY) as old, opened(url, NEW_KEY, KEY) as both:
        add_turn(both, Conversation(), "during the change", "answer")
        with pytest.raises(HistoryUnavailable, match="is being changed.*nothing more is written"):
            old.save(Conversation("lost?"))
        rekeyed(url)
        add_turn(both, Conversation("later"), "after the change", "answer")
        with pytest.raises(HistoryUnavailable, match="is not the key of this history; nothing more is written"):
            old.change("talk", title="lost?")
    with opened(url, NEW_KEY) as store:
        assert store.load("later")
        assert {each.title for each in store.list()} > {"during the change", "after the change"}


def test_values_of_earlier_versions_are_bound_by_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as earlier, opened(url, KEY) as store:
        earlier.setattr(Binding, "associated_data", None)
        add_turn(store, Conversation("talk"), "question", "answer")
    rekeyed(url)
    with opened(url, NEW_KEY) as store:
        assert store.load("talk")
        with store.database.write() as connection:
            connection.exec_driver_sql("UPDATE turns SET details = content")
        with pytest.raises(HistoryError, match="details in turns of conversation talk"):
            store.load("talk")


@pytest.mark.usefixtures("filled")
def test_what_neither_key_decrypts_is_reported_and_left_as_it_was(url: str) -> None:
    with opened(url, KEY) as store, store.database.write() as connection:
        connection.exec_driver_sql("UPDATE conversations SET title = system WHERE id = 'talk'")
    done = rekey_history(HistorySettings(url, key=NEW_KEY, old_key=KEY), LogSettings(), lambda line: None)
    assert len(done.unreadable) == 1
    assert "title in conversations of conversation talk" in done.unreadable[0]
    with opened(url, NEW_KEY) as store:
        assert store.load("other"), "everything else has the new key"


def test_both_keys_are_needed(url: str) -> None:
    for old_key in (None, KEY):
        with pytest.raises(HistoryError, match="set QLORA_CHAT_HISTORY_KEY to the new key and QLORA_CHAT_HISTORY_OLD_KEY"):
            rekey_history(HistorySettings(url, key=KEY, old_key=old_key), LogSettings(), lambda line: None)
    with opened(url, KEY):
        pass
    with (
        pytest.raises(HistoryError, match="is not the key of this history"),
        opened(url, NEW_KEY, NEW_KEY.replace("N", "O", 1)),
    ):
        pass


def test_plain_files_have_no_key(tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match="jsonl: stores plain files"):
        rekey_history(HistorySettings(f"jsonl:{tmp_path}", key=NEW_KEY, old_key=KEY), LogSettings(), lambda line: None)


def test_an_outbox_in_a_file_of_its_own_has_its_key_changed_too(tmp_path: Path) -> None:
    log = LogSettings("https://receiver.example/log", outbox=tmp_path / "outbox.db")
    with opened_outbox(HistorySettings(key=KEY), log) as outbox:
        outbox.put(OutboxRecord("turn", "talk", b"waits"))
    done = rekey_history(HistorySettings(key=NEW_KEY, old_key=KEY), log, lambda line: None)
    assert done.changed == {"outbox_bodies": 1}
    with opened_outbox(HistorySettings(key=NEW_KEY), log) as outbox:
        assert [each.outgoing.body for each in outbox.claim(5)] == [b"waits"]
