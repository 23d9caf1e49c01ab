"""History URLs that cannot be opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_chat.history import HistoryError
from qlora_chat.history.open import open_history
from qlora_chat.settings import HistorySettings, LogSettings
from tests.history.conftest import sqlite_history


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("postgresql://me:secret@host/db", "every user of this machine can read"),
        ("mysql://host/db", "is no kind of history"),
        ("nonsense:x", "is no kind of history"),
        ("sqlite://", "needs a file"),
        ("sqlite:////proc/none/chats.db", "cannot be opened for writing"),
        ("postgresql://nobody@127.0.0.1:9/x", "cannot be reached"),
    ],
)
def test_an_unusable_url_is_one_clear_error(url: str, problem: str) -> None:
    with pytest.raises(HistoryError, match=problem) as raised:
        open_history(HistorySettings(url), LogSettings())
    assert "secret" not in str(raised.value)


def test_a_file_that_is_no_database_is_reported_as_damaged(tmp_path: Path) -> None:
    (tmp_path / "chats.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(HistoryError, match="damaged"):
        sqlite_history(tmp_path / "chats.db")
    assert (tmp_path / "chats.db").read_bytes().startswith(b"not a database"), "and is left as it is"
