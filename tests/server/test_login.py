"""Sessions of the page: they expire, they can be ended everywhere, and a new password ends them all."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path

import pytest
from starlette.datastructures import Headers

from qlora_chat.errors import UserError
from qlora_chat.history.open import open_history
from qlora_chat.server import login
from qlora_chat.server.login import SESSION_S, Password
from qlora_chat.settings import HistorySettings, LogSettings


class Recorded:
    """Log-outs that several processes share, and that can fail as a database does."""

    def __init__(self) -> None:
        self.ended: set[str] = set()
        self.problem: Exception | None = None

    def add(self, name: str, ends_at: float) -> None:
        if self.problem:
            raise self.problem
        self.ended.add(name)

    def names(self) -> set[str]:
        if self.problem:
            raise self.problem
        return set(self.ended)


def sent(cookie: str) -> Headers:
    """A later request of the browser that was sent this Set-Cookie header."""
    return Headers({"cookie": cookie.split(";")[0]})


def opens(password: Password, headers: Headers) -> bool:
    return asyncio.run(password.has_session(headers))


def test_a_session_opens_the_page_until_it_expires() -> None:
    now = 1_000_000.0
    password = Password("correct horse", clock=lambda: now)
    headers = sent(password.begin_session(secure=False))
    now += SESSION_S - 1
    assert opens(password, headers)
    now += 1
    assert not opens(password, headers)


def test_an_ended_session_opens_nothing_and_others_go_on() -> None:
    password = Password("correct horse")
    ended, other = (sent(password.begin_session(secure=False)) for _ in range(2))
    asyncio.run(password.end_session(ended))
    assert "Max-Age=0" in password.removal(secure=False)
    assert not opens(password, ended)
    assert opens(password, other)


def test_a_log_out_holds_in_other_processes_and_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "REREAD_S", 0.0)
    settings = HistorySettings(f"sqlite:///{tmp_path / 'chats.db'}")
    with closing(open_history(settings, LogSettings())) as mine, closing(open_history(settings, LogSettings())) as others:
        here, elsewhere = (Password("correct horse", each.ended_sessions) for each in (mine, others))
        headers, other = (sent(here.begin_session(secure=False)) for _ in range(2))
        assert opens(elsewhere, headers), "processes with one history take each other's sessions"
        asyncio.run(here.end_session(headers))
        assert not opens(elsewhere, headers)
        assert opens(elsewhere, other)
    with closing(open_history(settings, LogSettings())) as restarted:
        assert not opens(Password("correct horse", restarted.ended_sessions), headers)
        assert opens(Password("correct horse", restarted.ended_sessions), other)


def test_without_a_database_for_log_outs_a_session_is_its_processs_own() -> None:
    headers = sent(Password("correct horse").begin_session(secure=False))
    assert not opens(Password("correct horse"), headers)


def test_another_password_takes_no_session() -> None:
    recorded = Recorded()
    headers = sent(Password("correct horse", recorded).begin_session(secure=False))
    assert opens(Password("correct horse", recorded), headers)
    assert not opens(Password("battery staple", recorded), headers)


def test_while_the_database_is_away_known_log_outs_hold_and_a_new_one_is_not_called_complete(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(login, "REREAD_S", 0.2)
    recorded = Recorded()
    password = Password("correct horse", recorded)
    ended, later, other = (sent(password.begin_session(secure=False)) for _ in range(3))
    asyncio.run(password.end_session(ended))
    assert opens(password, other)
    recorded.problem = UserError("the server is away")
    password._log_outs._read_at = -1.0
    assert opens(password, other)
    assert not opens(password, ended)
    with pytest.raises(UserError):
        asyncio.run(password.end_session(later))
    assert not opens(password, later), "ended here, at least"
    assert not opens(Password("correct horse", recorded), other), "a process that has never read the log-outs takes nobody's"


def test_a_session_that_was_changed_opens_nothing() -> None:
    password = Password("correct horse")
    name, _, value = password.begin_session(secure=False).split(";")[0].partition("=")
    end, nonce, signature = value.split(".")
    for forged in ("", ".", "..", f"{int(end) + 1}.{nonce}.{signature}", f"{end}.{nonce}.", f"{end}.{nonce}.\u00e9", "x.y.z"):
        assert not opens(password, Headers(raw=[(b"cookie", f"{name}={forged}".encode())]))


def test_behind_tls_the_cookie_is_for_tls_only() -> None:
    password = Password("correct horse")
    assert "; Secure" in password.begin_session(secure=True)
    assert "; Secure" not in password.begin_session(secure=False)
