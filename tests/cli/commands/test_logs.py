"""`qlora-chat logs outbox` as people use it, for an outbox in a file of its own and in a database."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qlora_chat.cli import app
from qlora_chat.history.open import opened_outbox
from qlora_chat.settings import HistorySettings, LogSettings, SettingsError
from tests.delivery.receiving import record

A, B = "http://127.0.0.1:9/team-a", "http://127.0.0.1:9/team-b"


def outbox(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["logs", "outbox", *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stdout


@pytest.mark.parametrize("url", [None, "sqlite:///{}/chats.db"], ids=["file", "database"])
def test_outbox_shows_what_waits_for_which_address_and_moves_it(
    url: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = url and url.format(tmp_path)
    monkeypatch.setenv("LOGGING_OUTBOX", str(tmp_path / "outbox.db"))
    monkeypatch.setenv("QLORA_CHAT_HISTORY", history or "")
    assert outbox() == ""
    for address in (A, A, B):
        with opened_outbox(HistorySettings(history), LogSettings(address, outbox=tmp_path / "outbox.db")) as opened:
            opened.put(record())
    lines = [line.split() for line in outbox().splitlines()]
    assert lines == [["2", "waiting", "0", "refused", A], ["1", "waiting", "0", "refused", B]]
    with pytest.raises(SettingsError, match="--move needs LOGGING_URL"):
        outbox("--move", A)
    monkeypatch.setenv("LOGGING_URL", B)
    assert outbox("--move", A).splitlines()[0] == f"2 records moved from {A} to {B}"
    assert [line.split() for line in outbox().splitlines()] == [["3", "waiting", "0", "refused", B]]


def dead_letters(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["logs", "dead-letters", *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stdout


def test_dead_letters_are_listed_with_their_reason_and_queued_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path}/chats.db"
    monkeypatch.setenv("QLORA_CHAT_HISTORY", url)
    assert dead_letters("list") == ""
    with opened_outbox(HistorySettings(url), LogSettings(A)) as opened:
        for conversation in ("one", "two", "three", "esc\x1b[2Jape"):
            opened.put(record("Hi", conversation))
        opened.ack(dead=[(each.seq, "status 400") for each in opened.claim(4)])
    listed = dead_letters("list").splitlines()
    assert [line.split("  ")[2:] for line in listed[:1]] == [["turn of one", f"for {A}", "status 400"]]
    assert "\x1b" not in listed[3], "an id is text from elsewhere"
    found = json.loads(dead_letters("list", "--json"))
    assert [each["conversation_id"] for each in found] == ["one", "two", "three", "esc\x1b[2Jape"]
    with pytest.raises(SettingsError, match="say what to send again"):
        dead_letters("retry")
    with pytest.raises(SettingsError, match="no record that was set aside has the id 'nobody'"):
        dead_letters("retry", "nobody")
    assert dead_letters("retry", found[1]["id"]).startswith("1 record queued again")
    assert [each["conversation_id"] for each in json.loads(dead_letters("list", "--json"))] == ["one", "three", "esc\x1b[2Jape"]
    assert dead_letters("retry", "--all").startswith("3 records queued again")
    with opened_outbox(HistorySettings(url), LogSettings(A)) as opened:
        assert len(opened.claim(5)) == 4, "they wait for the same address as before"
