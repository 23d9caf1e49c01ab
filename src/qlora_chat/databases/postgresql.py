"""PostgreSQL: an engine for its URL, and the refusal of databases that hold another program's tables or cannot hold every text.

Scope: one server's database. Knows no table of this program but the lists of its migrations.
"""

from __future__ import annotations

from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError

from qlora_chat.databases.problems import OTHER_TABLES, DatabaseError

MIGRATION_LISTS = {"migrations": {"number", "name", "applied_at"}, "receiver_schema": {"version"}}
"""Tables, with their columns, that only this program's databases have: of a history, and of a log receiver."""
_COLUMNS = """
SELECT c.relname, a.attname
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE n.nspname = current_schema() AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
"""
"""Tables and views of the schema that tables are created in, without those of extensions."""


def postgresql_engine(url: URL, password: str | None = None) -> Engine:
    """Engine of a server. DatabaseError if its driver is not installed, and for an option that the driver does not know."""
    try:
        from psycopg import pq
    except ModuleNotFoundError:
        raise DatabaseError("postgresql:// needs the psycopg package: pip install 'qlora-chat[postgres]'") from None
    known = {each.keyword.decode() for each in pq.Conninfo.get_defaults()}
    if unknown := sorted(url.query.keys() - known):
        raise DatabaseError(
            f"its URL has the option {unknown[0][:40]!a}, which PostgreSQL does not know: check what follows the ?"
        )
    url = url.set(drivername="postgresql+psycopg")
    if password:
        url = url.set(password=password)
    try:
        # an encoding of the database's own, or of PGCLIENTENCODING, might lack characters
        return create_engine(
            url,
            hide_parameters=True,
            pool_pre_ping=True,
            pool_size=10,
            max_overflow=20,
            connect_args={"client_encoding": "utf8"},
        )
    except (ArgumentError, ValueError):
        raise DatabaseError("its URL has a host or a port that is none: check what follows the @ and the ?") from None


def check_database(connection: Connection, migrations_table: str) -> None:
    """DatabaseError for a database whose encoding lacks characters, and for a schema with tables of another program only.

    It only reads. `migrations_table` is one of MIGRATION_LISTS, that of the caller.
    """
    encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
    if encoding != "UTF8":
        raise DatabaseError(
            f"its encoding is {encoding}, which does not hold every text: create a database with "
            "createdb --encoding=UTF8 --template=template0"
        )
    tables: dict[str, set[str]] = {}
    for table, column in connection.exec_driver_sql(_COLUMNS):
        tables.setdefault(table, set()).add(column)
    if not tables:
        return
    is_ours = any(columns <= tables.get(name, set()) for name, columns in MIGRATION_LISTS.items())
    expected = MIGRATION_LISTS[migrations_table]
    if not is_ours or not expected <= tables.get(migrations_table, expected):
        schema = connection.exec_driver_sql("SELECT current_schema()").scalar()
        raise DatabaseError(f"its schema {schema!r} has another program's tables, and it was left as it is: {OTHER_TABLES}")
