"""deploy/database.sh in a real PostgreSQL: pages get a role that owns its database and has no other rights."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from qlora_chat.history.open import open_history
from qlora_chat.messages import Conversation
from qlora_chat.settings import HistorySettings, LogSettings
from tests.deploy.test_compose import DEPLOY
from tests.history.conftest import KEY, add_turn
from tests.postgres import Server, postgres, programs

PASSWORD = "it's; DROP ROLE qlora"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server of these tests alone, after its first start with the script."""
    with postgres() as started:
        where = parse_qs(urlsplit(started.socket_url).query)
        binaries = programs()
        assert binaries
        image = {"POSTGRES_USER": "postgres", "PAGE_DATABASE_PASSWORD": PASSWORD}
        here = {"PATH": f"{binaries}:{os.environ['PATH']}", "PGHOST": where["host"][0], "PGPORT": where["port"][0]}
        subprocess.run(["sh", DEPLOY / "database.sh"], env=os.environ | image | here, check=True)
        yield started


def page_url(server: Server, database: str = "qlora") -> str:
    return f"postgresql://qlora@127.0.0.1:{urlsplit(server.network_url).port}/{database}"


def test_a_page_can_store_and_erase_conversations(server: Server) -> None:
    history = open_history(HistorySettings(page_url(server), PASSWORD, KEY), LogSettings())
    with closing(history.store) as store:
        conversation = add_turn(store, Conversation(), "What is the capital of France?", "Paris.")
        assert store.load(conversation.id)
        assert store.erase([conversation.id]) == 1


@pytest.mark.parametrize(
    "statement",
    ["CREATE ROLE another", "CREATE DATABASE another", "ALTER ROLE qlora SUPERUSER", "COPY (SELECT 1) TO PROGRAM 'true'",
     "SELECT pg_read_file('/etc/passwd')", "SELECT rolpassword FROM pg_authid"],
)  # fmt: skip
def test_its_role_can_do_nothing_to_the_server(server: Server, statement: str) -> None:
    with (
        psycopg.connect(page_url(server), password=PASSWORD, autocommit=True) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute(statement.encode())


def test_its_role_opens_no_other_database_and_needs_its_password(server: Server) -> None:
    for database in ("postgres", "template1"):
        with pytest.raises(psycopg.OperationalError, match="permission denied"):
            psycopg.connect(page_url(server, database), password=PASSWORD)
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(page_url(server), password="another")
