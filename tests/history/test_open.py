"""History URLs that cannot be opened."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from qlora_chat.databases import server_problem
from qlora_chat.history import HistoryError
from qlora_chat.history.open import history_path, open_history
from qlora_chat.history.outbox.recovery import open_outbox_file
from qlora_chat.history.sql.recovery import recover
from qlora_chat.history.storage.encryption import Cipher
from qlora_chat.messages import Conversation
from qlora_chat.settings import HistorySettings, LogSettings
from tests.history.conftest import add_turn, sqlite_history
from tests.postgres import Server, new_database


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("postgresql://me:secret@host/db", "every user of this machine can read"),
        ("mysql://host/db", "is no kind of history"),
        ("nonsense:x", "is no kind of history"),
        ("sqlite://", "needs a file"),
        ("sqlite:////proc/none/chats.db", "cannot be opened for writing"),
        ("sqlite:///x.db?mode=ro", "has options after a"),
        ("sqlite:///~nobody-here/x.db", "no home folder of that name"),
        ("jsonl:", "jsonl: names no folder; write jsonl:FOLDER"),
        ("jsonl:~nobody-here/x", "no home folder of that name"),
        ("postgresql://nobody@127.0.0.1:9/x", "cannot be reached: nothing listens on that host and port"),
        ("postgresql://nobody@no-such-host.invalid/x", "cannot be reached: there is no host of that name"),
    ],
)
def test_an_unusable_url_is_one_clear_error(url: str, problem: str) -> None:
    with pytest.raises(HistoryError, match=problem) as raised:
        open_history(HistorySettings(url), LogSettings())
    assert "secret" not in str(raised.value)


def untouched(path: Path) -> tuple[bytes, int, list[str]]:
    return path.read_bytes(), path.stat().st_mode, sorted(each.name for each in path.parent.iterdir())


def other_programs_database(path: Path, journal: str = "delete") -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode={journal}")
        connection.execute("CREATE TABLE migrations (id INTEGER)")
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
        connection.commit()


@pytest.mark.parametrize("text", [b"not a database at all" * 100, b"x", b"\x89PNG" * 2000], ids=["text", "letter", "picture"])
def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(text)
    path.chmod(0o644)
    before = untouched(path)
    with pytest.raises(HistoryError, match="is not an SQLite database, and it was left as it is: name another file"):
        sqlite_history(path)
    with pytest.raises(HistoryError, match="the outbox .LOGGING_OUTBOX. cannot be opened: .* is not an SQLite database"):
        open_outbox_file(path, Cipher(None), LogSettings().cap_bytes)
    with pytest.raises(HistoryError, match="nothing was changed"):
        recover(path, Cipher(None), LogSettings().cap_bytes)
    assert untouched(path) == before


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_another_programs_database_is_refused_and_left_as_it_is(journal: str, tmp_path: Path) -> None:
    path = tmp_path / "places.sqlite"
    other_programs_database(path, journal)
    path.chmod(0o644)
    before = untouched(path)
    with pytest.raises(HistoryError, match="is another program's SQLite database, and it was left as it is"):
        sqlite_history(path)
    with pytest.raises(HistoryError, match="is another program's SQLite database, and it was left as it is"):
        open_outbox_file(path, Cipher(None), LogSettings().cap_bytes)
    assert untouched(path) == before


def test_another_programs_tables_that_are_only_in_its_log_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "places.sqlite"
    script = (
        f"import os, sqlite3; c = sqlite3.connect({str(path)!r}, isolation_level=None); c.execute('PRAGMA journal_mode=WAL');"
        "c.execute('CREATE TABLE users (name TEXT)'); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    path.chmod(0o644)
    before = untouched(path)
    with pytest.raises(HistoryError, match="is another program's SQLite database, and it was left as it is"):
        sqlite_history(path)
    assert untouched(path) == before


@pytest.mark.parametrize("content", [b"SQLite format 3\0" + b"precious " * 1000, bytes(8192)], ids=["damaged", "zeros"])
def test_a_damaged_file_without_a_record_of_ours_is_renamed_when_an_outbox_takes_its_name(
    content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "mine"
    path.write_bytes(content)
    open_outbox_file(path, Cipher(None), LogSettings().cap_bytes).close()
    assert (tmp_path / "mine.unreadable").read_bytes() == content


def test_a_text_that_begins_with_the_word_sqlite_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("SQLite for beginners: a database in a file")
    with pytest.raises(HistoryError, match="is not an SQLite database"):
        open_outbox_file(path, Cipher(None), LogSettings().cap_bytes)
    assert path.read_text().startswith("SQLite for beginners")


def test_a_device_is_no_database() -> None:
    mode = Path("/dev/null").stat().st_mode
    with pytest.raises(HistoryError, match="/dev/null is no file"):
        open_history(HistorySettings("sqlite:////dev/null"), LogSettings())
    assert Path("/dev/null").stat().st_mode == mode


@pytest.mark.parametrize("url", ["sqlite:///~/chats.db", "jsonl:~/chats.db", "jsonl://~/chats.db"])
def test_a_tilde_is_the_home_folder(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with closing(open_history(HistorySettings(url), LogSettings())) as opened:
        add_turn(opened.store, Conversation(), "Hi", "Hello")
    assert history_path(url) == tmp_path / "chats.db"
    assert (tmp_path / "chats.db").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("/postgres?", "/nothere?"), "no such database: create it with createdb"),
        (("postgres@", "nobody_here@"), "knows no such user"),
        (("?", "?colour=red&"), "has the option 'colour', which PostgreSQL does not know"),
        (("host=", "host=/nowhere"), "has no socket on this machine"),
        (("?", "?row_factory=x&"), "the option 'row_factory', which PostgreSQL does not know"),
        (("?", "?sslmode=verify-maybe&"), "has an option that PostgreSQL does not know"),
        (("?", "?options=-csearch_path%3Dnowhere&"), "no schema to create tables in"),
    ],
)
def test_errors_of_postgresql_are_told_apart(change: tuple[str, str], said: str, postgres_server: Server) -> None:
    with pytest.raises(HistoryError, match=said):
        open_history(HistorySettings(postgres_server.socket_url.replace(*change, 1)), LogSettings())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("FATAL:  pg_hba.conf rejects connection for host", "a line of the server's pg_hba.conf rejects this user"),
        ('FATAL:  no pg_hba.conf entry for host "::1", no encryption', "add sslmode=require"),
        ('FATAL:  Peer authentication failed for user "me"', "from a login of the same name"),
        ('FATAL:  role "me" is not permitted to log in', "ALTER ROLE ... LOGIN"),
        ('FATAL:  database "x" is not currently accepting connections', "ALLOW_CONNECTIONS"),
        ("server does not support SSL, but SSL was required", "turn ssl on there, or leave sslmode out"),
        ("received invalid response to SSL negotiation: H", "what answers there is no PostgreSQL"),
        ("server closed the connection unexpectedly", "it closed the connection"),
        ("something that no release says yet", "cannot be reached: it says 'something that no release says yet'"),
    ],
)
def test_refusals_of_postgresql_have_a_cause_and_a_next_step(text: str, said: str) -> None:
    import psycopg

    problem = psycopg.OperationalError(f'connection failed: connection to server at "db", port 5432 failed: {text}')
    assert said in (server_problem(problem) or "")


def test_an_sslmode_that_the_server_lacks_is_named(postgres_server: Server) -> None:
    with pytest.raises(HistoryError, match="offers no encryption .SSL., which the URL's sslmode asks for"):
        open_history(HistorySettings(f"{postgres_server.network_url}?sslmode=require"), LogSettings())


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE conversations (id integer)",
        "CREATE TABLE migrations (id integer, migration text, batch integer)",
        "CREATE TABLE users (name text)",
        "CREATE VIEW turns AS SELECT 1 AS number",
        "CREATE TABLE migrations (number integer, name text, applied_at float8); CREATE TABLE turns (x integer)",
    ],
)
def test_another_programs_schema_is_refused_and_left_as_it_is(statement: str, postgres_server: Server) -> None:
    import psycopg

    url = new_database(postgres_server)
    names = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())
        before = connection.execute(names.encode()).fetchall()
        with pytest.raises(HistoryError, match="another program's tables.*give this program a database or a schema of its own"):
            open_history(HistorySettings(url), LogSettings())
        assert connection.execute(names.encode()).fetchall() == before


def test_tables_of_extensions_and_of_a_log_receiver_are_no_other_programs(postgres_server: Server) -> None:
    import psycopg

    url = new_database(postgres_server)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(b"CREATE TABLE receiver_schema (version integer NOT NULL); CREATE TABLE records (number integer)")
    for _ in range(2):
        open_history(HistorySettings(url), LogSettings()).close()


def test_a_database_that_cannot_hold_every_character_is_refused(postgres_server: Server) -> None:
    import psycopg

    with psycopg.connect(postgres_server.socket_url, autocommit=True) as connection:
        connection.execute(b"CREATE DATABASE ascii ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    url = postgres_server.socket_url.replace("/postgres?", "/ascii?")
    with pytest.raises(HistoryError, match="its encoding is SQL_ASCII, which does not hold every text: create a database"):
        open_history(HistorySettings(url), LogSettings())


def test_a_history_and_an_outbox_are_not_taken_for_each_other(tmp_path: Path) -> None:
    history, outbox = tmp_path / "chats.db", tmp_path / "outbox.db"
    sqlite_history(history).close()
    open_outbox_file(outbox, Cipher(None), LogSettings().cap_bytes).close()
    before = untouched(history), untouched(outbox)
    with pytest.raises(HistoryError, match="outbox.db is an outbox .LOGGING_OUTBOX., which holds no conversations"):
        sqlite_history(outbox)
    with pytest.raises(HistoryError, match="the outbox .LOGGING_OUTBOX. cannot be opened: .*chats.db is a history .--history."):
        open_outbox_file(history, Cipher(None), LogSettings().cap_bytes)
    assert (untouched(history), untouched(outbox)) == before


@pytest.mark.parametrize("password", [None, "wrong"])
def test_a_password_that_postgresql_refuses_is_named(password: str | None, postgres_server: Server) -> None:
    with pytest.raises(HistoryError, match="refuses the password: set it in QLORA_CHAT_HISTORY_PASSWORD"):
        open_history(HistorySettings(postgres_server.network_url, password), LogSettings())


def test_a_user_without_rights_is_told_which(postgres_server: Server) -> None:
    import psycopg

    url = new_database(postgres_server)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE ROLE reader LOGIN")
        connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    with pytest.raises(HistoryError, match="lacks rights: let the database's owner GRANT it CREATE"):
        open_history(HistorySettings(url.replace("postgres@", "reader@")), LogSettings())
