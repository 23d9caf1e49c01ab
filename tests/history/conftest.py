"""Stores of every kind, each with its own empty place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from qlora_chat.history import HistoryStore
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.history.open import open_history
from qlora_chat.history.sql.store import SqlHistory
from qlora_chat.settings import HistorySettings, LogSettings
from tests.postgres import PASSWORD, Server

KEY = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="


def sqlite_history(path: Path, key: str | None = None) -> HistoryStore:
    return open_history(HistorySettings(f"sqlite:///{path}", key=key), LogSettings()).store


OPENERS: dict[str, Callable[[Path], HistoryStore]] = {
    "memory": lambda folder: MemoryHistory(),
    "sqlite": lambda folder: sqlite_history(folder / "chats.db"),
    "jsonl": lambda folder: open_history(HistorySettings(f"jsonl:{folder / 'chats'}"), LogSettings()).store,
    "sealed": lambda folder: sqlite_history(folder / "chats.db", KEY),
}


def postgres_history(server: Server) -> HistoryStore:
    """An empty history in that server."""
    store = open_history(HistorySettings(server.network_url, PASSWORD), LogSettings()).store
    assert isinstance(store, SqlHistory)
    with store.database.write() as connection:
        for table in ("feedback", "turns", "conversations", "outbox", "outbox_bodies"):
            connection.exec_driver_sql(f"DELETE FROM {table}")
    return store


@pytest.fixture(params=[*OPENERS, "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[HistoryStore]:
    """A store of every kind."""
    if request.param == "postgresql":
        opened = postgres_history(request.getfixturevalue("postgres_server"))
    else:
        opened = OPENERS[request.param](tmp_path)
    with closing(opened):
        yield opened
