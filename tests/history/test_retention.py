"""Retention: conversations that have not changed for too long are erased."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from qlora_chat.history import HistoryStore, retention, retention_clock
from qlora_chat.history.open import open_history
from qlora_chat.history.retention import TrustedTime, expire_before
from qlora_chat.history.sql.store import SqlHistory
from qlora_chat.messages import Conversation
from qlora_chat.settings import HistorySettings, LogSettings
from tests.history.conftest import add_turn, sqlite_history


def expire(store: HistoryStore, days: float) -> int:
    """Erase what has not changed for so many days. Returns how many."""
    return expire_before(store, TrustedTime(store, days).check() - timedelta(days=days))


def test_old_conversations_expire(tmp_path: Path) -> None:
    with closing(sqlite_history(tmp_path / "chats.db")) as store:
        assert isinstance(store, SqlHistory)
        old, new = add_turn(store, Conversation(), "old", "1"), add_turn(store, Conversation(), "new", "2")
        with store.database.write() as connection:
            connection.exec_driver_sql("UPDATE conversations SET updated_at = updated_at - 86400 * 31 WHERE id = ?", (old.id,))
        assert expire(store, 30) == 1
        assert [each.id for each in store.list()] == [new.id]


def test_a_clock_that_is_ahead_erases_nothing_before_its_time(store: HistoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        add_turn(store, Conversation(), f"question {number}", "answer")
    real = retention.now
    monkeypatch.setattr(retention, "now", lambda: real() + timedelta(days=3650))
    assert expire(store, 30) == 0
    assert len(store.list()) == 5


HISTORIES = ("sqlite:///{}/chats.db", "jsonl:{}/chats")


@pytest.fixture(params=HISTORIES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return request.param.format(tmp_path)


class Machine:
    """A machine whose clock can be set, with a history that is opened at each start."""

    def __init__(self, url: str, patch: pytest.MonkeyPatch) -> None:
        self.ahead, self.passed, self._real, self.url = timedelta(), timedelta(), retention.now, url
        patch.setattr(retention, "now", lambda: self._real() + self.passed + self.ahead)
        patch.setattr(retention_clock, "_uptime", lambda: self.passed.total_seconds())

    def run(self, hours: int, days: float = 30, step: int = 1) -> int:
        """Start, check every `step` hours for so long, and end. Returns how many conversations are left."""
        with closing(open_history(HistorySettings(self.url), LogSettings())) as opened:
            trusted = TrustedTime(opened.store, days, opened.facts)
            for _ in range(0, hours, step):
                expire_before(opened.store, trusted.check() - timedelta(days=days))
                self.passed += timedelta(hours=step)
            return len(opened.store.list())

    def lag(self, days: float) -> timedelta:
        """Difference between the clock and the time that counts, after a start."""
        with closing(open_history(HistorySettings(self.url), LogSettings())) as opened:
            return retention.now() - TrustedTime(opened.store, days, opened.facts).check()

    def chat(self) -> None:
        with closing(open_history(HistorySettings(self.url), LogSettings())) as opened:
            add_turn(opened.store, Conversation(), "question", "answer")


@pytest.fixture
def machine(url: str, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(url, monkeypatch)


def test_a_clock_that_stays_ahead_erases_nothing_early_over_any_number_of_restarts(machine: Machine) -> None:
    for _ in range(5):
        machine.chat()
    assert machine.run(hours=2) == 5
    machine.ahead = timedelta(days=3650)
    assert machine.run(hours=48, step=4) == 5, "each check"
    for _ in range(8):
        assert machine.run(hours=1) == 5, "each start"
    machine.ahead = timedelta()
    assert machine.run(hours=2) == 5


def test_a_turn_saved_with_a_clock_that_is_ahead_is_not_believed_at_the_next_start(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.chat()
    assert machine.run(hours=2) == 1
    machine.ahead = timedelta(days=3650)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3650 * 86_400)
    machine.chat()
    assert machine.run(hours=2) == 2


def test_time_that_passes_is_followed_running_or_not(machine: Machine) -> None:
    machine.chat()
    assert machine.run(hours=24 * 20, step=48) == 1
    machine.passed += timedelta(days=9)  # off
    assert machine.run(hours=12, step=6) == 1
    assert machine.run(hours=36, step=6) == 0, "30 days after the chat"


def test_a_machine_that_runs_by_day_only_does_not_fall_behind(machine: Machine) -> None:
    for _ in range(5):
        machine.run(hours=8, days=1, step=4)
        machine.passed += timedelta(hours=16)
    assert machine.lag(days=1) < timedelta(hours=1)


def test_a_clock_that_goes_on_evenly_for_a_month_is_believed(machine: Machine) -> None:
    machine.run(hours=1)
    machine.passed += timedelta(days=200)  # off for longer than a start believes
    machine.run(hours=24 * 31, step=48)
    assert machine.lag(days=30) < timedelta(hours=1)


def test_several_processes_of_one_history_count_time_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(HISTORIES[0].format(tmp_path), monkeypatch)
    with closing(open_history(HistorySettings(machine.url), LogSettings())) as opened:
        pages = [TrustedTime(opened.store, 30, opened.facts) for _ in range(4)]
        began = ended = pages[0].check()
        machine.ahead = timedelta(days=3650)
        for _ in range(6):
            for page in pages:
                ended = page.check()
            machine.passed += timedelta(hours=4)
    assert ended - began <= timedelta(days=15) + timedelta(hours=25)


def test_a_notice_says_that_the_clock_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(HISTORIES[0].format(tmp_path), monkeypatch)
    machine.run(hours=1)
    machine.ahead = timedelta(days=3650)
    notices: list[str] = []
    told = threading.Event()

    def tell(line: str) -> None:
        notices.append(line)
        told.set()

    with (
        closing(open_history(HistorySettings(machine.url), LogSettings())) as opened,
        closing(retention.Retention(opened.store, 30, tell, opened.facts)),
    ):
        assert told.wait(60)
    assert "days ahead of the time that this history has seen pass" in notices[0]


def test_a_conversation_that_changes_while_retention_looks_stays(store: HistoryStore) -> None:
    talk = add_turn(store, Conversation(), "old question", "old answer")
    before_the_answer = store.list()[0].updated_at + timedelta(microseconds=1)
    add_turn(store, talk, "I am back!", "Welcome.")
    assert store.erase([talk.id], unchanged_since=before_the_answer) == 0
    assert len(store.list()) == 1
    assert store.erase([talk.id], unchanged_since=store.list()[0].updated_at + timedelta(seconds=1)) == 1
