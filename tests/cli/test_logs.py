"""`qlora-chat logs outbox` as people use it, for an outbox in a file of its own and in a database."""

from __future__ import annotations

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
    assert outbox("--move", A).splitlines()[0] == f"2 moved from {A} to {B}"
    assert [line.split() for line in outbox().splitlines()] == [["3", "waiting", "0", "refused", B]]
