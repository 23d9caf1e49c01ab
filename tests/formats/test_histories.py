"""Histories, outboxes, exports and a receiver's store of 2026-11-29 still open, and say what they said then."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes import ScriptedServer
from tests.formats.conftest import Run, receiving
from tests.formats.golden import read
from tests.postgres import Server, new_database
from tests.receiver.server import free_port, program

CHATS = ("--history", "sqlite:///chats.db")
KEY = "c2FtcGxlLWtleS1mb3ItdGVzdHMtb25seS0wMDAwMDA="
TITLES = [
    "Whose is this?", "Tell me a long story.", "Which harbour is the deepest?", "Is it deep enough for ferries?",
    "Say hello in German and Japanese, with a fox.", "Where is the lighthouse?", "What is for dinner?",
]  # fmt: skip
"""The newest first."""


def version_of(file: Path, table: str, column: str) -> int:
    with closing(sqlite3.connect(file)) as database:
        return database.execute(f"SELECT max({column}) FROM {table}").fetchone()[0]


def columns_of(file: Path) -> dict[str, set[str]]:
    with closing(sqlite3.connect(file)) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: {row[1] for row in database.execute(f"PRAGMA table_info({name})")} for name in tables}


def schema_of(file: Path) -> set[tuple[Any, ...]]:
    with closing(sqlite3.connect(file)) as database:
        return set(database.execute("SELECT type, name, sql FROM sqlite_master"))


# --- SQLite ----------------------------------------------------------------------------------------------------------


def test_an_sqlite_history_lists_its_conversations_with_tags_and_adapters(run: Run) -> None:
    listed = json.loads(run("history", "list", *CHATS, "--json").stdout)
    assert [each["title"] for each in listed] == TITLES
    by_title = {each["title"]: each for each in listed}
    assert by_title["Which harbour is the deepest?"]["tags"] == ["qlora-chat:api", "project=ferry"]
    assert by_title["Where is the lighthouse?"]["turns"] == 6
    assert by_title["Where is the lighthouse?"]["adapter"] == "Llama-Lumi-45M chat adapter"
    assert by_title["Where is the lighthouse?"]["model"] == "Llama-Lumi-45M (demo)"


@pytest.mark.parametrize("form", ["json", "jsonl", "guanaco", "markdown"])
def test_an_sqlite_history_is_exported_byte_for_byte_as_it_was(run: Run, samples: Path, form: str) -> None:
    """With every branch, feedback, system text, metadata, partial answer and detail of it."""
    run("history", "export", *CHATS, "--format", form, "--out", "now")
    assert (samples / "now").read_bytes() == (samples / "exports" / f"chats.{form}").read_bytes()


def test_the_sample_holds_what_a_history_can_hold(samples: Path) -> None:
    """So that the comparison above compares it."""
    chats = {each["title"]: each for each in read(samples / "exports" / "chats.json")}
    lighthouse = chats["Where is the lighthouse?"]
    assert [turn["parent_id"] for turn in lighthouse["turns"]].count(None) == 2, "a retry, which is a branch"
    said = lighthouse["feedback"][0]
    assert (said["rating"], said["edited"], said["comment"]) == (1, "On the north coast, above the harbour.", "Nearly: schön!")
    fox = chats["Say hello in German and Japanese, with a fox."]
    assert fox["system"] == "Be brief. Grüße!"
    assert fox["turns"][1]["content"] == "Grüße aus Zürich! \U0001f98a こんにちは, 世界."
    assert fox["feedback"][0]["rating"] == -1
    assert chats["Tell me a long story."]["turns"][1]["finish_reason"] == "partial"
    with closing(sqlite3.connect(samples / "chats.db")) as database:
        owners = {*database.execute("SELECT owner, title FROM conversations WHERE owner IS NOT NULL")}
    assert owners == {("f" * 64, "Whose is this?")}


def test_the_branch_that_was_shown_is_shown(run: Run, samples: Path) -> None:
    chats = {each["title"]: each["id"] for each in read(samples / "exports" / "chats.json")}
    shown = run("history", "show", chats["Where is the lighthouse?"][:8], *CHATS).stdout
    assert "It stands on the north coast, above the harbour." in shown
    assert "Nobody since 1987; it runs by itself." in shown
    assert "On the north coast." not in shown
    assert "## Assistant (partial)\n\nOnce upon a time" in run("history", "show", chats["Tell me a long story."], *CHATS).stdout


@pytest.mark.parametrize(("words", "title"), [("north coa", TITLES[5]), ("zurich", TITLES[4]), ("世界", TITLES[4])])
def test_words_are_found_through_the_index_that_is_there(run: Run, words: str, title: str) -> None:
    hits = json.loads(run("history", "search", words, *CHATS, "--json").stdout)
    assert {hit["title"] for hit in hits} == {title}


def test_an_sqlite_history_takes_new_turns_and_lets_go_of_old_ones(run: Run, samples: Path, answering: ScriptedServer) -> None:
    there = ("--model", "demo", "--engine", answering.url)
    assert "Schön, a scripted answer." in run("ask", "Are you still there?", *there, *CHATS).stdout
    assert json.loads(run("history", "list", *CHATS, "--json").stdout)[0]["title"] == "Are you still there?"
    found = json.loads(run("history", "search", "donkey", *CHATS, "--json").stdout)
    assert run("history", "erase", found[0]["conversation_id"], *CHATS, "--yes").stdout == "1 conversation erased\n"
    assert run("history", "search", "donkey", *CHATS).stdout == ""
    assert b"donkey" not in (samples / "chats.db").read_bytes()


def test_a_history_made_now_has_the_tables_of_the_sample(run: Run, samples: Path) -> None:
    """An older program opens what this one wrote: a change of tables needs a migration, a new number and a new sample."""
    run("history", "import", "exports/chats.json", "--history", "sqlite:///new.db")
    run("history", "list", *CHATS)
    assert schema_of(samples / "new.db") == schema_of(samples / "chats.db")
    assert (
        version_of(samples / "chats.db", "migrations", "number") == version_of(samples / "new.db", "migrations", "number") == 7
    )


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_an_export_is_imported_whole(run: Run, samples: Path, form: str) -> None:
    source, fresh = f"exports/chats.{form}", ("--history", "sqlite:///fresh.db")
    assert run("history", "import", source, *fresh).stdout == "7 conversations added\n"
    run("history", "export", *fresh, "--format", "json", "--out", "now")
    assert read(samples / "now") == read(samples / "exports" / "chats.json")


def test_a_history_is_turned_into_training_data(run: Run, samples: Path) -> None:
    report = json.loads(run("dataset", "build", *CHATS, "--out", "data", "--json").stdout)
    assert report["answers"] == 10
    assert report["preference_pairs"] == 1
    assert "On the north coast, above the harbour." in (samples / "data" / "sft.jsonl").read_text()


# --- encrypted, plain files, PostgreSQL ------------------------------------------------------------------------------


def test_an_encrypted_history_opens_with_its_key_only(run: Run, samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sealed = ("--history", "sqlite:///sealed.db")
    assert b"secret" not in (samples / "sealed.db").read_bytes()
    with pytest.raises(Exception, match="QLORA_CHAT_HISTORY_KEY"):
        run("history", "list", *sealed)
    monkeypatch.setenv("QLORA_CHAT_HISTORY_KEY", KEY)
    (listed,) = json.loads(run("history", "list", *sealed, "--json").stdout)
    assert listed["title"] == "Is this secret?"
    assert "Only as secret as its key." in run("history", "show", listed["id"], *sealed).stdout
    assert len(json.loads(run("history", "search", "secret", *sealed, "--json").stdout)) == 2
    with receiving() as (url, bodies):
        monkeypatch.setenv("LOGGING_URL", url)
        run("history", "list", *sealed)
    assert [json.loads(body)["history"] for body in bodies] == [[["Is this secret?", "Only as secret as its key."]]]


def test_a_folder_of_plain_files_opens(run: Run, samples: Path) -> None:
    plain = ("--history", "jsonl:plain")
    (listed,) = json.loads(run("history", "list", *plain, "--json").stdout)
    assert (listed["title"], listed["turns"]) == ("Plain files, please.", 6)
    told = json.loads(run("history", "export", *plain).stdout)
    answers = [turn["content"] for turn in told["turns"] if turn["role"] == "assistant"]
    again = "It stands on the north coast, above the harbour."
    assert answers == ["Here is a line of JSON.", again, again]
    assert told["turns"][4]["parent_id"] == told["turns"][1]["id"], "a retry"
    assert len(json.loads(run("history", "search", "harbour", *plain, "--json").stdout)) == 2


def test_a_dump_of_postgresql_opens(run: Run, samples: Path, postgres_server: Server) -> None:
    import psycopg

    url = new_database(postgres_server)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute((samples / "history.sql").read_text().encode())
    there = ("--history", url)
    run("history", "export", *there, "--format", "json", "--out", "now")
    by_id = {each["id"]: each for each in read(samples / "now")}
    assert by_id == {each["id"]: each for each in read(samples / "exports" / "chats.json")}
    assert {hit["title"] for hit in json.loads(run("history", "search", "zürich", *there, "--json").stdout)} == {TITLES[4]}


# --- what waits to be sent, and what was received --------------------------------------------------------------------


def test_what_waits_in_a_history_is_sent_and_what_was_refused_stays(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving() as (url, bodies):
        monkeypatch.setenv("LOGGING_URL", url)
        left = run("history", "list", *CHATS).stderr
    sent = [json.loads(body) for body in bodies]
    assert [each.get("kind", "v1") for each in sent] == [
        "turn", "turn", "turn", "turn", "v1", "turn", "turn", "turn", "feedback", "feedback", "tombstone",
    ]  # fmt: skip
    assert "log: 1 record refused by the receiver and set aside" in left
    assert sent[0]["history"] == [["Where is the lighthouse?", "On the north coast."]]
    assert sent[4]["history"] == [["Is it deep enough for ferries?", "Yes, for small ones."]]
    assert sent[6]["tags"] == ["qlora-chat:api", "project=ferry"]
    assert sent[8]["feedback"]["edited"] == "On the north coast, above the harbour."


def test_what_waits_in_an_outbox_of_its_own_is_sent(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGGING_OUTBOX", "outbox.db")
    with receiving() as (url, bodies):
        monkeypatch.setenv("LOGGING_URL", url)
        assert "not sent" not in run("history", "list", "--history", "jsonl:plain").stderr
    assert [json.loads(body)["answer"] for body in bodies] == [
        "Here is a line of JSON.", *["It stands on the north coast, above the harbour."] * 2,
    ]  # fmt: skip


def test_a_store_of_received_records_is_counted_and_searched(run: Run, samples: Path) -> None:
    store = ("--store", "sqlite:///received.db")
    counted = json.loads(run("logs", "stats", *store, "--json").stdout)
    assert (counted["turns"], counted["erased_conversations"], counted["turns_with_feedback"]) == (10, 1, 2)
    told = run("logs", "query", *store, "--rating", "edited").stdout
    assert "# Nearly: schön!" in told
    fox = json.loads(run("logs", "query", *store, "--text", "ZÜRICH", "--json").stdout)
    assert fox["answer"].startswith("Grüße aus Zürich!")
    assert version_of(samples / "received.db", "receiver_schema", "version") == 2
    report = json.loads(run("dataset", "build", *store, "--out", "data", "--json").stdout)
    assert report["preference_pairs"] == 1


def test_a_receiver_goes_on_with_its_store_and_takes_each_record_once(samples: Path) -> None:
    turn = read(samples / "records" / "v2.json")
    with program("--store", "sqlite:///received.db", "--port", str(free_port())) as receiver:
        for name in ("v1.json", "v2.json"):  # it has them already
            body = (samples / "records" / name).read_bytes()
            headers = {"Content-Type": "application/json"}
            assert httpx.post(f"{receiver.url}/log", content=body, headers=headers).status_code == 200
        assert httpx.get(f"{receiver.url}/stats.json").json()["turns"] == 10
        assert httpx.post(f"{receiver.url}/log", json={**turn, "id": "another", "turn_id": "another"}).status_code == 200
        assert httpx.get(f"{receiver.url}/stats.json").json()["turns"] == 11


def test_a_store_made_now_has_the_tables_of_the_sample(samples: Path) -> None:
    """Columns that came later are added to a store of then as well."""
    for name in ("new.db", "received.db"):
        with program("--store", f"sqlite:///{name}", "--port", str(free_port())):
            pass
    assert columns_of(samples / "new.db") == columns_of(samples / "received.db")
