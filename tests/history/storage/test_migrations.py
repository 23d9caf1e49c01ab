"""Migrations: the tables they create, and databases of newer programs."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import inspect

from qlora_chat.history import HistoryError
from qlora_chat.history.sql.store import SqlHistory
from qlora_chat.history.storage.schema import METADATA
from tests.history.conftest import postgres_history, sqlite_history


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
