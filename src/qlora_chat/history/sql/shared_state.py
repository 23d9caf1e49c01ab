"""State beside the conversations that all processes of one history share: values by name, and sessions that were logged out.

Scope: two small tables. Knows no meaning of a value, no cookie and no password.
"""

from __future__ import annotations

import time
from collections.abc import Set

from sqlalchemy import delete, select

from qlora_chat.history.storage.database import Database
from qlora_chat.history.storage.schema import ENDED_SESSIONS, FACTS


class FactsTable:
    """Facts over a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def read(self, name: str) -> str | None:
        """The value, or None."""
        with self._database.read() as connection:
            return connection.execute(select(FACTS.c.value).where(FACTS.c.name == name)).scalar()

    def write(self, name: str, value: str) -> None:
        """Store the value; on disk on return."""
        row = self._database.insert(FACTS).values(name=name, value=value)
        with self._database.write() as connection:
            connection.execute(row.on_conflict_do_update(index_elements=["name"], set_={"value": value}))


class EndedSessionsTable:
    """Names of sessions that were ended before their time."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, name: str, ends_at: float) -> None:
        """Record that a session is ended, on disk on return; those that have expired anyway are forgotten."""
        row = self._database.insert(ENDED_SESSIONS).values(name=name, ends_at=ends_at).on_conflict_do_nothing()
        with self._database.write() as connection:
            connection.execute(delete(ENDED_SESSIONS).where(ENDED_SESSIONS.c.ends_at < time.time()))
            connection.execute(row)

    def names(self) -> Set[str]:
        """Names of all ended sessions that have not expired."""
        with self._database.read() as connection:
            return set(connection.execute(select(ENDED_SESSIONS.c.name)).scalars())
